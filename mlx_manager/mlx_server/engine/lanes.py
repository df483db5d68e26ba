"""mlx-lm's `BatchGenerator` with several batches of prompts instead of one.

mlx-lm reads all prompts as one batch, padded to the longest: beside 30,000 tokens each of a short prompt's costs as
much as one of those. Here prompts that would slow each other down are in lanes of their own, and a step reads one lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, PromptProcessingBatch

from mlx_manager.mlx_server.engine.batch_api import LANE_PARTS, check_parts
from mlx_manager.mlx_server.engine.sequence import Lane

# So often mlx-lm has MLX give freed buffers back, with the step in flight that it has just begun.
CLEAR_STEPS = 512


class LanedGenerator(BatchGenerator):
    """Reads the prompts of one lane in each step, and decodes the rows of all."""

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        check_parts(self)
        # `prefill_step_size` is another one for each step, and may be 0.
        self._most_step_tokens = self.prefill_step_size
        self._lane: Lane = None
        # What mlx-lm knows of the prompts in each other lane, by the names that it has for it.
        self._left: dict[Lane, dict[str, Any]] = {}

    def enter(self, lane: Lane) -> None:
        """Have a lane be the one that prompts are inserted into, and that the next step reads."""
        if lane == self._lane:
            return
        parts = {name: getattr(self, name) for name in LANE_PARTS}
        if self._unprocessed_sequences or self._currently_processing:
            self._left[self._lane] = parts
        self.__dict__.update(self._left.pop(lane) if lane in self._left else self._no_prompts())
        self._lane = lane

    def extract_cache(self, uids: list[int]) -> dict[int, Any]:
        """Return what rows have in the caches, with their tokens."""
        found = dict[int, Any]()
        for _ in self._each_lane():
            found |= self._mlx_lm.extract_cache([uid for uid in uids if uid not in found])
        return found

    def remove(self, uids: list[int], return_prompt_caches: bool = False) -> dict[int, Any]:
        """Take rows out, and return what they have in the caches when that is wanted."""
        left = self.extract_cache(uids) if return_prompt_caches else {}
        for _ in self._each_lane():
            self._mlx_lm.remove(uids)
        return left

    @property
    def prompt_cache_nbytes(self) -> int:
        """Bytes of all rows' caches."""
        nbytes: int = self._mlx_lm.prompt_cache_nbytes
        for parts in self._left.values():
            nbytes += sum(cache.nbytes for cache in parts["_prompt_batch"].prompt_cache)
            waiting = parts["_unprocessed_sequences"]
            nbytes += sum(cache.nbytes for sequence in waiting for cache in sequence[3])
        return nbytes

    def clear_buffers(self) -> None:
        """Have MLX give freed buffers back when all that has begun is done: steps, and what is copied beside them."""
        mx.synchronize(self.stream)
        mx.synchronize()
        mx.clear_cache()

    def _next(self) -> tuple[list[Any], list[Any]]:
        self._clear_at_rest()
        joined = [response for _ in self._each_lane() for response in self._join_read()]
        prompts, answers = self._mlx_lm._next()
        return [*joined, *prompts], answers

    def _clear_at_rest(self) -> None:
        """Have freed buffers given back as often as mlx-lm would, with nothing in flight: Macs have panicked over that.

        Its own count is moved past the step at which it would.
        """
        if (self._counters.generation_steps + 1) % CLEAR_STEPS == 0:
            self.clear_buffers()
            self._counters.generation_steps += 1

    @property
    def _mlx_lm(self) -> Any:
        """What mlx-lm makes of the lane that was entered. It has no types."""
        return super()

    def _no_prompts(self) -> dict[str, Any]:
        """Return the parts of a lane that nobody is in."""
        return {
            "_prompt_batch": self._empty_batch(),
            "_currently_processing": [],
            "_unprocessed_sequences": deque(),
        }

    def _empty_batch(self) -> PromptProcessingBatch:
        empty: PromptProcessingBatch = PromptProcessingBatch.empty(
            self.model, self.sampler, self._most_step_tokens
        )
        return empty

    def _each_lane(self) -> Iterator[Lane]:
        """Enter one lane after the other, and then the one again that was entered before."""
        entered = self._lane
        for lane in [*self._left, entered]:
            self.enter(lane)
            yield lane

    def _take_in(self) -> None:
        """Let those that were inserted into this lane be among those that are read."""
        if self._unprocessed_sequences:
            self._prompt_batch.extend(self._make_batch(len(self._unprocessed_sequences)))

    def _join_read(self) -> list[Any]:
        """Let who has read all but the last token of its prompt join before the step that begins now."""
        self._take_in()
        reading = self._currently_processing
        is_read = [len(segments) == 1 and len(segments[0]) == 1 for segments, _, _ in reading]
        indices = [index for index, read in enumerate(is_read) if read]
        if not indices:
            return []
        joining = self._prompt_batch.split(indices).generate([reading[i][0][0] for i in indices])
        lengths = [reading[index][2] for index in indices]
        self._currently_processing = [
            one for one, read in zip(reading, is_read, strict=True) if not read
        ]
        uids = list(joining.uids)
        self._generation_batch.extend(joining)
        return [
            PromptProcessingBatch.Response(uid, (length, length), True, True)
            for uid, length in zip(uids, lengths, strict=True)
        ]

    def _read_pieces(self) -> list[Any]:
        """Compute the next piece of each prompt in the lane that was entered, and say how far each has come."""
        if self.prefill_step_size == 0:
            return []
        pieces, responses = list[list[int]](), list[Any]()
        for uid, reading in zip(self._prompt_batch.uids, self._currently_processing, strict=True):
            (segment, *later), done, whole = reading
            piece, rest = segment[: self.prefill_step_size], segment[self.prefill_step_size :]
            reading[:] = [[rest, *later] if rest else later, done + len(piece), whole]
            pieces.append(piece)
            progress = (done + len(piece), whole)
            responses.append(PromptProcessingBatch.Response(uid, progress, not rest, False))
        self._prompt_batch.prompt(pieces)
        return responses
