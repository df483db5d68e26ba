"""Log-probabilities in OpenAI's two forms: the chat's, and the older one of text completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlx_manager.chat.events import LikelyToken, TokenLogprobs

# What OpenAI's API says of a token that is out of the question; JSON has no infinity.
LEAST_LOGPROB = -9999.0


def to_chat_logprobs(tokens: Iterable[TokenLogprobs]) -> dict[str, Any]:
    """Return the `logprobs` of a choice of a chat completion or of its chunk."""
    content = [
        {**_entry(one.token), "top_logprobs": [_entry(other) for other in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def to_text_logprobs(tokens: Iterable[TokenLogprobs]) -> dict[str, Any]:
    """Return the `logprobs` of a choice of a text completion; the token itself is always among `top_logprobs`."""
    listed = list(tokens)
    return {
        "tokens": [_name(one.token) for one in listed],
        "token_logprobs": [_logprob(one.token) for one in listed],
        "top_logprobs": [
            None if one.token.logprob is None else _by_name((one.token, *one.top)) for one in listed
        ],
        "text_offset": [one.offset for one in listed],
    }


def _entry(token: LikelyToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": _logprob(token), "bytes": list(token.data)}


def _by_name(tokens: Iterable[LikelyToken]) -> dict[str, float | None]:
    """Return log-probabilities by name, the highest first; of tokens with the same name that of the likeliest."""
    likeliest_last = sorted(tokens, key=_likelihood)
    by_name = {_name(token): token for token in likeliest_last}
    likeliest_first = sorted(by_name.items(), key=lambda item: -_likelihood(item[1]))
    return {name: _logprob(token) for name, token in likeliest_first}


def _likelihood(token: LikelyToken) -> float:
    return LEAST_LOGPROB if token.logprob is None else token.logprob


def _name(token: LikelyToken) -> str:
    r"""Return a token as text, or as `bytes:\xe2\x98` where it is no whole text."""
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


def _logprob(token: LikelyToken) -> float | None:
    return None if token.logprob is None else max(token.logprob, LEAST_LOGPROB)
