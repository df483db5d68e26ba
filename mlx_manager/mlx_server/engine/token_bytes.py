"""The bytes that a token stands for: a token may be half a character, which no text can show."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
SPACE_MARK = "▁"


class TokenBytes:
    """Knows how one tokenizer writes bytes into the names of its tokens.

    With `are_text` the bytes of tokens, one after the other, are all there is to a text: its decoder does no more.
    `special_ids` are the tokens that are no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._known = {token_id: str(token.content).encode() for token_id, token in added.items()}
        # What decodes is only known by its description; `to_str` of the whole tokenizer would take a second.
        decoder = tokenizer.decoder
        described = decoder.__getstate__().decode() if decoder is not None else ""
        self.are_text = bool(described) and json.loads(described).get("type") == "ByteLevel"
        self._is_byte_level = '"ByteLevel"' in described
        self._has_byte_tokens = '"ByteFallback"' in described
        self._has_space_mark = SPACE_MARK in described

    def of(self, token_id: int) -> bytes:
        """Return a token's bytes; none for an id beyond the tokenizer's last, which a model's vocabulary may have."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._read(token_id)
        return known

    def _read(self, token_id: int) -> bytes:
        name: str | None = self.tokenizer.id_to_token(token_id)
        if name is None:
            return b""
        if self._is_byte_level:
            return _byte_level(name)
        if self._has_byte_tokens and (byte := BYTE_TOKEN.fullmatch(name)):
            return bytes.fromhex(byte[1])
        return (name.replace(SPACE_MARK, " ") if self._has_space_mark else name).encode()


def _byte_level(name: str) -> bytes:
    byte_of = _bytes_by_character()
    if all(character in byte_of for character in name):
        return bytes(byte_of[character] for character in name)
    return name.encode()


@lru_cache(maxsize=1)
def _bytes_by_character() -> dict[str, int]:
    """Return what GPT-2's tokenizer began: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + at): byte for at, byte in enumerate(others)
    }
