"""The logits behind a beginning that was stored are, to the last bit, those of a prompt read from its first token.

A matrix product of another shape adds up in another order. So each prompt is read in pieces that are cut where the hit
ends, and what remains to differ is what the cache has done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.messages import Room
from mlx_manager.mlx_server.engine.prefix_disk import DiskLimits, PrefixDisk
from mlx_manager.mlx_server.engine.row_state import kinds_of
from tests.engine.driving import Driver
from tests.engine.models import VOCABULARY, WatchedModel

LOTS = 1 << 30
LENGTH = 400
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(LENGTH)]
ANSWER_TOKENS = 4


class Listened(WatchedModel):
    """A model that keeps all logits that it has given out."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.logits: list[mx.array] = []

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        logits = super().__call__(inputs, cache)
        self.logits.append(logits)
        return logits


@pytest.fixture
def listened(any_model: WatchedModel) -> Listened:
    return Listened(any_model)


def turned(shared: int, rest: int = 40) -> list[int]:
    """A prompt that begins like `PROMPT` and goes on in its own way."""
    return PROMPT[:shared] + [(PROMPT[shared] + 1 + 13 * at) % VOCABULARY for at in range(rest)]


def engine(model: Listened, hit: int, disk: PrefixDisk | None = None) -> Driver:
    """An engine that reads prompts in pieces of `hit` tokens."""
    driver = Driver(model, chunk=hit, idle_chunk=hit, prefix_cache_bytes=LOTS, prefix_disk=disk)
    # Before it has read anything its pieces are shorter.
    driver.submit([9] * 40, 1)
    driver.finish()
    return driver


def heard(driver: Driver, model: Listened, prompt: list[int], hit: int) -> list[mx.array]:
    """Have a prompt answered, with a message that ends where the hit does, and return the logits of all passes."""
    model.logits.clear()
    driver.submit(prompt, ANSWER_TOKENS, borders=[hit])
    driver.finish()
    return list(model.logits)


def check(model: Listened, warm: Driver, prompt: list[int], hit: int) -> None:
    """See that an engine answers from so many stored tokens, with the logits of one that has stored nothing."""
    found = heard(warm, model, prompt, hit)
    [*_, last] = warm.ended.values()
    assert last.stamps.cached_tokens == hit
    whole = heard(engine(model, hit), model, prompt, hit)
    assert len(found) < len(whole), "what was stored isn't computed"
    for one, other in zip(found, whole[-len(found) :], strict=True):
        assert one.dtype == mx.float32
        assert mx.abs(one - other).max().item() == 0.0


@pytest.mark.parametrize("hit", [255, 256, 257, 333])
def test_a_prompt_that_leaves_a_stored_one_within_a_block_or_at_its_end(
    listened: Listened, hit: int
) -> None:
    driver = engine(listened, hit)
    heard(driver, listened, PROMPT, hit)
    check(listened, driver, turned(hit), hit)


def test_an_exact_repeat(listened: Listened) -> None:
    driver = engine(listened, LENGTH - 1)
    heard(driver, listened, PROMPT, LENGTH - 1)
    check(listened, driver, PROMPT, LENGTH - 1)


def test_a_prompt_inside_a_stored_one(listened: Listened) -> None:
    hit = 280 if kinds_of(listened).needs_states else 339
    driver = engine(listened, hit)
    heard(driver, listened, PROMPT, hit)
    check(listened, driver, PROMPT[:340], hit)


def test_a_prompt_that_goes_on_from_a_stored_one(listened: Listened) -> None:
    driver = engine(listened, 299)
    heard(driver, listened, PROMPT[:300], 299)
    check(listened, driver, turned(299), 299)


def test_what_a_cancelled_request_has_read(listened: Listened) -> None:
    driver = engine(listened, 150)
    left = driver.submit(PROMPT, borders=[150])
    driver.step()
    driver.cancel(left)
    driver.finish()
    check(listened, driver, PROMPT, 150)


def test_what_is_evicted_while_a_row_goes_on_from_it(listened: Listened) -> None:
    expected = heard(engine(listened, 300), listened, turned(300), 300)
    driver = engine(listened, 300)
    heard(driver, listened, PROMPT, 300)
    listened.logits.clear()
    row = driver.submit(turned(300), ANSWER_TOKENS, borders=[300])
    driver.step()
    assert driver.engine.vitals().prefix_cache_bytes > 0
    driver.engine.handle(Room(0, LOTS, LOTS))
    assert driver.engine.vitals().prefix_cache_bytes == 0
    driver.finish()
    assert driver.ended[row].stamps.cached_tokens == 300
    assert len(listened.logits) < len(expected)
    for one, other in zip(listened.logits, expected[-len(listened.logits) :], strict=True):
        assert mx.abs(one - other).max().item() == 0.0


def test_what_comes_back_from_files(listened: Listened, tmp_path: Path) -> None:
    hit, asked = 300, turned(300)
    disk = PrefixDisk(tmp_path, "a-model", "root", DiskLimits(LOTS, LOTS))
    heard(engine(listened, hit, disk), listened, PROMPT, hit)
    disk.close(10)
    disk = PrefixDisk(tmp_path, "a-model", "root", DiskLimits(LOTS, LOTS))
    check(listened, engine(listened, hit, disk), asked, hit)
    disk.close(10)
    assert disk.counts.read > 0
