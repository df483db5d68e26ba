"""A sequence is what the engine runs: one prompt and the tokens that follow it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_manager.mlx_server.engine.grammar import Matcher
from mlx_manager.mlx_server.engine.messages import Stall, Stamps, Submit
from mlx_manager.mlx_server.engine.read_prompt import ReadPrompt

# Prompts in a lane are read together, as one batch: None is the lane that short ones share, others are known by the
# sequence that is alone in them.
Lane = int | None
# A pause is a stall when it is this long and this many times the mean of the pauses before it, of which there must be
# some: a model that needs half a second for each token doesn't stall at each.
STALL_NS = 250_000_000
STALL_FACTOR = 8
USUAL_GAPS = 3
MOST_STALLS = 16
# Even, so that it is always the first token behind a full list that is kept with twice the stride.
MOST_OFFSETS = 256


@dataclass(slots=True)
class Sequence:
    """One answer inside the engine, from `Submit` to `Ended`.

    Of its prompt `unread_tokens` are to be computed before the last one, which makes the first token of the answer.
    None are where another has read it, which is `shared`. One with a constraint has a `matcher` from when its grammar
    is compiled, and one that has its place a `lane`, which its prompt is read in.
    """

    submit: Submit
    stamps: Stamps
    unread_tokens: int
    matcher: Matcher | None = None
    lane: Lane = None
    shared: ReadPrompt | None = None
    # It has its place, and waits for another one to read what both begin with.
    is_following: bool = False
    # It has its place, and waits for what is in files of what its prompt begins with.
    is_restoring: bool = False

    @classmethod
    def received(cls, submit: Submit, now_ns: int) -> Sequence:
        """Start the record of a sequence that has just come in."""
        stamps = Stamps(received_ns=now_ns, prompt_tokens=len(submit.token_ids))
        return cls(submit, stamps, max(len(submit.known_token_ids) - 1, 0))

    def siblings(self) -> Iterator[Sequence]:
        """Yield the records of those that go on from the same prompt."""
        for sibling in self.submit.siblings:
            yield Sequence.received(self.submit.of(sibling), self.stamps.received_ns)

    @property
    def id(self) -> int:
        """The id that the API process gave it."""
        return self.submit.sequence_id

    @property
    def ready_ns(self) -> int:
        """Since when it could have joined the batch, had there been room."""
        return self.stamps.grammar_ready_ns or self.stamps.received_ns

    @property
    def stands_still(self) -> bool:
        """Whether it has its place and nothing can be computed for it yet."""
        return self.is_following or self.is_restoring

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is behind it."""
        return self.stamps.first_token_ns is not None

    @property
    def most_tokens(self) -> int:
        """Tokens of prompt and answer that are expected in the end, or that are there already."""
        made_tokens = len(self.submit.made_token_ids) + self.stamps.output_tokens
        return self.stamps.prompt_tokens + max(self.submit.answer_tokens, made_tokens)

    def found(self, cached_tokens: int) -> None:
        """So much of the prompt needs not be computed."""
        self.stamps.cached_tokens = cached_tokens
        self.unread_tokens = max(self.unread_tokens - cached_tokens, 0)

    def share(self, read: ReadPrompt) -> None:
        """Another has read the prompt."""
        self.shared = read
        self.unread_tokens -= read.tokens

    def read(self, chunk_tokens: int) -> int:
        """Record one more chunk of the prompt, of at most so many tokens, and return how many it had."""
        read = min(chunk_tokens, self.unread_tokens)
        self.unread_tokens -= read
        self.stamps.prefill_chunks += 1
        return read

    def add_token(self, now_ns: int, batch_width: int, beside_prefill: bool) -> None:
        """Record one more output token, made together with `batch_width` - 1 others, and with prompts read or not."""
        stamps = self.stamps
        if stamps.last_token_ns is None:
            stamps.first_token_ns = now_ns
        else:
            gap_ns = now_ns - stamps.last_token_ns
            if gap_ns > stamps.longest_gap_ns:
                stamps.longest_gap_ns = gap_ns
            if gap_ns > STALL_NS and self._is_unusual(gap_ns):
                stall = Stall(stamps.last_token_ns, gap_ns, stamps.output_tokens, beside_prefill)
                stamps.stalls.append(stall)
        stamps.last_token_ns = now_ns
        if stamps.output_tokens % stamps.token_stride == 0:
            self._keep_offset(now_ns)
        stamps.output_tokens += 1
        stamps.batch_width_sum += batch_width
        stamps.batch_width_max = max(stamps.batch_width_max, batch_width)

    def add_proposals(self, proposed: int, right: int) -> None:
        """Record that so many tokens were proposed before they were computed, and how many of them were right."""
        self.stamps.proposed_tokens += proposed
        self.stamps.accepted_tokens += right

    def _keep_offset(self, now_ns: int) -> None:
        stamps = self.stamps
        if len(stamps.token_offsets_us) == MOST_OFFSETS:
            del stamps.token_offsets_us[1::2]
            stamps.token_stride *= 2
        stamps.token_offsets_us.append((now_ns - (stamps.first_token_ns or now_ns)) // 1000)

    def _is_unusual(self, gap_ns: int) -> bool:
        stamps = self.stamps
        if len(stamps.stalls) == MOST_STALLS:
            return False
        # Without the stalls, behind whose mean the next one would hide; tokens that were proposed came with another.
        usual_gaps = stamps.output_tokens - 1 - stamps.accepted_tokens - len(stamps.stalls)
        stalled_ns = sum(stall.duration_ns for stall in stamps.stalls)
        usual_ns = (stamps.last_token_ns or 0) - (stamps.first_token_ns or 0) - stalled_ns
        return usual_gaps >= USUAL_GAPS and gap_ns * usual_gaps > STALL_FACTOR * usual_ns
