"""From token ids to text, as they come: whole characters only, and nothing after a stop string."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns the token ids of one answer into text. A character is given out when its last byte has come."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held_back: list[int] = []

    def feed(self, token_ids: list[int]) -> str:
        """Take the next tokens and return the text that is now certain."""
        step, backend, parts = self._stream.step, self._backend, list[str]()
        for token_id in token_ids:
            text = step(backend, token_id)
            if text is None:
                self._held_back.append(token_id)
            else:
                self._held_back.clear()
                parts.append(text)
        return "".join(parts)

    def finish(self) -> str:
        """Return what is left of a character that never became whole, with U+FFFD for what is missing."""
        held_back, self._held_back = self._held_back, []
        return str(self._tokenizer.decode(held_back, skip_special_tokens=True)) if held_back else ""


class StopStrings:
    """Ends an answer before the stop string that is complete first, wherever token borders fall."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._pending = ""
        self.is_matched = False

    def feed(self, text: str) -> str:
        """Take more text and return what can't be part of a stop string; `is_matched` says when one was found."""
        if not self._stop:
            return text
        self._pending += text
        # The first to be complete, and of those the first to begin: what reading letter by letter would find.
        found = [
            (at + len(stop), at) for stop in self._stop if (at := self._pending.find(stop)) >= 0
        ]
        if found:
            self.is_matched = True
            return self._take(min(found)[1])
        return self._take(len(self._pending) - self._possible_start())

    def finish(self) -> str:
        """Return what was held back, as the answer has ended without completing a stop string."""
        return self._take(len(self._pending))

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken

    def _possible_start(self) -> int:
        """Return the length of the longest end of the text that could be the start of a stop string."""
        longest = min(len(self._pending), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            ending = self._pending[-length:]
            if any(stop.startswith(ending) for stop in self._stop):
                return length
        return 0
