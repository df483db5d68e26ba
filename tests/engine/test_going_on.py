"""An answer that another engine has begun goes on as if it had never stopped, wherever it was cut."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llguidance import LLMatcher
from mlx_lm import load

from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.engine.messages import Constraint, SamplingParameters
from tests.engine.driving import GREEDY, Driver
from tests.engine.models import VOCABULARY, WatchedModel

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"
LONG_PROMPT = [(31 * at * at + 5) % VOCABULARY for at in range(100)]
PROMPT = LONG_PROMPT[:20]
TOKENS = 24
CUTS = [1, 11, 12, 23]
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": SamplingParameters(temperature=1.0, seed=7),
    "filtered": SamplingParameters(temperature=1.3, top_p=0.9, top_k=40, min_p=0.01, seed=8),
    "xtc": SamplingParameters(temperature=1.0, seed=9, xtc_probability=0.5, xtc_threshold=0.05),
    "penalised": SamplingParameters(
        repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.7
    ),
    "all": SamplingParameters(
        temperature=0.8,
        seed=10,
        repetition_penalty=1.2,
        frequency_penalty=0.4,
        logit_bias=((7, 1.5), (9, -4.0)),
        min_tokens=12,
    ),
}


def whole_and_rest(model: Any, cut: int, **how: Any) -> tuple[Driver, Driver]:
    """Answer once without a break, and once from the `cut`th token on in an engine that has seen nothing of it."""
    whole, rest = Driver(model), Driver(model)
    whole.submit(PROMPT, TOKENS, **how)
    whole.finish()
    rest.submit(PROMPT, TOKENS, made=whole.tokens[1][:cut], **how)
    rest.finish()
    return whole, rest


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("cut", CUTS)
def test_the_same_tokens_follow(model: Any, name: str, cut: int) -> None:
    whole, rest = whole_and_rest(model, cut, sampling=SAMPLINGS[name])
    assert len(whole.tokens[1]) == TOKENS
    assert rest.tokens[1] == whole.tokens[1][cut:]
    assert rest.ended[1].reason == "length"


@pytest.mark.parametrize("name", ["greedy", "seeded"])
@pytest.mark.parametrize("length", [20, 40, 100])
def test_whatever_layers_keep_the_same_tokens_follow_to_all_that_were_cut(
    any_model: WatchedModel, name: str, length: int
) -> None:
    """What was made is read again in pieces, beside rows that were cut elsewhere; a window of 48 tokens is full early,
    late or while the answer is made.
    """
    prompt, sampling = LONG_PROMPT[:length], SAMPLINGS[name]
    whole = Driver(any_model)
    whole.submit(prompt, TOKENS, sampling=sampling)
    whole.finish()
    made = whole.tokens[1]
    rest = Driver(any_model, chunk=7, idle_chunk=7)
    cuts = {rest.submit(prompt, TOKENS, made=made[:cut], sampling=sampling): cut for cut in CUTS}
    rest.finish()
    assert {cut: rest.tokens[one] for one, cut in cuts.items()} == {cut: made[cut:] for cut in CUTS}
    assert {rest.ended[one].reason for one in cuts} == {"length"}


def test_tests_of_seeds_would_notice_a_key_that_begins_anew(model: Any) -> None:
    seeded = Driver(model)
    seeded.submit(PROMPT, 2, sampling=SAMPLINGS["seeded"])
    seeded.finish()
    begun_anew = Driver(model)
    begun_anew.submit([*PROMPT, seeded.tokens[1][0]], 1, sampling=SAMPLINGS["seeded"])
    begun_anew.finish()
    assert begun_anew.tokens[1][0] != seeded.tokens[1][1]


def test_log_probabilities_go_on_with_their_tokens(model: Any) -> None:
    whole, rest = whole_and_rest(model, 9, top_logprobs=3, sampling=SAMPLINGS["penalised"])
    assert len(rest.logprobs[1]) == TOKENS - 9
    for now, before in zip(rest.logprobs[1], whole.logprobs[1][9:], strict=True):
        assert now.top_token_ids == before.top_token_ids
        assert now.logprob == pytest.approx(before.logprob, abs=1e-4)


def test_an_end_that_was_too_early_at_first_ends_it_later(model: Any) -> None:
    free = Driver(model)
    free.submit(PROMPT, TOKENS)
    free.finish()
    ends, least = [free.tokens[1][2]], SamplingParameters(min_tokens=6)
    whole, rest = whole_and_rest(model, 4, sampling=least, end_token_ids=ends)
    assert len(whole.tokens[1]) > 6
    assert rest.tokens[1] == whole.tokens[1][4:]


@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    """The shipped model in float32, and its tokenizer."""
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(STARTER))[:2]
    model.set_dtype(mx.float32)
    return model, tokenizer


def constraints(tokenizer: Any) -> dict[str, Constraint]:
    triggers = tuple(tokenizer.encode("<think>") + tokenizer.encode("</think>"))
    grammar = LLMatcher.grammar_from_lark('start: "a" "b"')
    return {
        "from the start": Constraint(LLMatcher.grammar_from_regex("(ab){3}|c[0-9]{4}")),
        "behind each trigger": Constraint(grammar, triggers, repeats=True),
    }


@pytest.mark.parametrize("kind", ["from the start", "behind each trigger"])
def test_a_grammar_goes_on_where_it_was(starter: tuple[Any, Any], kind: str) -> None:
    """The model, hot, would rather say something else at each place."""
    model, tokenizer = starter
    constraint = constraints(tokenizer)[kind]
    biases = tuple((token_id, 14.0) for token_id in constraint.trigger_token_ids)
    how: dict[str, Any] = {
        "end_token_ids": [tokenizer.eos_token_id],
        "constraint": constraint,
        "sampling": SamplingParameters(temperature=1.5, seed=3, logit_bias=biases),
    }
    prompt, vocabulary = tokenizer.encode("Hello"), Vocabulary(STARTER)
    whole = Driver(model, vocabulary=vocabulary)
    whole.submit(prompt, 16, **how)
    whole.finish()
    made = whole.tokens[1]
    if kind == "behind each trigger":
        assert tokenizer.decode(made).count("ab") > 2
    else:
        assert re.fullmatch("(ab){3}|c[0-9]{4}", tokenizer.decode(made[:-1]))
    for cut in range(1, len(made)):
        rest = Driver(model, vocabulary=vocabulary)
        rest.submit(prompt, 16, made=made[:cut], **how)
        rest.finish()
        assert rest.tokens[1] == made[cut:], cut
        assert rest.ended[1].reason == whole.ended[1].reason
