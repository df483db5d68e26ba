"""Several answers to one prompt, or to several, read side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from mlx_manager.chat.events import ChoiceFinished, Delta, Finished, OfChoice, Usage
from mlx_manager.mlx_server.generation.answer import AnswerReader, read_answer
from mlx_manager.mlx_server.workers.stream import TokenStream

# Seeds of a request's choices lie so far apart, that those of another one, whose client counts on, are none of them:
# 2^64 divided by the golden ratio.
SEED_STRIDE = 0x9E3779B97F4A7C15

Row = tuple[TokenStream, AnswerReader]
Item = tuple[int, Delta | Finished | Exception]


def sibling_seeds(seed: int | None, choices: int) -> list[int | None]:
    """Return the seeds of all choices but the first, which has the request's own."""
    if seed is None:
        return [None] * (choices - 1)
    return [(seed + index * SEED_STRIDE) % 2**64 for index in range(1, choices)]


def read_choices(
    rows: Sequence[Row], choices: int, input_tokens: int
) -> AsyncGenerator[Delta | OfChoice | Finished, None]:
    """Yield the answers of `rows` as they come, and then how they ended; a single one comes bare.

    There are `choices` for each prompt, of which the first has read it. The failure of one is that of all.
    """
    if len(rows) == 1:
        return read_answer(*rows[0], input_tokens)
    return _side_by_side(rows, choices, input_tokens)


async def _side_by_side(
    rows: Sequence[Row], choices: int, input_tokens: int
) -> AsyncGenerator[OfChoice | Finished, None]:
    # Short: a slow reader's tokens wait in their streams, where they are joined, and not here piece by piece.
    items = asyncio.Queue[Item](len(rows))
    readers = [
        asyncio.create_task(_read(index, row, input_tokens, items))
        for index, row in enumerate(rows)
    ]
    try:
        ends = dict[int, Finished]()
        while len(ends) < len(rows):
            index, item = await items.get()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Finished):
                ends[index] = item
                yield OfChoice(index, ChoiceFinished(item.reason, item.stop_string))
            else:
                yield OfChoice(index, item)
        yield _all_finished([ends[index] for index in range(len(rows))], choices)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(index: int, row: Row, input_tokens: int, items: asyncio.Queue[Item]) -> None:
    try:
        async with aclosing(read_answer(*row, input_tokens)) as events:
            async for event in events:
                await items.put((index, event))
    except Exception as error:  # noqa: BLE001 - raised again by whoever reads the queue
        await items.put((index, error))


def _all_finished(ends: Sequence[Finished], choices: int) -> Finished:
    """Return the end of all: each prompt is counted once, as it was read."""
    first, *others = ends
    usage = Usage(
        first.usage.input_tokens,
        sum(end.usage.output_tokens for end in ends),
        sum(end.usage.cached_tokens for end in ends[::choices]),
        sum(end.usage.reasoning_tokens for end in ends),
    )
    return Finished(first.reason, usage, first.stop_string, tuple(end.reason for end in others))
