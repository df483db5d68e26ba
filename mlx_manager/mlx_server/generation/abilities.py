"""What a model's files say that it can do: nothing is loaded for it.

Plain Python and files: call it in a thread.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mlx_manager.chat.abilities import Abilities
from mlx_manager.mlx_server.families.family import FAMILY_NAMES, family_of
from mlx_manager.mlx_server.generation.embedding_text import most_tokens
from mlx_manager.mlx_server.generation.template_variables import template_variables
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.fit import own_context

EFFORT = "reasoning_effort"
# Templates are large, and most of a machine's models share a few.
KEPT_TEMPLATES = 64
# What files that are no model's may make of reading them.
BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError)


def told_abilities(files: ModelFiles) -> Abilities:
    """Return what a model can do; of files that can't be read, nothing that they would say."""
    makes_text = files.kind == "chat"
    thinks, reads_effort = _of_template(_template(files), files.settings.family)
    return Abilities(
        context_tokens=_context_tokens(files),
        makes_text=makes_text,
        thinks=makes_text and thinks,
        reads_effort=makes_text and reads_effort,
    )


def _context_tokens(files: ModelFiles) -> int | None:
    try:
        config = files.read_json("config.json")
        if files.kind == "chat":
            return files.settings.context_tokens or own_context(config)
        return most_tokens(files, config)
    except BROKEN:
        return None


def _template(files: ModelFiles) -> str:
    """Return the text of a model's chat template, from where its makers have put it; of several, all of them."""
    try:
        file = files.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text()
        for name in ("chat_template.json", "tokenizer_config.json"):
            if template := files.read_json(name).get("chat_template"):
                return _text(template)
    except BROKEN:
        pass
    return ""


def _text(template: Any) -> str:
    if isinstance(template, str):
        return template
    return "\n".join(one["template"] for one in template)


@lru_cache(KEPT_TEMPLATES)
def _of_template(template: str, family_name: str | None) -> tuple[bool, bool]:
    """Return whether it is a model's that thinks, and that is told how much."""
    # Loading refuses a family that there is none of; here it says nothing.
    family = family_of(template, family_name if family_name in FAMILY_NAMES else None)
    return family.thinks, EFFORT in template_variables(template)
