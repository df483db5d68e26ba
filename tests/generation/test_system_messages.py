"""Every system message reaches the model, whatever its template has a place for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from anthropic import Anthropic
from openai import OpenAI

from mlx_manager.chat.request import Conversation, Message, Tool
from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.generation.system_messages import SystemPlace
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from tests.support.running import RunningServer, running, settings_for

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
END = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# As Qwen3.5 refuses a late one.
REFUSES_LATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}" + TURN + END
)
# As templates do that look for a system message in the first place and write nobody else's.
LEAVES_LATE_OUT = (
    "{% for m in messages %}{% if loop.first or m.role != 'system' %}" + TURN + "{% endif %}" + END
)
# As Gemma's and Mistral's first ones want user and assistant in turns, and nobody else.
TURNS_ONLY = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant') }}"
    "{% endif %}" + TURN + END
)
PLACES: dict[str, tuple[str, SystemPlace]] = {
    "refuses late ones": (REFUSES_LATE, "first"),
    "leaves late ones out": (LEAVES_LATE_OUT, "first"),
    "turns only": (TURNS_ONLY, "user"),
}
SAID = (
    Message("system", "You are brief."),
    Message("system", "You are kind."),
    Message("user", "Hello"),
    Message("assistant", "Hi!"),
    Message("system", "Answer in verse."),
    Message("user", "Who are you?"),
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> dict[str, ModelText]:
    """The text side of one model, with each of the templates."""
    folder = tmp_path_factory.mktemp("templates")
    return {name: text_with(model_dir, folder / name, PLACES[name][0]) for name in PLACES}


def text_with(model_dir: Path, path: Path, template: str) -> ModelText:
    shutil.copytree(model_dir / "test" / "tiny", path)
    (path / "chat_template.jinja").write_text(template)
    return load_model_text(ModelFiles("test/model", path, "folder", 0))


@pytest.mark.parametrize("name", PLACES)
def test_it_is_found_out_where_a_template_has_a_place(
    texts: dict[str, ModelText], name: str
) -> None:
    assert texts[name].system_place == PLACES[name][1]


@pytest.mark.parametrize("name", PLACES)
def test_all_are_said_before_the_first_turn(texts: dict[str, ModelText], name: str) -> None:
    encoded = texts[name].encode(Conversation(SAID))
    rendered = texts[name].decode(encoded.token_ids)
    own = "You are brief.\n\nYou are kind.\n\nAnswer in verse."
    assert rendered.count(own) == 1
    assert rendered.index(own) < rendered.index("Hello") < rendered.index("Who are you?")
    assert [str(one) for one in encoded.reordered] == ["messages=reordered;by=chat_template"]


def test_turns_that_come_to_stand_side_by_side_become_one(texts: dict[str, ModelText]) -> None:
    said = (Message("user", "Hello"), Message("system", "Be brief."), Message("user", "Well?"))
    rendered = texts["turns only"].decode(texts["turns only"].encode(Conversation(said)).token_ids)
    assert "Be brief.\n\nHello\n\nWell?" in rendered


def test_instructions_without_a_user_are_the_user_s(texts: dict[str, ModelText]) -> None:
    said = (Message("system", "Say hello."),)
    rendered = texts["turns only"].render(Conversation(said))
    assert rendered.startswith("<|im_start|>user\nSay hello.")


def test_tools_that_a_template_has_no_place_for_go_the_same_way(
    texts: dict[str, ModelText],
) -> None:
    tools = (Tool("look", "Looks.", {"type": "object"}),)
    rendered = texts["turns only"].render(Conversation(SAID, tools=tools))
    assert rendered.index("look") < rendered.index("Hello")


@pytest.mark.parametrize("name", ["refuses late ones", "leaves late ones out"])
def test_one_at_the_beginning_stays_as_it_is(texts: dict[str, ModelText], name: str) -> None:
    encoded = texts[name].encode(Conversation((SAID[0], SAID[2])))
    assert encoded.reordered == ()


def test_a_template_that_says_all_is_left_alone(model_dir: Path) -> None:
    own = load_model_text(ModelFiles("test/tiny", model_dir / "test" / "tiny", "folder", 0))
    assert own.system_place == "anywhere"
    encoded = own.encode(Conversation(SAID))
    rendered = own.decode(encoded.token_ids)
    assert rendered.index("Hi!") < rendered.index("Answer in verse.")
    assert encoded.reordered == ()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("system")
    text_with(model_dir, folder / "models" / "test" / "strict", REFUSES_LATE)
    with running(create_app(settings_for(folder, folder / "models"))) as server:
        yield server


def test_both_clients_may_send_them_in_the_middle(server: RunningServer) -> None:
    openai = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = openai.chat.completions.with_raw_response.create(
        model="test/strict",
        messages=[
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "developer", "content": "Answer in verse."},
            {"role": "user", "content": "Who are you?"},
        ],
        max_tokens=4,
    )
    assert answer.parse().choices[0].finish_reason == "length"
    assert answer.headers["X-Adjusted-Parameters"].endswith("messages=reordered;by=chat_template")
    anthropic = Anthropic(base_url=server.url, api_key="none", max_retries=0)
    asked = {
        "model": "test/strict",
        "system": [{"type": "text", "text": "You are brief."}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "system", "content": "Answer in verse."},
            {"role": "user", "content": "Who are you?"},
        ],
    }
    counted = anthropic.messages.count_tokens(**asked).input_tokens  # type: ignore[arg-type]
    usage = anthropic.messages.create(**asked, max_tokens=4).usage  # type: ignore[call-overload]
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
