"""gpt-oss reads what it said while it worked in the channel for that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_manager.chat.request import Conversation, Message, ToolCall
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.pool.catalog import ModelFiles

# As the published template has it: what stands beside a call is a thought, and all else is final.
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant"
    "{% if m.tool_calls %}"
    "{% if m.content %}<|channel|>analysis<|message|>{{ m.content }}<|end|><|start|>assistant{% endif %}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
    " to=functions.{{ m.tool_calls[0].function.name }}<|channel|>commentary json<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CALL = (ToolCall("c1", "look", {}),)
RESULT = Message("tool", "a cat", tool_call_id="c1")
CALLED = "<|start|>assistant to=functions.look<|channel|>commentary json<|message|>{}<|call|>"
END = "<|start|>tool<|message|>a cat<|end|><|start|>assistant"


def text_with(model_dir: Path, folder: Path, template: str) -> ModelText:
    path = shutil.copytree(model_dir / "test" / "tiny", folder / "model")
    (path / "chat_template.jinja").write_text(template)
    return load_model_text(ModelFiles("test/model", path, "folder", 0))


def in_channel(name: str, text: str) -> str:
    return f"<|start|>assistant<|channel|>{name}<|message|>{text}<|end|>"


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        (
            (Message("assistant", "I look.", phase="commentary"),),
            in_channel("commentary", "I look.") + "<|start|>assistant",
        ),
        (
            (
                Message("assistant", "A cat.", phase="final_answer"),
                Message("assistant", "A cat.", phase="commentary"),
                Message("assistant", "A cat."),
            ),
            in_channel("final", "A cat.")
            + in_channel("commentary", "A cat.")
            + in_channel("final", "A cat.")
            + "<|start|>assistant",
        ),
        (
            (Message("assistant", "I look.", tool_calls=CALL, phase="commentary"), RESULT),
            in_channel("commentary", "I look.") + CALLED + END,
        ),
        (
            (Message("assistant", "I look.", tool_calls=CALL), RESULT),
            in_channel("analysis", "I look.") + CALLED + END,
        ),
        (
            (
                Message("assistant", "I look.", None, CALL, reasoning="Hm.", phase="commentary"),
                RESULT,
            ),
            in_channel("commentary", "I look.") + in_channel("analysis", "Hm.") + CALLED + END,
        ),
    ],
    ids=["alone", "beside the same text", "beside a call", "unknown", "beside a thought"],
)
def test_what_was_said_while_it_worked_is_commentary(
    model_dir: Path, tmp_path: Path, messages: tuple[Message, ...], shown: str
) -> None:
    text = text_with(model_dir, tmp_path, HARMONY + "{# <|channel|> <|call|> #}")
    assert text.render(Conversation(messages)) == shown
    assert text.decode(text.encode(Conversation(messages)).token_ids) == shown


def test_other_families_have_no_channels(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, PLAIN)
    conversation = Conversation((Message("assistant", "I look.", phase="commentary"),))
    assert text.render(conversation) == "assistant: I look.\n"
