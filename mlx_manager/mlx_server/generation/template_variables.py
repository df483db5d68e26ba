"""Which variables a chat template reads: whatever else a request sets for it changes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jinja2 import TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Around what the assistant says, for training; only transformers' own environment knows it.
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
NAMES = re.compile(r"\w+")
_ENVIRONMENT = ImmutableSandboxedEnvironment(extensions=[loopcontrols])


def template_variables(template: str | Mapping[str, str] | None) -> frozenset[str]:
    """Return the names that a template, or any of several, reads and does not set itself.

    Of one that can't be parsed, every word is taken for one.
    """
    if template is None:
        return frozenset()
    if isinstance(template, str):
        return _variables(template)
    return frozenset().union(*map(_variables, template.values()))


def _variables(template: str) -> frozenset[str]:
    try:
        parsed = _ENVIRONMENT.parse(GENERATION.sub("", template))
    except TemplateSyntaxError:
        return frozenset(NAMES.findall(template))
    return frozenset(find_undeclared_variables(parsed))
