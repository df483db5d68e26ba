"""Read an answer when the load is over: is it right, and when did each token come?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from benchmarks.connection import Reply
from benchmarks.work import Length

DATA = b"data: "
DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer in numbers; `failure` says what is wrong with it, and then it counts no tokens."""

    tokens: int = 0
    first_token_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    failure: str | None = None


def read(reply: Reply, length: Length) -> Reading:
    """Check an answer's status, end and token counts, and take its times."""
    status = reply.head[9:12]
    if not reply.is_whole:
        return Reading(failure="the connection ended before the answer did")
    if status != b"200":
        return Reading(failure=f"status {status.decode()}: {bytes(_body(reply))[:300]!r}")
    try:
        if b"text/event-stream" in reply.head.lower():
            return _read_stream(reply, length)
        return _read_whole(reply, length)
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        return Reading(failure=f"unreadable answer: {type(error).__name__}: {error}")


def _read_whole(reply: Reply, length: Length) -> Reading:
    answer = msgspec.json.decode(_body(reply))
    failure = _wrong(answer["usage"], answer["choices"][0]["finish_reason"], length)
    return Reading(failure=failure) if failure else Reading(tokens=length.output_tokens)


def _read_stream(reply: Reply, length: Length) -> Reading:
    usage, reason, text_at_s, is_done = None, None, list[float](), False
    for payload, at_s in _events(reply):
        if payload == DONE:
            is_done = True
            continue
        chunk = msgspec.json.decode(payload)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            reason = choice.get("finish_reason") or reason
            if choice["delta"].get("content"):
                text_at_s.append(at_s)
    failure = _wrong(usage, reason, length) or _incomplete(text_at_s, is_done)
    if failure:
        return Reading(failure=failure)
    gaps = tuple(later - at for at, later in pairwise(text_at_s))
    return Reading(length.output_tokens, text_at_s[0] - reply.sent_s, gaps)


def _incomplete(text_at_s: list[float], is_done: bool) -> str | None:
    if not text_at_s:
        return "a stream without text"
    return None if is_done else "a stream without [DONE]"


def _wrong(usage: Any, reason: str | None, length: Length) -> str | None:
    if usage is None:
        return "no usage"
    counts = (usage["prompt_tokens"], usage["completion_tokens"], reason)
    expected = (length.prompt_tokens, length.output_tokens, "length")
    return None if counts == expected else f"{counts} instead of {expected}"


def _events(reply: Reply) -> Iterator[tuple[bytes, float]]:
    """Yield the payload of each event and when its last byte was there."""
    body, arrivals = _pieces(reply)
    start, arrival = 0, 0
    while (end := body.find(b"\n\n", start)) >= 0:
        while arrivals[arrival][0] < end + 2:
            arrival += 1
        event = bytes(body[start:end])
        if event.startswith(DATA):
            yield event[len(DATA) :], arrivals[arrival][1]
        start = end + 2


def _body(reply: Reply) -> bytearray:
    return _pieces(reply)[0]


def _pieces(reply: Reply) -> tuple[bytearray, list[tuple[int, float]]]:
    """Return the body without its transfer coding, and when how many bytes of it were there."""
    start = reply.body_start or 0
    if not reply.is_chunked:
        return reply.data[start:], [(length - start, at_s) for length, at_s in reply.marks]
    body, arrivals, mark = bytearray(), list[tuple[int, float]](), 0
    for chunk_start, chunk_end in _chunks(reply.data, start):
        body += reply.data[chunk_start:chunk_end]
        while reply.marks[mark][0] < chunk_end:
            mark += 1
        arrivals.append((len(body), reply.marks[mark][1]))
    return body, arrivals


def _chunks(data: bytearray, at: int) -> Iterator[tuple[int, int]]:
    """Yield where each chunk of the body that begins at `at` begins and ends."""
    while True:
        line_end = data.index(b"\r\n", at)
        size = int(data[at:line_end].split(b";")[0], 16)
        if size == 0:
            return
        start = line_end + 2
        yield start, start + size
        at = start + size + 2
