"""Log-probabilities of a prompt are those of a plain forward pass, whatever else happens to it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache

from mlx_manager.mlx_server.engine.messages import Sibling, Submit
from mlx_manager.mlx_server.engine.prompt_score import PIECE_TOKENS
from tests.engine.driving import GREEDY, Driver, answer_alone
from tests.engine.models import VOCABULARY, WatchedModel

LOTS = 1 << 30
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(2 * PIECE_TOKENS + 44)]


class SlidingModel(WatchedModel):
    """The same with layers that only see the latest tokens."""

    def make_cache(self) -> list[Any]:
        return [RotatingKVCache(max_size=32, keep=0) for _ in self.layers]


def plainly(model: Any, prompt: list[int]) -> mx.array:
    """The log-probabilities at each position, `[tokens, vocabulary]`, by one pass over all of the prompt."""
    logits = model(mx.array([prompt]))[0].astype(mx.float32)
    logprobs: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return logprobs


def check(driver: Driver, sequence_id: int, prompt: list[int], expected: mx.array) -> None:
    found = driver.prompt_logprobs[sequence_id]
    assert len(found) == len(prompt) - 1
    for at, one in enumerate(found):
        assert one.logprob == pytest.approx(expected[at, prompt[at + 1]].item(), abs=2e-4)
        best = mx.sort(expected[at])[::-1][:3].tolist()
        assert one.top_logprobs == pytest.approx(best, abs=2e-4)
        assert one.top_token_ids[0] == mx.argmax(expected[at]).item()


@pytest.mark.parametrize("max_tokens", [0, 5])
@pytest.mark.parametrize("length", [1, 2, PIECE_TOKENS, PIECE_TOKENS + 1, len(PROMPT)])
def test_they_are_those_of_one_forward_pass(
    lively_model: Any, max_tokens: int, length: int
) -> None:
    prompt = PROMPT[:length]
    driver = Driver(lively_model, chunk=50, idle_chunk=100)
    scored = driver.submit(prompt, max_tokens, top_logprobs=3, scores_prompt=True)
    driver.finish()
    check(driver, scored, prompt, plainly(lively_model, prompt))
    assert driver.ended[scored].reason == "length"
    expected = answer_alone(lively_model, prompt, max_tokens=5)[:max_tokens]
    assert driver.tokens[scored] == expected
    assert len(driver.logprobs[scored]) == max_tokens


def test_the_prefix_cache_hides_none(model: WatchedModel, lively_model: Any) -> None:
    driver = Driver(model, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT)
    driver.finish()
    scored = driver.submit(PROMPT, 5, top_logprobs=3, scores_prompt=True)
    driver.finish()
    check(driver, scored, PROMPT, plainly(lively_model, PROMPT))
    stamps = driver.ended[scored].stamps
    assert (stamps.cached_tokens, stamps.cache_miss_reason) == (0, "prompt_logprobs")
    again = driver.submit(PROMPT + driver.tokens[scored])
    driver.finish()
    assert driver.ended[again].stamps.cached_tokens >= len(PROMPT), "what was scored is stored"


def test_in_pieces_beside_others_that_decode(lively_model: Any) -> None:
    driver = Driver(lively_model, chunk=32, idle_chunk=32)
    other = driver.submit(PROMPT[:40], 60)
    driver.step_until(other, 5)
    first, second = (
        driver.submit(prompt, max_tokens, top_logprobs=3, scores_prompt=True)
        for prompt, max_tokens in ((PROMPT, 0), (PROMPT[7:90], 4))
    )
    driver.step()
    assert len(driver.prompt_logprobs[first]) == 32
    assert len(driver.tokens[other]) > 5
    driver.finish()
    check(driver, first, PROMPT, plainly(lively_model, PROMPT))
    check(driver, second, PROMPT[7:90], plainly(lively_model, PROMPT[7:90]))
    assert driver.ended[first].stamps.prefill_chunks == -(-(len(PROMPT) - 1) // 32)
    assert driver.tokens[other] == answer_alone(lively_model, PROMPT[:40], max_tokens=60)


def test_a_model_with_a_sliding_window_scores_as_it_answers(lively_model: Any) -> None:
    model = SlidingModel(lively_model)
    driver = Driver(model, chunk=50, idle_chunk=100)
    scored = driver.submit(PROMPT, 6, top_logprobs=1, scores_prompt=True)
    driver.finish()
    assert len(driver.prompt_logprobs[scored]) == len(PROMPT) - 1
    assert driver.tokens[scored] == answer_alone(model, PROMPT, max_tokens=6)


def test_several_answers_go_on_from_a_prompt_that_is_scored_once(model: WatchedModel) -> None:
    driver = Driver(model)
    siblings = [Sibling(102), Sibling(103)]
    driver.engine.handle(
        Submit(101, PROMPT, 6, [], GREEDY, 0, siblings=siblings, scores_prompt=True)
    )
    driver.finish()
    assert [len(driver.prompt_logprobs[one]) for one in (101, 102, 103)] == [len(PROMPT) - 1, 0, 0]
    expected = answer_alone(model, PROMPT, max_tokens=6)
    assert [driver.tokens[one] for one in (101, 102, 103)] == [expected] * 3


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_cancelled_meanwhile_it_is_gone(model: WatchedModel, steps: int) -> None:
    driver = Driver(model, chunk=50, idle_chunk=100)
    scored = driver.submit(PROMPT, 5, top_logprobs=0, scores_prompt=True)
    for _ in range(steps):
        driver.step()
    driver.cancel(scored)
    driver.finish()
    assert driver.ended[scored].reason == "cancelled"
    assert len(driver.prompt_logprobs[scored]) == 100 * steps


def test_no_tokens_at_all_are_an_answer_too(model: WatchedModel) -> None:
    driver = Driver(model)
    nothing = driver.submit(PROMPT, 0)
    driver.finish()
    assert (driver.tokens[nothing], driver.ended[nothing].reason) == ([], "length")
    assert model.shapes == []
