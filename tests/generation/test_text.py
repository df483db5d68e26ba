"""Text comes in whole characters, and nothing of it from a stop string on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from mlx_manager.mlx_server.engine.token_bytes import TokenBytes
from mlx_manager.mlx_server.generation.text import MAX_HELD_BACK, Detokenizer, StopStrings

TEXTS = [
    "Plain words, and a line\nbreak.",
    "Größe, façade, naïve, Ελληνικά, русский, עברית, العربية",
    "日本語のテキスト 한국어 ไทย हिन्दी",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇯🇵, 👍🏽, e\u0301",
    "\U00010348\U0002070e mixed with a",
]


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_dir / "test" / "tiny")


@pytest.mark.parametrize("text", TEXTS)
def test_whole_characters_come_out_however_the_tokens_are_cut(tokenizer: Any, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert len(token_ids) > len(text.split())
    for cut in range(len(token_ids) + 1):
        detokenizer = Detokenizer(TokenBytes(tokenizer.backend_tokenizer))
        deltas = [detokenizer.feed(token_ids[:cut]), detokenizer.feed(token_ids[cut:])]
        assert "".join([*deltas, detokenizer.finish()]) == text
        assert not any("�" in delta for delta in deltas)


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_that_ends_within_a_character_is_whole_up_to_there(
    tokenizer: Any, text: str
) -> None:
    token_ids = tokenizer.encode(text)
    for end in range(len(token_ids)):
        detokenizer = Detokenizer(TokenBytes(tokenizer.backend_tokenizer))
        deltas = [detokenizer.feed([token_id]) for token_id in token_ids[:end]]
        assert not any("�" in delta for delta in deltas)
        assert "".join([*deltas, detokenizer.finish()]) == tokenizer.decode(token_ids[:end])


def test_any_bytes_at_all_come_out_as_the_whole_decoding_has_them(tokenizer: Any) -> None:
    chance = random.Random(0)
    for _ in range(300):
        token_ids = [chance.randrange(3, 300) for _ in range(20)]
        detokenizer = Detokenizer(TokenBytes(tokenizer.backend_tokenizer))
        text = "".join(detokenizer.feed([token_id]) for token_id in token_ids)
        assert text + detokenizer.finish() == tokenizer.decode(token_ids)


def test_special_tokens_are_not_text(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    detokenizer = Detokenizer(TokenBytes(tokenizer.backend_tokenizer))
    text = detokenizer.feed([end, *tokenizer.encode("ab"), end, *tokenizer.encode("c"), end])
    assert text + detokenizer.finish() == "abc"


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    """A tokenizer as SentencePiece's are: a mark for spaces, a token for each byte, no space at the beginning."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Hello", "▁", "é", "you"]
    tokenizer = Tokenizer(
        models.BPE({name: at for at, name in enumerate(names)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def test_a_tokenizer_that_falls_back_to_bytes_is_read_as_its_own_decoder_reads_it(
    byte_fallback: Tokenizer,
) -> None:
    smile = [1 + byte for byte in "😀".encode()]
    token_ids = [257, 258, *smile, 259, 260, 257, *smile, *smile, 260]
    detokenizer = Detokenizer(TokenBytes(byte_fallback))
    deltas = [detokenizer.feed([token_id]) for token_id in token_ids]
    assert not any("�" in delta for delta in deltas)
    assert "".join(deltas) + detokenizer.finish() == "Hello 😀éyou Hello😀😀you"


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_bytes_that_never_become_a_character_are_not_waited_for(
    tokenizer: Any, byte_fallback: Tokenizer, kind: str
) -> None:
    backend = tokenizer.backend_tokenizer if kind == "bytes" else byte_fallback
    token_bytes = TokenBytes(backend)
    [half] = [one for one in range(backend.get_vocab_size()) if token_bytes.of(one) == b"\xe2"]
    detokenizer = Detokenizer(token_bytes)
    text, behind = "", 0
    for count in range(1, 1001):
        text += detokenizer.feed([half])
        behind = max(behind, count - len(text))
    assert behind <= (1 if kind == "bytes" else MAX_HELD_BACK)
    assert text + detokenizer.finish() == "�" * 1000


def expected(text: str, stops: tuple[str, ...]) -> str:
    """What is left of `text` when one looks at its ends letter by letter."""
    for end in range(len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)]
    return text


def stopped(pieces: list[str], stops: tuple[str, ...]) -> str:
    """Feed pieces as an answer does: up to a match, with the rest flushed when there is none."""
    machine, out = StopStrings(stops), ""
    for piece in pieces:
        out += machine.feed(piece)
        if machine.is_matched:
            return out
    return out + machine.finish()


def test_text_ends_before_the_stop_string_that_is_complete_first_however_it_is_cut() -> None:
    chance = random.Random(1)
    for _ in range(4000):
        text = "".join(chance.choices("ab", k=chance.randrange(12)))
        sizes = [chance.randrange(1, 5) for _ in range(chance.randrange(1, 4))]
        stops = tuple("".join(chance.choices("ab", k=size)) for size in sizes)
        cuts = sorted(chance.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert stopped(pieces, stops) == expected(text, stops), (pieces, stops)
        assert stopped(list(text), stops) == expected(text, stops), (text, stops)


@pytest.mark.parametrize("pieces", [["xabcdy"], ["xabc", "dy"], list("xabcdy")])
def test_one_stop_string_within_another_ends_the_text(pieces: list[str]) -> None:
    assert stopped(pieces, ("abcd", "bc")) == "xa"


def test_what_only_looked_like_a_stop_string_is_given_out_at_the_end() -> None:
    machine = StopStrings(("STOP",))
    assert machine.feed("say STO") == "say "
    assert machine.finish() == "STO"
    assert not machine.is_matched


def test_text_that_can_be_no_stop_string_is_not_held_back() -> None:
    assert StopStrings(("STOP",)).feed("say ST now") == "say ST now"
    assert StopStrings(()).feed("anything") == "anything"
