"""The bytes of an answer's tokens, put together, are its text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from mlx_manager.mlx_server.engine.token_bytes import TokenBytes
from tests.generation.test_text import TEXTS

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"


@pytest.mark.parametrize("model", ["tiny", "starter"])
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_make_up_the_text(model_dir: Path, model: str, text: str) -> None:
    folder = STARTER if model == "starter" else model_dir / "test" / model
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token_bytes = TokenBytes(tokenizer)
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(map(token_bytes.of, token_ids)).decode() == text


def test_byte_tokens_and_marked_spaces_are_read_as_sentencepiece_means_them() -> None:
    names = ["<unk>", "<0x0A>", "<0xE2>", "<0x98>", "<0x83>", "▁Hello", "▁", "<0xZZ>"]
    tokenizer = Tokenizer(
        models.BPE({name: at for at, name in enumerate(names)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    token_bytes = TokenBytes(tokenizer)
    assert [token_bytes.of(token_id) for token_id in range(1, 8)] == [
        b"\n",
        b"\xe2",
        b"\x98",
        b"\x83",
        b" Hello",
        b" ",
        b"<0xZZ>",
    ]
    # A row of the model's vocabulary that the tokenizer has no token for.
    assert token_bytes.of(1000) == b""


def test_added_tokens_are_what_is_written_even_where_letters_stand_for_bytes() -> None:
    tokenizer = Tokenizer(models.BPE({"Ġ": 0, "â": 1}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("â", special=False), AddedToken("<é>", special=True)])
    token_bytes = TokenBytes(tokenizer)
    assert token_bytes.of(0) == b" "
    assert token_bytes.of(2).decode() == "<é>"


def test_without_a_decoder_a_token_is_its_name() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, "<unk>"))
    assert TokenBytes(tokenizer).of(1) == b"word"
