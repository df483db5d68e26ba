"""What the engine relies on in mlx-lm's `BatchGenerator`. A release that drifts fails here, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import QuantizedKVCache

from mlx_manager.mlx_server.engine.batch_api import (
    INSERT_ARGUMENTS,
    BatchApiDrifted,
    check_batch_api,
    check_parts,
)
from mlx_manager.mlx_server.engine.decode_batch import SlottedGenerator
from mlx_manager.mlx_server.engine.row_state import PlainLayers
from mlx_manager.mlx_server.engine.sampling import greedy
from tests.engine.models import VOCABULARY, WatchedModel

PROMPT = list(range(20, 60))


Generator = Callable[..., Any]


@pytest.fixture(params=["mlx-lm", "slots"])
def generator(request: pytest.FixtureRequest) -> Generator:
    """mlx-lm's own, and the one that has our batch of decoding rows in it: what is relied on holds for both."""

    def make(model: Any, note_read: Callable[[list[Any]], None] | None = None) -> Any:
        options: dict[str, Any] = {"sampler": greedy, "completion_batch_size": 8}
        if request.param == "mlx-lm":
            return NotingGenerator(model, note_read, **options)
        layers = PlainLayers(len(model.layers))
        return SlottedGenerator(model, layers, keeps_rows=True, note_read=note_read, **options)

    return make


class NotingGenerator(BatchGenerator):
    """mlx-lm's own. It reads last in a step, so that what a prompt leaves is there until the next one."""

    def __init__(
        self, model: Any, note_read: Callable[[list[Any]], None] | None, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self._note_read = note_read

    def _next(self) -> tuple[list[Any], list[Any]]:
        mlx_lm: Any = super()
        prompts, rows = mlx_lm._next()
        if self._note_read is not None:
            self._note_read([row for row in prompts if not row.end_of_prompt])
        return prompts, rows


def insert(
    batch: Any,
    prompt: list[int],
    max_tokens: int = 5,
    sampler: Callable[[mx.array], mx.array] = greedy,
    end_token_ids: tuple[int, ...] = (),
) -> int:
    [uid] = batch.insert_segments(
        [[prompt]],
        max_tokens=[max_tokens],
        samplers=[sampler],
        stop_sequences=[StopSequences([[token_id] for token_id in end_token_ids])],
    )
    assert isinstance(uid, int)
    return uid


def run(batch: Any, steps: int = 30) -> list[Any]:
    """Return all generation responses of that many steps."""
    return [row for _ in range(steps) for row in batch.next()[1]]


def test_insert_segments_takes_the_arguments_that_the_runner_gives() -> None:
    known = set(inspect.signature(BatchGenerator.insert_segments).parameters)
    assert known >= INSERT_ARGUMENTS


def test_next_returns_prompt_rows_and_decoded_rows(
    model: WatchedModel, generator: Generator
) -> None:
    batch = generator(model)
    uid = insert(batch, PROMPT)
    told, rows = list[Any](), list[Any]()
    while not rows:
        assert len(told) < 3
        prompts, rows = batch.next()
        told += prompts
    assert [(row.uid, row.end_of_prompt) for row in told] == [(uid, False), (uid, True)]
    assert prompts == []
    [row] = rows
    assert (row.uid, type(row.token), row.finish_reason) == (uid, int, None)


def test_the_last_of_max_tokens_says_length(model: WatchedModel, generator: Generator) -> None:
    batch = generator(model)
    insert(batch, PROMPT, max_tokens=3)
    assert [row.finish_reason for row in run(batch)] == [None, None, "length"]


def test_an_end_token_says_stop_and_is_given_out(model: WatchedModel, generator: Generator) -> None:
    batch = generator(model)
    insert(batch, PROMPT, max_tokens=9)
    tokens = [row.token for row in run(batch)]
    last = next(at for at in range(1, 9) if tokens[at] not in tokens[:at])
    insert(batch, PROMPT, max_tokens=9, end_token_ids=(tokens[last], 255))
    rows = run(batch)
    assert [row.token for row in rows] == tokens[: last + 1]
    assert [row.finish_reason for row in rows] == [None] * last + ["stop"]


@pytest.mark.parametrize("steps", range(5))
def test_a_removed_row_answers_no_more_at_whatever_stage_it_was(
    model: WatchedModel, steps: int, generator: Generator
) -> None:
    batch = generator(model)
    batch.prefill_step_size = 20
    gone, stays = insert(batch, PROMPT, max_tokens=50), insert(batch, PROMPT[:30], max_tokens=20)
    for _ in range(steps):
        batch.next()
    batch.remove([gone])
    heard = [row.uid for _ in range(30) for rows in batch.next() for row in rows]
    assert gone not in heard
    assert stays in heard


@pytest.mark.parametrize("steps", range(5))
def test_a_removed_row_gives_its_memory_back(
    model: WatchedModel, steps: int, generator: Generator
) -> None:
    batch = generator(model)
    batch.prefill_step_size = 20
    uid = insert(batch, PROMPT, max_tokens=50)
    for _ in range(steps):
        batch.next()
    assert batch.prompt_cache_nbytes > 0 or steps == 0
    batch.remove([uid])
    assert batch.prompt_cache_nbytes == 0


def test_removing_an_unknown_row_changes_nothing(model: WatchedModel, generator: Generator) -> None:
    batch = generator(model)
    insert(batch, PROMPT, max_tokens=3)
    batch.remove([12_345])
    assert len(run(batch)) == 3


def test_with_chunks_of_nothing_prompts_stand_still_and_all_else_goes_on(
    model: WatchedModel,
    generator: Generator,
) -> None:
    batch = generator(model)
    running = insert(batch, PROMPT, max_tokens=9)
    run(batch, 3)
    ready, long = insert(batch, PROMPT[:1]), insert(batch, PROMPT)
    batch.prefill_step_size = 0
    model.shapes.clear()
    heard = [row.uid for row in run(batch, 4)]
    assert {running, ready} == set(heard)
    assert all(tokens == 1 for _, tokens in model.shapes)
    batch.prefill_step_size = 512
    assert long in [row.uid for row in run(batch)]


def test_quantised_keys_and_values_can_not_be_batched(
    model: WatchedModel, generator: Generator
) -> None:
    """When this fails, mlx-lm's own batches can hold them: see docs/decisions/0051."""
    assert not hasattr(QuantizedKVCache, "merge")
    batch = generator(model)
    batch.insert([PROMPT], max_tokens=[3], caches=[[QuantizedKVCache() for _ in model.layers]])
    with pytest.raises(ValueError, match="does not yet support batching"):
        batch.next()


def test_the_chunk_size_can_change_between_steps(model: WatchedModel, generator: Generator) -> None:
    batch = generator(model)
    insert(batch, list(range(1, 102)))
    for size in (10, 40, 5, 100):
        batch.prefill_step_size = size
        batch.next()
    assert model.shapes[:4] == [(1, 10), (1, 40), (1, 5), (1, 45)]


def test_a_prompt_is_read_up_to_the_end_of_each_segment_and_no_further(
    model: WatchedModel, generator: Generator
) -> None:
    ends = list[int]()

    def note_read(rows: list[Any]) -> None:
        for row in rows:
            if row.end_of_segment:
                caches, tokens = batch.extract_cache([uid])[uid]
                assert len(tokens) == caches[0].offset == row.progress[0]
                ends.append(len(tokens))

    batch = generator(model, note_read)
    [uid] = batch.insert_segments([[PROMPT[:7], PROMPT[7:20]]], max_tokens=[3])
    for _ in range(4):
        batch.next()
    # The last token of a prompt is a segment of its own.
    assert ends == [7, 19]


def test_rows_that_hold_one_sampler_are_sampled_in_one_call(
    model: WatchedModel, generator: Generator
) -> None:
    rows_per_call: list[int] = []

    def sampler(logprobs: mx.array) -> mx.array:
        rows_per_call.append(logprobs.shape[0])
        return greedy(logprobs)

    batch = generator(model)
    for _ in range(3):
        insert(batch, PROMPT, max_tokens=4, sampler=sampler)
    run(batch)
    assert set(rows_per_call) == {3}


def test_each_row_is_sampled_by_its_own_sampler(model: WatchedModel, generator: Generator) -> None:
    def always(token_id: int) -> Callable[[mx.array], mx.array]:
        return lambda logprobs: mx.full((logprobs.shape[0],), token_id, mx.uint32)

    batch = generator(model)
    wanted = {insert(batch, PROMPT, 2, always(token_id)): token_id for token_id in (7, 8, 9)}
    assert {row.uid: row.token for row in run(batch)} == wanted


def test_a_row_s_processor_sees_its_logits_right_before_its_sampler(
    model: WatchedModel, generator: Generator
) -> None:
    seen: list[tuple[str, mx.array]] = []

    def processor(_context: mx.array, logits: mx.array) -> mx.array:
        seen.append(("logits", logits))
        return logits

    def sampler(logits: mx.array) -> mx.array:
        seen.append(("drawn from", logits))
        return greedy(logits)

    batch = generator(model)
    insert(batch, PROMPT, 6)
    batch.insert_segments(
        [[PROMPT[:20]]],
        max_tokens=[4],
        samplers=[sampler],
        logits_processors=[[processor]],
        stop_sequences=[StopSequences([])],
    )
    run(batch)
    # One more than the answer has tokens: a step is under way when the last is given out.
    assert [name for name, _ in seen] == ["logits", "drawn from"] * 5
    for (_, logits), (_, drawn_from) in zip(seen[::2], seen[1::2], strict=True):
        assert logits.shape == drawn_from.shape == (1, VOCABULARY)
        # The same but for a shift, which no draw sees.
        assert mx.allclose(mx.softmax(drawn_from), mx.softmax(logits)).item()


def test_a_response_has_the_distribution_that_its_token_was_drawn_from(
    model: WatchedModel,
    generator: Generator,
) -> None:
    batch = generator(model)
    insert(batch, PROMPT, 5)
    rows = run(batch)
    assert [mx.argmax(row.logprobs).item() for row in rows] == [row.token for row in rows]
    assert rows[0].logprobs.shape == (VOCABULARY,)


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 5), (PROMPT, 0)])
def test_what_cannot_be_run_is_refused_with_a_value_error(
    model: WatchedModel, prompt: list[int], max_tokens: int, generator: Generator
) -> None:
    with pytest.raises(ValueError, match=r"prompt|max_tokens"):
        insert(generator(model), prompt, max_tokens)


def test_the_installed_interface_is_accepted() -> None:
    check_batch_api(BatchGenerator)


class WithoutSamplers:
    def insert_segments(self, segments: Any, max_tokens: Any, stop_sequences: Any) -> None: ...
    def next(self) -> None: ...
    def remove(self, uids: Any) -> None: ...


class WithoutRemove:
    def insert_segments(self, segments: Any, max_tokens: Any, samplers: Any) -> None: ...
    def next(self) -> None: ...


@pytest.mark.parametrize(
    ("drifted", "missing"),
    [(WithoutSamplers, "samplers"), (WithoutRemove, "remove"), (int, "next")],
)
def test_a_drifted_interface_is_refused_and_named(drifted: type, missing: str) -> None:
    with pytest.raises(BatchApiDrifted, match=rf"missing: .*{missing}.*requirements\.lock"):
        check_batch_api(drifted)


def test_a_generator_of_other_parts_is_refused(model: WatchedModel) -> None:
    batch: Any = BatchGenerator(cast("Any", model), sampler=greedy)
    check_parts(batch)
    del batch._currently_processing
    with pytest.raises(BatchApiDrifted, match="missing: _currently_processing"):
        check_parts(batch)


def test_all_but_the_last_token_of_a_prompt_can_be_taken_out_before_its_first_token(
    model: WatchedModel,
    generator: Generator,
) -> None:
    noted = list[Any]()

    def note_read(rows: list[Any]) -> None:
        for row in rows:
            caches, token_ids = batch.extract_cache([uid])[uid]
            noted.append((row.progress, caches, list(token_ids)))

    batch = generator(model, note_read)
    uid = insert(batch, PROMPT)
    batch.next()
    [(progress, caches, token_ids)] = noted
    assert progress == (len(PROMPT) - 1, len(PROMPT))
    assert token_ids == PROMPT[:-1]
    assert [cache.size() for cache in caches] == [len(PROMPT) - 1] * len(caches)
