"""From token ids to text, as they come: whole characters only, and nothing after a stop string."""

from __future__ import annotations

from codecs import getincrementaldecoder

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from mlx_manager.mlx_server.engine.token_bytes import TokenBytes
from mlx_manager.mlx_server.families.cursor import possible_start

_utf8_decoder = getincrementaldecoder("utf-8")

# Tokens that may wait for a character to become whole, which has four bytes at most.
MAX_HELD_BACK = 16


class Detokenizer:
    """Turns the token ids of one answer into text. A character is given out when its last byte has come.

    Special tokens are no text, but for those in `shown_ids`: marks that somebody reads. A token costs the same
    wherever it stands, also behind bytes that become no character: their U+FFFD don't wait for the answer's end.
    """

    def __init__(self, token_bytes: TokenBytes, shown_ids: frozenset[int] = frozenset()) -> None:
        self._hidden_ids = token_bytes.special_ids - shown_ids
        self._decoding = (
            _ByteDecoding(token_bytes)
            if token_bytes.are_text
            else _TokenDecoding(token_bytes.tokenizer)
        )

    def feed(self, token_ids: list[int]) -> str:
        """Take the next tokens and return the text that is now certain."""
        hidden = self._hidden_ids
        return self._decoding.feed([one for one in token_ids if one not in hidden])

    def finish(self) -> str:
        """Return what is left of a character that never became whole, with U+FFFD for what is missing."""
        return self._decoding.finish()


class _ByteDecoding:
    """Text from the bytes of tokens: a tenth of the work of a tokenizer's own decoder."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes_of = token_bytes.of
        self._decoder = _utf8_decoder("replace")

    def feed(self, token_ids: list[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes_of, token_ids)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _TokenDecoding:
    """Text from a tokenizer's own decoder, which may replace, strip and join."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream()
        self._held_back: list[int] = []

    def feed(self, token_ids: list[int]) -> str:
        parts = list[str]()
        for token_id in token_ids:
            text = self._stream.step(self._tokenizer, token_id)
            self._held_back.append(token_id)
            if text is not None:
                self._held_back.clear()
                parts.append(text)
            elif len(self._held_back) == MAX_HELD_BACK:
                # The stream would decode all of them anew with each further token.
                parts.append(self.finish())
        return "".join(parts)

    def finish(self) -> str:
        held_back, self._held_back = self._held_back, []
        self._stream = DecodeStream()
        return self._tokenizer.decode(held_back, skip_special_tokens=False)


class StopStrings:
    """Ends an answer before the stop string that is complete first, wherever token borders fall."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._pending = ""
        self.matched: str | None = None

    @property
    def is_matched(self) -> bool:
        """Whether one was found."""
        return self.matched is not None

    @property
    def held_back(self) -> int:
        """Characters that were taken and not returned."""
        return len(self._pending)

    def feed(self, text: str) -> str:
        """Take more text and return what can't be part of a stop string; `matched` says which was found."""
        if not self._stop:
            return text
        self._pending += text
        # The first to be complete, and of those the first to begin: what reading letter by letter would find.
        found = [
            (at + len(stop), at, stop)
            for stop in self._stop
            if (at := self._pending.find(stop)) >= 0
        ]
        if found:
            _end, at, self.matched = min(found)
            return self._take(at)
        return self._take(len(self._pending) - possible_start(self._pending, self._stop))

    def finish(self) -> str:
        """Return what was held back, as the answer has ended without completing a stop string."""
        return self._take(len(self._pending))

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken
