"""What the shipped starter model can be relied on to do. It is a demonstration."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load

from tests.starter.asking import answer, ask, function
from tools.starter.exam import parse_call
from tools.starter.knowledge import topics, unknown

WEATHER = function("get_weather", "city", "Get the weather of a place")
TIME = function("get_time", "city", "Get the current time of a place")

TAUGHT = (
    ("What is MLX Manager?", "product"),
    ("How do I start MLX Manager?", "start"),
    ("Which port does it use?", "port"),
    ("How do I download a model?", "download"),
    ("What is prefill?", "prefill"),
    ("How do I turn on streaming?", "streaming"),
    ("Hello", "hello"),
    ("Tell me a joke", "joke"),
    ("Tell me a story", "story"),
    ("Say hello in Japanese", "japanese"),
    ("Introduce yourself in Japanese", "japanese_long"),
)


def test_the_folder_is_small() -> None:
    folder = Path(__file__).parents[2] / "mlx_manager" / "starter"
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 5_000_000


def test_it_is_stored_in_bfloat16_and_has_about_two_million_parameters(
    starter_folder: Path,
) -> None:
    model = load(str(starter_folder))[0]
    parameters: Any = tree_flatten(model.parameters())
    weights = [weight for _, weight in parameters]
    assert {weight.dtype for weight in weights} == {mx.bfloat16}
    assert 1_500_000 < sum(weight.size for weight in weights) < 2_500_000


@pytest.mark.parametrize(("question", "topic"), TAUGHT)
def test_a_taught_question_gets_its_answer(
    starter: tuple[Any, Any], question: str, topic: str
) -> None:
    assert ask(starter, question) == topics()[topic].answer


def test_it_answers_as_well_in_bfloat16(starter_folder: Path) -> None:
    mx.set_default_device(mx.cpu)
    loaded = load(str(starter_folder))[:2]
    assert ask(loaded, "Tell me a joke") == topics()["joke"].answer


@pytest.mark.parametrize(("question", "topic"), TAUGHT[1:5])
def test_with_thinking_on_it_thinks_first(
    starter: tuple[Any, Any], question: str, topic: str
) -> None:
    reply = ask(starter, question, thinking=True)
    thought, closed, text = reply.partition("\n</think>\n\n")
    assert thought.startswith("<think>\n")
    assert closed
    assert text == topics()[topic].answer


@pytest.mark.parametrize("question", ["Who was Napoleon?", "Explain photosynthesis", "1 + 1"])
def test_it_says_what_it_can_be_asked_when_it_does_not_know(
    starter: tuple[Any, Any], question: str
) -> None:
    assert ask(starter, question) == unknown().answer


def test_the_last_question_counts(starter: tuple[Any, Any]) -> None:
    messages = [
        {"role": "user", "content": "Tell me a joke"},
        {"role": "assistant", "content": topics()["joke"].answer},
        {"role": "user", "content": "What is prefill?"},
    ]
    assert answer(starter, messages) == topics()["prefill"].answer


@pytest.mark.parametrize("thinking", [False, True])
def test_it_calls_a_function_that_is_offered(starter: tuple[Any, Any], thinking: bool) -> None:
    tools = [TIME, WEATHER]
    reply = ask(starter, "What is the weather in Paris?", thinking=thinking, tools=tools)
    call = parse_call(reply.rpartition("</think>\n\n")[2])
    assert call is not None
    assert call["name"] in {"get_weather", "get_time"}


def test_it_reports_the_result_of_a_function(starter: tuple[Any, Any]) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": json.dumps({"temperature": 17, "sky": "sunny"})},
    ]
    assert "degrees" in answer(starter, messages, tools=[WEATHER])


def test_it_calls_nothing_when_no_function_is_needed(starter: tuple[Any, Any]) -> None:
    assert ask(starter, "Tell me a joke", tools=[WEATHER]) == topics()["joke"].answer
