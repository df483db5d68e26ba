"""A prompt that the answer begins with, and how likely the model found each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenizers.decoders import DecodeStream

from mlx_manager.chat.events import LikelyToken, TextDelta, TokenLogprobs
from mlx_manager.mlx_server.engine.messages import Logprobs
from mlx_manager.mlx_server.generation.logprobs import likely
from mlx_manager.mlx_server.generation.model_text import ModelText


def scored_echo(
    echo: str, token_ids: Sequence[int], logprobs: Sequence[Logprobs], text: ModelText
) -> TextDelta:
    """Return the text of a prompt with its tokens; `logprobs` are those of all but the first."""
    first = TokenLogprobs(LikelyToken(text.token_bytes.of(token_ids[0]), None), (), 0, True)
    offsets = _offsets(echo, token_ids, text)
    others = (
        replace(likely(token_id, one, offset, text.token_bytes), is_echoed=True)
        for token_id, one, offset in zip(token_ids[1:], logprobs, offsets[1:], strict=True)
    )
    return TextDelta(echo, (first, *others))


def _offsets(echo: str, token_ids: Sequence[int], text: ModelText) -> list[int]:
    """Return how many characters of the text stand before each token.

    Special tokens are characters of it only where the text was made from them: a tokenizer adds its own to a text.
    """
    whole = text.tokenizer.decode(list(token_ids), skip_special_tokens=False)
    stream = DecodeStream(skip_special_tokens=whole != echo)
    offsets, at = list[int](), 0
    for token_id in token_ids:
        offsets.append(min(at, len(echo)))
        at += len(stream.step(text.tokenizer.backend_tokenizer, token_id) or "")
    return offsets
