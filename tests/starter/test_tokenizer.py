"""What the starter's tokenizer keeps whole."""

from typing import Any

import pytest

MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
TEXTS = (
    "Hello, world!",
    "  two spaces,\ttabs\n\nand lines\r\n",
    "Zürich, Ελλάδα, Россия, مرحبا, नमस्ते, こんにちは, 안녕하세요, 你好",
    "👋🏽 👨‍👩‍👧 🏳️‍🌈 e\u0301 \u200b\u202e\ufeff",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \x00\x7f",
    'don\'t_split(camelCase) -> 3.14e-7 == "x";',
)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_unchanged(starter: tuple[Any, Any], text: str) -> None:
    tokenizer = starter[1]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_byte_can_be_a_token(starter: tuple[Any, Any]) -> None:
    tokenizer = starter[1]
    text = "".join(map(chr, range(0x20, 0x3000, 7)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("mark", MARKS)
def test_marks_are_one_token_each(starter: tuple[Any, Any], mark: str) -> None:
    tokenizer = starter[1]
    assert tokenizer.encode(f"a{mark}b") == [
        *tokenizer.encode("a"),
        tokenizer.convert_tokens_to_ids(mark),
        *tokenizer.encode("b"),
    ]


def test_a_name_is_the_same_tokens_after_a_space_and_after_a_quote(
    starter: tuple[Any, Any],
) -> None:
    tokenizer = starter[1]
    name = tokenizer.encode("Braville")
    assert tokenizer.encode(" Braville")[-len(name) :] == name
    assert tokenizer.encode('"Braville')[-len(name) :] == name


def test_mlx_lm_recognises_thinking_and_calls(starter: tuple[Any, Any]) -> None:
    tokenizer = starter[1]
    assert tokenizer.has_thinking
    assert tokenizer.has_tool_calling
    assert tokenizer.tool_call_start == "<tool_call>"
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
