"""Map the engine's monotonic stamps to wall time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mlx_manager.chat.events import Departure, Resumption, Stall, Timeline
from mlx_manager.mlx_server.engine.messages import Stamps
from mlx_manager.mlx_server.workers.resume import Request
from mlx_manager.mlx_server.workers.stream import TokenStream

LocateDeparture = Callable[[TokenStream], Departure | None]


@contextmanager
def recording(
    readers: Sequence[TokenStream], timeline: Timeline, locate: LocateDeparture
) -> Iterator[None]:
    """Write into `timeline` what is known of a request's sequences when the block is left, however it is left."""
    try:
        yield
    finally:
        record(readers, timeline, locate)


def record(readers: Sequence[TokenStream], timeline: Timeline, locate: LocateDeparture) -> None:
    """Write into `timeline` what is known by now of those that read a request's prompts, and of their siblings."""
    # All processes of a machine share the monotonic clock. Its distance from wall time is taken anew each time:
    # the wall clock is set now and then, and the other stamps of a request are wall time.
    offset_ns = time.time_ns() - time.monotonic_ns()
    first = min(readers, key=_began)
    _record_one(first, timeline, offset_ns)
    _add_prompts([one for one in readers if one is not first], timeline)
    _tell_miss(readers, timeline, locate)
    streams = [one for reader in readers for one in (reader, *reader.siblings)]
    timeline.choices = len(streams)
    if len(streams) > 1:
        _add_others([one for one in streams if one is not first], timeline, offset_ns)


def _began(reader: TokenStream) -> tuple[int, int]:
    """When a sequence had its first token, and its place; one that has neither comes last."""
    return reader.first_token_at_ns or sys.maxsize, reader.admitted_at_ns or sys.maxsize


def _record_one(tokens: TokenStream, timeline: Timeline, offset_ns: int) -> None:
    timeline.admitted_ns = _wall(tokens.admitted_at_ns, offset_ns)
    timeline.first_token_ns = _wall(tokens.first_token_at_ns, offset_ns)
    timeline.output_tokens = tokens.received_tokens
    timeline.cached_tokens = tokens.cached_tokens
    timeline.waited_behind = tokens.waited_behind
    timeline.followed = tuple(tokens.followed)
    timeline.resumptions = resumptions(tokens, offset_ns)
    if tokens.ended is not None and tokens.resumptions:
        _record_last_part(tokens.ended.stamps, timeline, offset_ns)
    elif tokens.ended is not None:
        _record_stamps(tokens.ended.stamps, timeline, offset_ns)
    elif tokens.admitted_at_ns is not None:
        timeline.finished_ns = time.time_ns()


def _add_prompts(readers: Sequence[TokenStream], timeline: Timeline) -> None:
    """Add what reading the other prompts took."""
    for tokens in readers:
        timeline.cached_tokens += tokens.cached_tokens
        if tokens.ended is not None:
            timeline.prefill_chunks = (
                timeline.prefill_chunks or 0
            ) + tokens.ended.stamps.prefill_chunks


def _tell_miss(readers: Sequence[TokenStream], timeline: Timeline, locate: LocateDeparture) -> None:
    """Say of the first prompt that was not all in the cache why that was, and where it left what is stored."""
    for tokens in readers:
        if tokens.ended is None or tokens.resumptions:
            continue
        if reason := tokens.ended.stamps.cache_miss_reason:
            timeline.cache_miss_reason = reason
            timeline.departure = timeline.departure or locate(tokens)
            return


def _add_others(others: Sequence[TokenStream], timeline: Timeline, offset_ns: int) -> None:
    """Add the work of the other sequences; whichever ends last ends the request."""
    ends = [timeline.finished_ns]
    for tokens in others:
        timeline.output_tokens += tokens.received_tokens
        if tokens.ended is None:
            ends.append(None if tokens.admitted_at_ns is None else time.time_ns())
            continue
        stamps = tokens.ended.stamps
        ends.append(_wall(stamps.last_token_ns, offset_ns))
        if stamps.kv_bytes is not None:
            timeline.kv_bytes = (timeline.kv_bytes or 0) + stamps.kv_bytes
        timeline.batch_width_sum += stamps.batch_width_sum
        timeline.batch_width_max = max(timeline.batch_width_max, stamps.batch_width_max)
        timeline.proposed_tokens += stamps.proposed_tokens
        timeline.accepted_tokens += stamps.accepted_tokens
        timeline.longest_gap_ns = max(timeline.longest_gap_ns, stamps.longest_gap_ns)
    timeline.finished_ns = max((end for end in ends if end is not None), default=None)


def _record_stamps(stamps: Stamps, timeline: Timeline, offset_ns: int) -> None:
    timeline.grammar_ready_ns = _wall(stamps.grammar_ready_ns, offset_ns)
    timeline.grammar_compile_ns = stamps.grammar_compile_ns
    timeline.admitted_ns = _wall(stamps.admitted_ns, offset_ns)
    timeline.queue_reason = stamps.queue_reason
    timeline.overtaken = stamps.overtaken
    timeline.kv_bytes = stamps.kv_bytes
    timeline.first_token_ns = _wall(stamps.first_token_ns, offset_ns)
    timeline.finished_ns = _wall(stamps.last_token_ns, offset_ns)
    timeline.cached_tokens = stamps.cached_tokens
    timeline.followed_ns = stamps.following_ns
    timeline.restored_ns = stamps.restoring_ns
    timeline.prefill_chunks = stamps.prefill_chunks
    timeline.output_tokens = stamps.output_tokens
    timeline.batch_width_sum = stamps.batch_width_sum
    timeline.batch_width_max = stamps.batch_width_max
    timeline.proposed_tokens = stamps.proposed_tokens
    timeline.accepted_tokens = stamps.accepted_tokens
    timeline.longest_gap_ns = stamps.longest_gap_ns
    timeline.token_offsets_us = stamps.token_offsets_us
    timeline.token_stride = stamps.token_stride
    timeline.stalls = _stalls(stamps, 0, offset_ns)


def resumptions(request: Request, offset_ns: int) -> tuple[Resumption, ...]:
    """Return how often a request was lost and went on, with the times of the wall clock."""
    return tuple(
        Resumption(
            one.lost_ns + offset_ns,
            _wall(one.resumed_ns, offset_ns),
            one.after_token,
            one.attempts,
            one.how,
        )
        for one in request.resumptions
    )


def _record_last_part(stamps: Stamps, timeline: Timeline, offset_ns: int) -> None:
    """Take what is known of the last part of an answer: the records of the others were lost with them.

    Pauses and batch widths are those of its part of the answer.
    """
    timeline.finished_ns = _wall(stamps.last_token_ns, offset_ns) or time.time_ns()
    timeline.kv_bytes = stamps.kv_bytes
    timeline.prefill_chunks = stamps.prefill_chunks
    timeline.longest_gap_ns = stamps.longest_gap_ns
    timeline.batch_width_max = stamps.batch_width_max
    timeline.proposed_tokens = stamps.proposed_tokens
    timeline.accepted_tokens = stamps.accepted_tokens
    if stamps.output_tokens:
        mean = stamps.batch_width_sum / stamps.output_tokens
        timeline.batch_width_sum = round(mean * timeline.output_tokens)
    timeline.stalls = _stalls(stamps, timeline.output_tokens - stamps.output_tokens, offset_ns)


def _stalls(stamps: Stamps, made_tokens: int, offset_ns: int) -> tuple[Stall, ...]:
    return tuple(
        Stall(
            one.began_ns + offset_ns,
            one.duration_ns,
            one.after_token + made_tokens,
            one.beside_prefill,
        )
        for one in stamps.stalls
    )


def _wall(monotonic_ns: int | None, offset_ns: int) -> int | None:
    return None if monotonic_ns is None else monotonic_ns + offset_ns
