"""Guess what comes next from what the sequence has already: where its last tokens stood before, and what followed.

Known as prompt lookup decoding (Saxena 2023). A wrong proposal costs its part of a step, and each right one saves a
step, so a row whose proposals are bad makes fewer. See docs/decisions/0056.
"""

from __future__ import annotations

from collections.abc import Sequence

# So many tokens at the end are looked for.
MATCHED_TOKENS = 3
# A row all of whose proposals were wrong rests for twice as many tokens as the time before, up to this.
LONGEST_REST = 64


class Lookup:
    """Guesses for one row, at most `most_tokens` at a time."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        # How many tokens are proposed, by how it went.
        self._trust = most_tokens
        self._rest = 1
        self._rests_until = 0
        self._tokens: list[int] = []
        # The place behind each group of tokens where it stood last, and the next place to remember.
        self._places: dict[tuple[int, ...], int] = {}
        self._next_place = MATCHED_TOKENS

    def propose(self, known: Sequence[int], next_token: int | None = None) -> list[int]:
        """Return what may come behind all `known` tokens, which begin with those of the last call, and the next one."""
        tokens = self._tokens
        tokens += known[len(tokens) :]
        if next_token is not None and len(tokens) == len(known):
            tokens.append(next_token)
        self._remember(tokens)
        if len(tokens) < self._rests_until:
            return []
        place = self._places.get(tuple(tokens[-MATCHED_TOKENS:]))
        if place is None:
            return []
        # What repeats itself goes on doing so.
        period = len(tokens) - place
        return [tokens[place + at % period] for at in range(self._trust)]

    def learn(self, proposed: int, right: int, tokens: int) -> None:
        """Take note of how many of a step's proposals were right, in a row that has so many tokens now."""
        if right == proposed:
            self._trust, self._rest = min(self._trust * 2, self._most_tokens), 1
        elif right:
            self._trust, self._rest = right, 1
        else:
            self._trust = max(self._trust // 2, 1)
            self._rests_until = tokens + self._rest
            self._rest = min(self._rest * 2, LONGEST_REST)

    def _remember(self, tokens: Sequence[int]) -> None:
        """Note where groups of tokens stand that something follows."""
        for place in range(self._next_place, len(tokens)):
            self._places[tuple(tokens[place - MATCHED_TOKENS : place])] = place
        self._next_place = max(self._next_place, len(tokens))
