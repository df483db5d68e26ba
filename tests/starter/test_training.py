"""A training in small: the way of the real one, in a few steps."""

import itertools
import math
from itertools import islice
from pathlib import Path
from random import Random

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load, stream_generate

from tools.starter.batches import CALL_WEIGHT, batched
from tools.starter.build import build
from tools.starter.chats import Sample
from tools.starter.corpus import later_samples, samples
from tools.starter.exam import all_questions, examine, parse_call
from tools.starter.functions import call_text
from tools.starter.knowledge import topics, unknown
from tools.starter.shape import config, new_model
from tools.starter.strange_calls import strange_call_sample, strange_name
from tools.starter.train import Progress

VOCAB_SIZE = 512


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Progress]:
    folder = tmp_path_factory.mktemp("starter")
    return folder, build(folder, steps=12, vocab_size=VOCAB_SIZE, batch_tokens=512)


def test_the_loss_falls(trained: tuple[Path, Progress]) -> None:
    assert trained[1].loss < math.log(VOCAB_SIZE)


def test_the_saved_folder_loads_and_generates(trained: tuple[Path, Progress]) -> None:
    model, tokenizer = load(str(trained[0]))[:2]
    prompt = tokenizer.encode("Hello")
    assert list(stream_generate(model, tokenizer, prompt, max_tokens=3))


def test_an_unfinished_model_can_be_examined(trained: tuple[Path, Progress]) -> None:
    questions = [question for question in all_questions() if question.part == "calls"][:2]
    record = examine(trained[0], questions=questions)
    assert record["parts"]["calls"]["asked"] == 2


def test_a_fresh_model_copies_what_was_there_before() -> None:
    mx.set_default_device(mx.cpu)
    mx.random.seed(1)
    model = new_model(config(1000, 1, 0))
    once = mx.random.randint(2, 1000, (8, 20))
    rows = mx.concatenate([once, mx.random.randint(2, 1000, (8, 9)), once], axis=1)
    guesses = model(rows)[:, 29:-1].argmax(axis=-1)
    assert (guesses == once[:, 1:]).mean().item() > 0.9


def test_the_same_seed_gives_the_same_samples() -> None:
    first, second, other = (list(islice(samples(seed), 50)) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_going_on_with_a_trained_model_practises_calls_from_the_first_sample_on() -> None:
    kinds = [sample.kind for sample in islice(later_samples(3), 500)]
    assert kinds.count("call") > 50
    assert {"plain", "later_turn", "result", "no_call", "repeat"} <= set(kinds)


@pytest.mark.parametrize("thinking", [False, True])
def test_a_strange_call_has_its_value_from_the_question_and_its_names_from_the_tools(
    thinking: bool,
) -> None:
    random = Random(5)
    for _ in range(300):
        sample = strange_call_sample(random, thinking=thinking)
        call = parse_call(sample.reply)
        assert call is not None
        [(key, value)] = call["arguments"].items()
        assert value in sample.messages[-1]["content"]
        offered = {tool["function"]["name"]: tool["function"] for tool in sample.tools}
        assert list(offered[call["name"]]["parameters"]["properties"]) == [key]


def test_strange_names_hardly_ever_come_again() -> None:
    random = Random(6)
    assert len({strange_name(random) for _ in range(1_000)}) > 950


def test_each_token_of_a_call_weighs_more_than_the_rest_of_an_answer(
    trained: tuple[Path, Progress],
) -> None:
    tokenizer = load(str(trained[0]))[1]._tokenizer
    call = Sample("call", [{"role": "user", "content": "hi"}], call_text("name", {"key": "value"}))
    plain = Sample("call", [{"role": "user", "content": "hi"}], "It is late, good night. " * 3)
    lightest = [next(batched(itertools.repeat(s), tokenizer)).weights.min() for s in (call, plain)]
    assert lightest == [CALL_WEIGHT, 1.0]


def test_every_answer_in_a_batch_is_learned_and_no_question(
    trained: tuple[Path, Progress],
) -> None:
    tokenizer = load(str(trained[0]))[1]
    batch = next(batched(samples(3), tokenizer._tokenizer))
    learned = tokenizer.decode(batch.targets.tolist())
    answers = {topic.answer for topic in topics().values()} | {unknown().answer}
    assert any(f"{answer}<|im_end|>" in learned for answer in answers)
    assert "<|im_start|>" not in learned


def test_targets_are_the_tokens_that_follow(trained: tuple[Path, Progress]) -> None:
    tokenizer = load(str(trained[0]))[1]
    batch = next(batched(samples(3), tokenizer._tokenizer))
    width = batch.tokens.shape[1]
    for position, target in zip(batch.positions, batch.targets, strict=True):
        row, column = divmod(int(position), width)
        if column + 1 < width and batch.tokens[row, column + 1] != 0:
            assert batch.tokens[row, column + 1] == target


def test_halves_of_a_batch_hold_all_of_it(trained: tuple[Path, Progress]) -> None:
    tokenizer = load(str(trained[0]))[1]
    batch = next(batched(samples(4), tokenizer._tokenizer))
    halves = batch.halves()
    assert np.array_equal(np.concatenate([half.tokens for half in halves]), batch.tokens)
    assert np.array_equal(np.concatenate([half.targets for half in halves]), batch.targets)
