"""From token ids to text, as they come: whole characters only, and nothing after a stop string."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream

from mlx_manager.mlx_server.families.cursor import possible_start


class Detokenizer:
    """Turns the token ids of one answer into text. A character is given out when its last byte has come.

    Special tokens are no text, but for those in `shown_ids`: marks that somebody reads.
    """

    def __init__(self, tokenizer: Any, shown_ids: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=not shown_ids)
        self._hidden_ids = (
            frozenset(tokenizer.all_special_ids) - shown_ids if shown_ids else frozenset[int]()
        )
        self._held_back: list[int] = []

    def feed(self, token_ids: list[int]) -> str:
        """Take the next tokens and return the text that is now certain."""
        step, backend, parts = self._stream.step, self._backend, list[str]()
        for token_id in token_ids:
            if token_id in self._hidden_ids:
                continue
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
