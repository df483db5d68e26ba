"""Text to token ids and back, in words that belong to no API."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_manager.chat.request import Conversation


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """The token ids of a text are asked for, or those that a conversation is answered from.

    `adds_special_tokens` is about texts: a conversation has those that the model's template writes.
    """

    model: str
    input: Conversation | str
    adds_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token ids of what was asked for, each with its entry in the vocabulary as `pieces`.

    The model takes `context_tokens` of them, with its answer if it makes any.
    """

    token_ids: list[int]
    pieces: list[str]
    context_tokens: int


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    """The text of token ids is asked for, without special tokens if `skips_special_tokens`."""

    model: str
    token_ids: tuple[int, ...]
    skips_special_tokens: bool = False
