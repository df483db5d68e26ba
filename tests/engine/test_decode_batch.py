"""Rows in slots: whoever comes, goes or grows beside a row, it decodes what it decodes alone."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import StopSequences
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.decode_batch import IDLE_STEPS, SlottedGenerator
from mlx_manager.mlx_server.engine.row_state import plain_layers
from mlx_manager.mlx_server.engine.sampling import greedy
from tests.engine.models import VOCABULARY, WatchedModel

ENDLESS = 10_000


class Rows:
    """A generator, and what each of its rows has said."""

    def __init__(self, model: Any, *, keeps_rows: bool = True) -> None:
        layers = plain_layers(model)
        assert layers is not None
        self.batch: Any = SlottedGenerator(
            model, layers, keeps_rows=keeps_rows, sampler=greedy, completion_batch_size=32
        )
        self._model = model
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, Any] = {}

    def add(self, prompt: list[int], max_tokens: int) -> int:
        [uid] = self.batch.insert(
            [prompt],
            max_tokens=[max_tokens],
            caches=[make_prompt_cache(self._model)],
            stop_sequences=[StopSequences([])],
        )
        self.tokens[uid] = []
        return int(uid)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for row in self.batch.next()[1]:
                self.tokens[row.uid].append(row.token)
                if row.finish_reason is not None:
                    self.ended[row.uid] = row

    def remove(self, uid: int) -> None:
        self.batch.remove([uid])

    @property
    def buffers(self) -> mx.array | None:
        """The keys of the first layer."""
        keys: mx.array | None = next(
            iter(self.batch._generation_batch.prompt_cache[0]._buffers), None
        )
        return keys


def prompt_of(length: int, seed: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(VOCABULARY) for _ in range(length)]


def alone(model: Any, prompt: list[int], tokens: int) -> list[int]:
    rows = Rows(model)
    uid = rows.add(prompt, tokens)
    rows.step(tokens + 20)
    return rows.tokens[uid]


def test_no_row_s_log_probabilities_are_computed_before_somebody_asks(model: WatchedModel) -> None:
    """What comes with a token is what the model has given out, of which nobody has taken the sum."""
    rows = Rows(model)
    for seed in range(3):
        rows.add(prompt_of(20, seed), 3)
    rows.step(8)
    assert len(rows.ended) == 3
    for row in rows.ended.values():
        assert abs(mx.logsumexp(row.logprobs).item()) > 0.1, "they add up to one"


@pytest.mark.parametrize(("kind", "seed"), [("plain", 0), ("plain", 1), ("quantised", 2)])
def test_every_row_says_what_it_says_alone(models: dict[str, Any], kind: str, seed: int) -> None:
    """Prompts of 1 to 400 tokens come, end and are removed at any time, up to a dozen at once."""
    model = WatchedModel(models[kind])
    chosen = random.Random(seed)
    rows = Rows(model)
    asked: dict[int, tuple[list[int], int]] = {}
    removed: set[int] = set()
    for turn in range(120):
        for _ in range(chosen.choice((0, 0, 0, 1, 1, 4))):
            if len(asked) - len(rows.ended) - len(removed) < 12:
                length = chosen.choice((1, 2, 20, 60, 255, 256, 400))
                prompt, tokens = prompt_of(length, 1000 * seed + turn), chosen.randint(1, 40)
                asked[rows.add(prompt, tokens)] = prompt, tokens
        rows.step()
        running = [uid for uid in asked if uid not in rows.ended and uid not in removed]
        if running and chosen.random() < 0.1:
            removed.add(gone := chosen.choice(running))
            rows.remove(gone)
    rows.step(80)
    assert len(rows.ended) + len(removed) == len(asked) > 30
    for uid, (prompt, tokens) in asked.items():
        expected = alone(model, prompt, tokens)
        assert rows.tokens[uid] == expected[: len(rows.tokens[uid])]
        assert uid in removed or len(rows.tokens[uid]) == tokens


def test_what_an_ended_row_leaves_can_be_gone_on_from(model: WatchedModel) -> None:
    rows = Rows(model)
    stays, uid = rows.add(prompt_of(30, 1), 60), rows.add(prompt_of(70, 2), 10)
    rows.step(30)
    ended = rows.ended[uid]
    assert ended.all_tokens == prompt_of(70, 2) + rows.tokens[uid]
    assert [cache.offset for cache in ended.prompt_cache] == [80] * len(ended.prompt_cache)
    [goes_on] = rows.batch.insert(
        [[7, 8, 9]],
        max_tokens=[12],
        caches=[ended.prompt_cache],
        all_tokens=[list(ended.all_tokens)],
        stop_sequences=[StopSequences([])],
    )
    rows.tokens[goes_on] = []
    rows.step(40)
    assert rows.tokens[goes_on] == alone(model, [*ended.all_tokens, 7, 8, 9], 12)
    assert rows.tokens[stays] == alone(model, prompt_of(30, 1), 60)


def test_who_joins_in_the_place_of_one_that_has_ended_moves_nobody(model: WatchedModel) -> None:
    rows = Rows(model)
    rows.add(prompt_of(60, 1), ENDLESS)
    short = rows.add(prompt_of(50, 2), 5)
    rows.add(prompt_of(40, 3), ENDLESS)
    rows.step(3)
    before = rows.buffers
    assert before is not None
    model.shapes.clear()
    while short not in rows.ended:
        rows.step()
    rows.add(prompt_of(55, 4), ENDLESS)
    rows.step(6)
    assert rows.buffers is not None
    assert rows.buffers.shape == before.shape
    # The slot in the middle is computed on; the prompt is one more shape, and its first step is everybody's.
    assert {shape for shape in model.shapes if shape[1] == 1} == {(3, 1)}


def test_slots_that_stay_free_are_given_up(model: WatchedModel) -> None:
    rows = Rows(model)
    for number in range(3):
        rows.add(prompt_of(20, number), 4)
    last = rows.add(prompt_of(20, 9), 60)
    rows.step(8)
    assert len(rows.ended) == 3
    rows.step(IDLE_STEPS + 2)
    model.shapes.clear()
    rows.step()
    assert model.shapes == [(1, 1)]
    rows.step(60)
    assert rows.tokens[last] == alone(model, prompt_of(20, 9), 60)


def test_a_row_that_ends_behind_all_others_costs_no_step_more(model: WatchedModel) -> None:
    rows = Rows(model)
    rows.add(prompt_of(20, 1), ENDLESS)
    behind = rows.add(prompt_of(20, 2), 4)
    while behind not in rows.ended:
        rows.step()
    model.shapes.clear()
    rows.step(2)
    assert model.shapes == [(1, 1)] * 2


def test_the_last_row_takes_the_buffers_with_it(model: WatchedModel) -> None:
    rows = Rows(model)
    uid = rows.add(prompt_of(20, 1), 4)
    rows.step(4)
    assert rows.batch.prompt_cache_nbytes > 0
    rows.step(4)
    assert uid in rows.ended
    assert rows.batch.prompt_cache_nbytes == 0


def test_what_ended_rows_leave_is_told_only_where_it_is_wanted(model: WatchedModel) -> None:
    rows = Rows(model, keeps_rows=False)
    uid = rows.add(prompt_of(20, 1), 4)
    rows.step(8)
    assert rows.ended[uid].prompt_cache is None


def test_buffers_have_room_for_tokens_to_come_and_no_row_more_than_there_are(
    model: WatchedModel,
) -> None:
    rows = Rows(model)
    rows.add(prompt_of(200, 1), ENDLESS)
    rows.step(5)
    assert rows.buffers is not None
    assert rows.buffers.shape[0] == 1
    assert rows.buffers.shape[2] == 512
    rows.step(400)
    assert rows.buffers.shape[2] == 768
