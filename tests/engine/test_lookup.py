"""Tokens that are guessed before they are computed: the answers stay what they are without."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llguidance import LLMatcher
from mlx_lm import load

from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.engine.lookup import LONGEST_REST, Lookup
from mlx_manager.mlx_server.engine.messages import (
    Constraint,
    SamplingParameters,
    Stamps,
    ThoughtBudget,
)
from mlx_manager.mlx_server.engine.slotted_cache import Layout
from tests.engine.driving import GREEDY, Driver, answer_alone
from tests.engine.models import MODEL_KINDS, VOCABULARY, WITH_STATES, WatchedModel

MOST = 8
TOKENS = 160
STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"
# Tokens of the starter's answers that are compared; more by hand: docs/benchmarks.md.
COMPARED_TOKENS = int(os.environ.get("LOOKUP_TOKENS", "1000"))
SAMPLINGS = {
    "greedy": GREEDY,
    "cool": SamplingParameters(temperature=0.05, seed=4),
    "filtered": SamplingParameters(temperature=0.2, top_p=0.9, top_k=40, min_p=0.01, seed=5),
    "xtc": SamplingParameters(
        temperature=0.05, xtc_probability=0.1, xtc_threshold=0.1, min_p=0.02, seed=6
    ),
    "wild": SamplingParameters(temperature=1.0, seed=7),
}


def prompt_of(length: int, seed: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(VOCABULARY) for _ in range(length)]


def prompts(count: int) -> list[list[int]]:
    """Half of them say everything three times."""
    return [prompt_of(5 + seed, seed) * (1 + seed % 2 * 2) for seed in range(count)]


def answered(model: Any, prompt: list[int], **how: Any) -> tuple[list[int], Stamps]:
    """Answer alone, with guesses; also return the engine's record of it."""
    driver = Driver(model, lookup_tokens=MOST)
    sequence_id = driver.submit(prompt, **how)
    driver.finish()
    return driver.tokens[sequence_id], driver.ended[sequence_id].stamps


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_an_answer_is_the_same_with_guesses_and_without(
    model: WatchedModel, sampling: SamplingParameters
) -> None:
    proposed = accepted = 0
    for prompt in prompts(4):
        asked: dict[str, Any] = {"max_tokens": TOKENS, "sampling": sampling}
        tokens, stamps = answered(model, prompt, **asked)
        assert tokens == answer_alone(model, prompt, **asked)
        assert stamps.output_tokens == TOKENS
        proposed += stamps.proposed_tokens
        accepted += stamps.accepted_tokens
    assert proposed > accepted
    assert accepted > 0 or sampling.temperature == 1


def test_an_answer_whose_keys_and_values_are_quantised_is_the_same_with_guesses(
    models: dict[str, Any],
) -> None:
    model, accepted = WatchedModel(models["quantised"]), 0
    for prompt in prompts(4):
        tokens, stamps = answered(model, prompt, max_tokens=TOKENS)
        assert tokens == answer_alone(model, prompt, max_tokens=TOKENS)
        accepted += stamps.accepted_tokens
    assert accepted > 0


def test_guesses_save_steps(model: WatchedModel) -> None:
    model.shapes.clear()
    _, stamps = answered(model, prompt_of(9, 1) * 3, max_tokens=TOKENS)
    decoding = [tokens for rows, tokens in model.shapes if rows == 1][1:]
    assert stamps.accepted_tokens > TOKENS / 3
    # One step is under way when the answer ends.
    assert len(decoding) <= TOKENS - stamps.accepted_tokens + 1
    assert max(decoding) == MOST + 1


@pytest.mark.parametrize("seed", range(3))
def test_who_joins_and_leaves_in_the_middle_changes_nothing(model: WatchedModel, seed: int) -> None:
    chosen = random.Random(seed)
    driver = Driver(model, lookup_tokens=MOST, prefix_cache_bytes=2**24)
    asked: dict[int, tuple[list[int], dict[str, Any]]] = {}
    cancelled = set[int]()
    for turn in range(14):
        for _ in range(chosen.choice((1, 1, 2))):
            prompt = prompt_of(chosen.choice((1, 3, 30, 270)), 100 * seed + turn) * 2
            sampling = chosen.choice([GREEDY, SAMPLINGS["cool"]])
            how: dict[str, Any] = {"max_tokens": chosen.randint(1, 90), "sampling": sampling}
            asked[driver.submit(prompt, **how)] = prompt, how
        for _ in range(chosen.choice((3, 10, 60))):
            driver.step()
        running = [one for one in asked if one not in driver.ended]
        if running and chosen.random() < 0.3:
            cancelled.add(one := chosen.choice(running))
            driver.cancel(one)
    driver.finish()
    assert sum(driver.ended[one].stamps.accepted_tokens for one in asked) > 0
    for one, (prompt, how) in asked.items():
        expected = answer_alone(model, prompt, **how)
        assert driver.tokens[one] == expected[: len(driver.tokens[one])]
        assert one in cancelled or len(driver.tokens[one]) == how["max_tokens"]


@pytest.mark.parametrize("tokens", range(1, 40, 7))
def test_an_answer_ends_at_its_limit_and_at_its_end_token_within_what_was_guessed(
    model: WatchedModel, tokens: int
) -> None:
    prompt = prompt_of(9, 1) * 3
    whole = answer_alone(model, prompt, max_tokens=TOKENS)
    limited, _ = answered(model, prompt, max_tokens=tokens)
    assert limited == whole[:tokens]
    end = whole[100 + tokens]
    ended, stamps = answered(model, prompt, max_tokens=TOKENS, end_token_ids=[end])
    assert ended == whole[: whole.index(end) + 1]
    # What was right behind the end was told to nobody. The first token can't be proposed.
    assert stamps.accepted_tokens < len(ended)


def test_what_an_answer_leaves_in_the_prefix_cache_has_no_wrong_guess(model: WatchedModel) -> None:
    for tokens in range(30, 42):
        driver = Driver(model, lookup_tokens=MOST, prefix_cache_bytes=2**24)
        prompt = prompt_of(7, tokens) * 3
        first = driver.submit(prompt, tokens)
        driver.finish()
        going_on = [*prompt, *driver.tokens[first], 5, 6]
        second = driver.submit(going_on, 12)
        driver.finish()
        stamps = driver.ended[second].stamps
        assert stamps.cached_tokens >= len(prompt) + tokens - 1
        assert driver.tokens[second] == answer_alone(model, going_on, max_tokens=12)


def test_a_cancelled_answer_leaves_what_it_has_read(model: WatchedModel) -> None:
    driver = Driver(model, lookup_tokens=MOST, prefix_cache_bytes=2**24)
    prompt = prompt_of(9, 1) * 3
    first = driver.submit(prompt, TOKENS)
    driver.step_until(first, 80)
    driver.cancel(first)
    made = driver.tokens[first][:60]
    second = driver.submit([*prompt, *made], 40)
    driver.finish()
    assert driver.ended[second].stamps.cached_tokens >= len(prompt) + 59
    assert driver.tokens[second] == answer_alone(model, [*prompt, *made], max_tokens=40)


def test_log_probabilities_are_those_without_guesses(model: WatchedModel) -> None:
    prompt = prompt_of(9, 1) * 3
    told = list[list[float]]()
    for lookup_tokens in (0, MOST):
        driver = Driver(model, lookup_tokens=lookup_tokens)
        one = driver.submit(prompt, 100, top_logprobs=2)
        driver.finish()
        assert len(driver.logprobs[one]) == 100
        told.append([entry.logprob for entry in driver.logprobs[one]])
    assert told[0] == pytest.approx(told[1], abs=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParameters(repetition_penalty=1.1),
        SamplingParameters(frequency_penalty=0.1),
        SamplingParameters(logit_bias=((7, 1.0),)),
    ],
)
def test_an_answer_that_is_steered_guesses_nothing(
    model: WatchedModel, sampling: SamplingParameters
) -> None:
    _, stamps = answered(model, prompt_of(9, 1) * 3, max_tokens=60, sampling=sampling)
    assert stamps.proposed_tokens == 0


def test_answers_of_latent_attention_are_the_same_with_guesses_and_without(
    models: dict[str, Any],
) -> None:
    """It multiplies its matrices in another order for one token than for several."""
    proposed = accepted = 0
    for prompt in prompts(6):
        tokens, stamps = answered(models["latent"], prompt, max_tokens=TOKENS)
        assert tokens == answer_alone(models["latent"], prompt, max_tokens=TOKENS)
        proposed += stamps.proposed_tokens
        accepted += stamps.accepted_tokens
    assert proposed > accepted > 0


@pytest.mark.parametrize("kind", WITH_STATES)
def test_models_with_other_caches_guess_nothing(kind: str) -> None:
    _, stamps = answered(MODEL_KINDS[kind](), [5] * 30, max_tokens=60)
    assert stamps.output_tokens == 60
    assert stamps.proposed_tokens == 0


@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    """The shipped model in float32, and its tokenizer."""
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(STARTER))[:2]
    model.set_dtype(mx.float32)
    return model, tokenizer


@pytest.mark.parametrize(
    ("held", "proposes"),
    [
        ({}, True),
        ({"constraint": Constraint(LLMatcher.grammar_from_lark('start: ("ab"){40}'))}, False),
        ({"thought_budget": ThoughtBudget(5, [3], 4, is_open=True)}, False),
    ],
    ids=["free", "grammar", "limited thoughts"],
)
def test_an_answer_that_is_held_guesses_nothing(
    starter: tuple[Any, Any], held: dict[str, Any], proposes: bool
) -> None:
    """The free one says the same over and over, so there would be something to guess."""
    model, tokenizer = starter
    driver = Driver(model, lookup_tokens=MOST, vocabulary=Vocabulary(STARTER))
    prompt = tokenizer.encode("ab" * 20)
    one = driver.submit(prompt, 40, **held)
    driver.finish()
    stamps = driver.ended[one].stamps
    assert stamps.output_tokens == 40
    assert (stamps.proposed_tokens > 0) == proposes


@pytest.mark.parametrize("name", ["greedy", "cool", "wild"])
def test_answers_of_the_starter_are_the_same_with_guesses_and_without(
    starter: tuple[Any, Any], name: str
) -> None:
    model, tokenizer = starter
    drivers = [Driver(model, lookup_tokens=most) for most in (0, MOST)]
    compared = accepted = number = 0
    while compared < COMPARED_TOKENS:
        number += 1
        prompt = tokenizer.encode(f"Repeat {number} times: one, two and {number}, one, two and")
        answers = list[list[int]]()
        for driver in drivers:
            one = driver.submit(prompt, 250, sampling=SAMPLINGS[name])
            driver.finish()
            answers.append(driver.tokens.pop(one))
        assert answers[0] == answers[1], (number, compared)
        compared += len(answers[0])
        accepted += drivers[1].ended[one].stamps.accepted_tokens
    assert accepted > 0


@pytest.mark.parametrize("name", ["greedy", "cool", "xtc"])
@pytest.mark.parametrize("cut", [1, 40, 41, 42, 43, 150])
def test_an_answer_whose_engine_has_ended_goes_on_with_guesses(
    model: WatchedModel, name: str, cut: int
) -> None:
    prompt, how = prompt_of(9, 1) * 3, {"sampling": SAMPLINGS[name]}
    whole, _ = answered(model, prompt, max_tokens=TOKENS, **how)
    rest, stamps = answered(model, prompt, max_tokens=TOKENS, made=whole[:cut], **how)
    assert rest == whole[cut:]
    assert stamps.accepted_tokens > 0 or cut == 150


@pytest.mark.parametrize("tokens", [0, 191, 192, 193, 255, 256])
@pytest.mark.parametrize("width", [1, MOST + 1, 65])
def test_new_buffers_have_room_for_the_step_that_needs_them(tokens: int, width: int) -> None:
    layout = Layout()
    layout.width = width
    layout.move([tokens])
    layout.take(tokens)
    assert layout.has_room(columns=width)


def test_the_tokens_behind_the_last_place_are_guessed() -> None:
    lookup = Lookup(4)
    assert lookup.propose([1, 2, 3, 4, 5, 6, 7, 1, 2, 3]) == [4, 5, 6, 7]
    assert lookup.propose([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 9) == []
    assert lookup.propose([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 9, 1, 2, 3]) == [9, 1, 2, 3]


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert Lookup(5).propose([7, 8, 1, 7, 8, 1]) == [7, 8, 1, 7, 8]
    assert Lookup(3).propose([5, 5, 5, 5]) == [5, 5, 5]


def test_wrong_guesses_make_fewer_and_rarer_ones() -> None:
    lookup, tokens = Lookup(8), [1, 2, 3, 4] * 4
    lookup.learn(8, 3, len(tokens))
    assert len(lookup.propose(tokens)) == 3
    rests = list[int]()
    for _ in range(9):
        lookup.learn(1, 0, len(tokens))
        rests.append(0)
        while not lookup.propose(tokens):
            tokens.append(tokens[-4])
            rests[-1] += 1
    assert rests == [1, 2, 4, 8, 16, 32, LONGEST_REST, LONGEST_REST, LONGEST_REST]
    for right in (1, 2, 4, 8):
        assert len(lookup.propose(tokens)) == right
        lookup.learn(right, right, len(tokens))
    assert len(lookup.propose(tokens)) == 8
