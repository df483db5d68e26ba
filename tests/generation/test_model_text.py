"""A model's own settings, templates and end tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.chat.request import (
    Conversation,
    Message,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_manager.errors import InvalidRequest, ModelLoadFailed, UnsupportedParameter
from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.families.family import Family
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text, quantization
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from tools.random_model import Shape, make_random_model


def text_with(
    model_dir: Path, folder: Path, generation: dict[str, Any] | None = None, template: str = ""
) -> ModelText:
    """The text side of the tiny model, with other settings or another template."""
    path = shutil.copytree(model_dir / "test" / "tiny", folder / "model")
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    if template:
        (path / "chat_template.jinja").write_text(template)
    return load_model_text(ModelFiles("test/model", path, "folder", 0))


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, SamplingParameters(1.0, 1.0, 0, 0.0)),
        ({}, SamplingParameters(1.0, 1.0, 0, 0.0)),
        ({"do_sample": False, "temperature": 0.9}, SamplingParameters(0.0, 1.0, 0, 0.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1},
            SamplingParameters(0.6, 0.95, 20, 0.1),
        ),
        ({"temperature": None, "top_k": 50}, SamplingParameters(1.0, 1.0, 50, 0.0)),
        ({"repetition_penalty": 1.05}, SamplingParameters(1.0, repetition_penalty=1.05)),
    ],
)
def test_what_the_client_leaves_open_is_as_the_model_s_maker_has_it(
    model_dir: Path, tmp_path: Path, generation: dict[str, Any] | None, expected: SamplingParameters
) -> None:
    text = text_with(model_dir, tmp_path, generation)
    assert text.sampling_parameters(Sampling()) == expected
    asked = Sampling(0.0, 0.0, 0, 0.0, 0, repetition_penalty=1.0)
    assert text.sampling_parameters(asked) == SamplingParameters(0.0, 0.0, 0, 0.0, 0)


def test_end_tokens_come_from_every_place_that_names_one(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, {"eos_token_id": [0, 2]})
    assert set(text.end_token_ids) == {0, 2}
    assert text.context_tokens == 131_072
    assert text.vocabulary_size == 512


def test_what_was_asked_for_goes_to_the_engine(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path)
    asked = Sampling(
        xtc_probability=0.5,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias={5: -100.0, 511: 1.5},
        min_tokens=7,
    )
    assert text.sampling_parameters(asked) == SamplingParameters(
        1.0,
        xtc_probability=0.5,
        xtc_threshold=0.1,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias=((5, -100.0), (511, 1.5)),
        min_tokens=7,
    )


def test_a_bias_on_a_token_that_is_not_there_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="512 tokens") as refusal:
        text_with(model_dir, tmp_path).sampling_parameters(Sampling(logit_bias={512: 1.0}))
    assert refusal.value.param == "logit_bias"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% if %}", "{{ nothing.at.all }}", "{{ 1 + 'a' }}"]
)
def test_a_template_that_refuses_the_messages_is_an_invalid_request(
    model_dir: Path, tmp_path: Path, template: str
) -> None:
    text = text_with(model_dir, tmp_path, template=template)
    with pytest.raises(InvalidRequest, match="chat template"):
        text.encode(Conversation((Message("user", "Hi"),)))


def test_a_conversation_ends_with_the_assistant_s_turn(model_dir: Path, tmp_path: Path) -> None:
    rendered = text_with(model_dir, tmp_path).render(Conversation((Message("user", "Hi"),)))
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_broken_tokenizer_is_a_failed_load(model_dir: Path, tmp_path: Path) -> None:
    path = shutil.copytree(model_dir / "test" / "tiny", tmp_path / "model")
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadFailed, match="test/model"):
        load_model_text(ModelFiles("test/model", path, "folder", 0))


@pytest.mark.parametrize(
    ("config", "term"),
    [
        ({}, None),
        ({"quantization": None}, None),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4bit"),
        (
            {"quantization": {"group_size": 32, "bits": 8, "mode": "affine", "lm_head": False}},
            "8bit",
        ),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization": {"bits": "many"}}, None),
        ({"quantization": "4bit"}, None),
    ],
)
def test_how_weights_are_stored_is_one_short_term(config: dict[str, Any], term: str | None) -> None:
    assert quantization(config) == term


SHOWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
LOOK = Tool("look", "Looks", {"type": "object", "properties": {"at": {"type": "string"}}})


def test_a_model_whose_template_knows_no_tools_is_told_of_them_in_its_instructions(
    model_dir: Path, tmp_path: Path
) -> None:
    text = text_with(model_dir, tmp_path, template=SHOWN)
    asked = Message("system", "Be kind."), Message("user", "Hi")
    told = text.render(Conversation(asked, tools=(LOOK,)))
    assert told.startswith("[system]Be kind.\n\nYou can call these functions.")
    assert told.endswith("</tool_call>[user]Hi")
    assert '"name": "look", "description": "Looks"' in told
    assert text.render(Conversation(asked[1:], tools=(LOOK,))).startswith("[system]You can call")
    silent = Conversation(asked, tools=(LOOK,), tool_choice=ToolChoice("none"))
    assert text.render(silent) == text.render(Conversation(asked)) == "[system]Be kind.[user]Hi"


@pytest.mark.parametrize(
    ("sign", "call"),
    [
        (
            "<｜tool▁sep｜>",
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function_name<｜tool▁sep｜>{"argument_name": "value"}'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            "<|tool_call_start|>",
            '<|tool_call_start|>[function_name(argument_name="value")]<|tool_call_end|>',
        ),
        (
            "<start_of_turn>",
            '{"name": "function name", "parameters": {}}',
        ),
    ],
)
def test_such_a_model_is_told_to_call_in_the_form_that_its_answers_are_read_in(
    model_dir: Path, tmp_path: Path, sign: str, call: str
) -> None:
    text = text_with(model_dir, tmp_path, template=f"{{# {sign} #}}{SHOWN}")
    told = text.render(Conversation((Message("user", "Hi"),), tools=(LOOK,)))
    assert told.endswith(f"and wait for its result:\n{call}[user]Hi")


def test_a_template_gets_tools_thinking_and_what_the_client_sets_by_name(
    model_dir: Path, tmp_path: Path
) -> None:
    template = (
        "{{ tools[0].function.name }} {{ enable_thinking }} {{ messages[0].reasoning_content }}"
    )
    text = text_with(model_dir, tmp_path, template=template)
    asked = Conversation((Message("assistant", "", reasoning="Hm"),), tools=(LOOK,), thinking=False)
    assert text.render(asked) == "look False Hm"
    named = Conversation(asked.messages, {"enable_thinking": 7}, tools=(LOOK,), thinking=False)
    assert text.render(named) == "look 7 Hm"


def test_an_answer_that_begins_within_thoughts_is_known_by_the_end_of_the_prompt(
    model_dir: Path, tmp_path: Path
) -> None:
    template = "{% if enable_thinking %}<think>\n{% else %}<think>\n</think>\n{% endif %}"
    text = text_with(model_dir, tmp_path, template=template)
    asked = Message("user", "Hi")
    assert text.encode(Conversation((asked,), thinking=True)).opening == "<think>"
    assert text.encode(Conversation((asked,), thinking=False)).opening == ""


def test_a_call_that_must_be_is_the_end_of_the_prompt_and_the_beginning_of_the_answer(
    model_dir: Path, tmp_path: Path
) -> None:
    text = text_with(model_dir, tmp_path, template=SHOWN)
    asked = Conversation((Message("user", "Hi"),), tools=(LOOK,))
    plain = text.encode(asked)
    choice = ToolChoice("required", "look")
    forced = text.encode(Conversation(asked.messages, tools=(LOOK,), tool_choice=choice))
    assert forced.opening == '<tool_call>\n{"name": "look", "arguments":'
    assert forced.token_ids[: len(plain.token_ids)] == plain.token_ids
    assert text.tokenizer.decode(forced.token_ids).endswith(forced.opening)


def test_a_family_that_can_not_be_made_to_call_says_so(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, template=f"{SHOWN}｜DSML｜")
    asked = Conversation(
        (Message("user", "Hi"),), tools=(LOOK,), tool_choice=ToolChoice("required")
    )
    with pytest.raises(UnsupportedParameter, match="can't be made to call"):
        text.encode(asked)


def test_a_call_that_must_be_comes_behind_thoughts_that_the_prompt_has_opened(
    model_dir: Path, tmp_path: Path
) -> None:
    text = text_with(model_dir, tmp_path, template="{# <tool_call></think> #}{{ tools }}<think>\n")
    asked = Conversation(
        (Message("user", "Hi"),), tools=(LOOK,), tool_choice=ToolChoice("required", "look")
    )
    encoded = text.encode(asked)
    assert encoded.opening == '<tool_call>\n{"name": "look", "arguments":'
    said = text.tokenizer.decode(encoded.token_ids)
    assert said.endswith(f"<think></think>\n\n{encoded.opening}")


CALLS = (ToolCall("c1", "look", {"at": "é"}), ToolCall("c2", "wait", {}))
CALLED = (
    Message("assistant", "I look.", tool_calls=CALLS, reasoning="Hm"),
    Message("tool", "cats", tool_call_id="c1"),
    Message("tool", "done", tool_call_id="c2"),
)
EACH = """{% for m in messages %}{{ m.role }} {{ m.content }} {{ m.thinking }} {{ m.tool_call_id }}
{% for c in m.tool_calls %}{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}
{% endfor %}{% endfor %}"""


@pytest.mark.parametrize(
    ("signs", "shown"),
    [
        (
            "<tool_call>",
            'assistant I look. Hm \nc1 look {"at": "é"}\nc2 wait {}\ntool cats  c1\ntool done  c2',
        ),
        (
            "<|tool_call_argument_begin|>",
            'assistant I look. Hm \nfunctions.look:0 look {"at": "é"}\nfunctions.wait:1 wait {}\n'
            "tool cats  functions.look:0\ntool done  functions.wait:1",
        ),
        # What was said and what was thought have no place in one message with a call.
        (
            "<|channel|><|call|>",
            'assistant I look.  \nassistant  Hm \nc1 look {"at": "é"}\ntool cats  c1\n'
            "assistant   \nc2 wait {}\ntool done  c2",
        ),
    ],
    ids=["as they are", "with names as ids", "one by one"],
)
def test_earlier_calls_are_told_as_the_family_s_template_wants_them(
    model_dir: Path, tmp_path: Path, signs: str, shown: str
) -> None:
    text = text_with(model_dir, tmp_path, template=f"{{# {signs} #}}{EACH}")
    assert text.render(Conversation(CALLED)).strip() == shown


def test_a_model_can_be_taken_for_one_of_another_family(model_dir: Path) -> None:
    files = ModelFiles("test/model", model_dir / "test" / "tiny", "folder", 0)
    assert load_model_text(files, "glm").family.name == "glm"
    with pytest.raises(ModelLoadFailed, match="no family 'nobody'"):
        load_model_text(files, "nobody")


def test_a_family_that_was_set_wins_over_the_template_s_and_its_thoughts_stay(
    tmp_path: Path,
) -> None:
    path = make_random_model(tmp_path / "model")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["chat_template"] += "<think></think><tool_call>"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))

    def family(name: str | None) -> Family:
        own = ModelSettings(family=name)
        return load_model_text(ModelFiles("m", path, "folder", 0, settings=own)).family

    assert family(None).name == "hermes"
    assert family("mistral").name == "mistral"
    assert family("mistral").reasoning == family(None).reasoning == ("<think>", "</think>")
    with pytest.raises(ModelLoadFailed, match=r"no family 'x' .*mistral"):
        family("x")


def test_a_context_that_was_set_holds_and_can_not_be_longer_than_the_model_s(
    tmp_path: Path,
) -> None:
    path = make_random_model(tmp_path / "model", Shape(context=512))

    def context(tokens: int | None) -> int:
        own = ModelSettings(context_tokens=tokens)
        return load_model_text(ModelFiles("m", path, "folder", 0, settings=own)).context_tokens

    assert (context(None), context(512), context(100)) == (512, 512, 100)
    with pytest.raises(ModelLoadFailed, match="context_tokens 513 for m, whose config allows 512"):
        context(513)
