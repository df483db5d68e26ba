"""What a model can do, as far as its files say it: in words that belong to no API."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Abilities:
    """What is known of a model without loading it. Prompt and answer together have `context_tokens`; None: unknown.

    `makes_text` or makes something else, such as vectors. It `thinks` before it answers, or can be told to, and its
    template `reads_effort` where how much can be told in levels.
    """

    context_tokens: int | None = None
    makes_text: bool = True
    thinks: bool = False
    reads_effort: bool = False
