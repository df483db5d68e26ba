"""How many prompt tokens a step may compute, by what they have cost so far. Pure: it is told how long steps took."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from statistics import median

from mlx_manager.mlx_server.engine.sequence import Lane

# Until a step has been measured.
FIRST_TOKENS = 256
# A pass over fewer costs about as much, on whatever device.
LEAST_TOKENS = 16
# Of so many steps the middle one counts: the first ones of a process compile, and now and then one is disturbed. Not of
# more, because the further a long prompt has been read, the dearer its tokens are.
REMEMBERED_STEPS = 3
# What a single sequence has for itself nobody else waits for: so many times longer may its steps take.
IDLE_FACTOR = 4


class Pace:
    """Keeps the time between two tokens of a running stream to `gap_ns` while prompts are read beside it.

    What a token costs is known for each lane: the further a prompt has been read, the dearer its tokens are.
    """

    def __init__(self, gap_ns: int) -> None:
        self._gap_ns = gap_ns
        self._decode_ns = deque[int](maxlen=REMEMBERED_STEPS)
        self._token_ns: dict[Lane, deque[float]] = {None: deque(maxlen=REMEMBERED_STEPS)}

    def note(self, step_ns: int, prompt_tokens: int, rows: int, lane: Lane = None) -> None:
        """Learn from a step that computed so many prompt tokens, padding counted, and one token of each of `rows`."""
        if prompt_tokens >= LEAST_TOKENS:
            token_ns = max(step_ns - self._decoding_ns(rows), 1) / prompt_tokens
            # The first piece of a lane has nothing before it, like those of the shared one, which may have had none.
            if lane not in self._token_ns:
                self._token_ns[lane] = deque(maxlen=REMEMBERED_STEPS)
                self._token_ns[None].append(token_ns)
            self._token_ns[lane].append(token_ns)
        elif rows and not prompt_tokens:
            self._decode_ns.append(step_ns)

    def tokens(self, rows: int, lane: Lane = None) -> int:
        """Return how many prompt tokens of a lane fit a step in which so many rows decode."""
        return self._fitting(self._gap_ns - self._decoding_ns(rows), lane)

    def idle_tokens(self, lane: Lane = None) -> int:
        """Return the same for a sequence that has the engine for itself."""
        return self._fitting(IDLE_FACTOR * self._gap_ns, lane)

    def forget_all_but(self, lanes: Container[Lane]) -> None:
        """Only these lanes, and the shared one, are still read."""
        for lane in [one for one in self._token_ns if one is not None and one not in lanes]:
            del self._token_ns[lane]

    def _decoding_ns(self, rows: int) -> int:
        return int(median(self._decode_ns)) if rows and self._decode_ns else 0

    def _fitting(self, allowed_ns: int, lane: Lane) -> int:
        token_ns = self._token_ns.get(lane) or self._token_ns[None]
        if not token_ns:
            return FIRST_TOKENS
        return max(LEAST_TOKENS, int(allowed_ns / median(token_ns)))
