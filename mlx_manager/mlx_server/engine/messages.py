"""What the API process and an engine process say to each other: one message per engine step, never one per token.

Times are `time.monotonic_ns()`, which every process of one machine shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

# Upper bounds of what step durations are counted by, one group more than there are bounds.
STEP_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# How often an engine says how it is.
BEAT_S = 1.0
EndReason = Literal["stop", "length", "cancelled", "failed", "refused", "lost"]
# What an engine makes of its input: tokens one after another, or vectors.
EngineKind = Literal["chat", "embeddings"]
Priority = Literal["high", "normal", "low"]
# What a sequence had to wait for: a row of the batch, others' prompts that are being read, memory for keys and values.
QueueReason = Literal["places", "prompts", "memory"]
# mlx-lm makes room for so many tokens at a time.
KV_STEP_TOKENS = 256
# Keys and values of rows that decode together have at least so many columns for tokens to come, and a slot to spare for
# so many that are taken.
SPARE_COLUMNS = 64
SLOTS_BY_SPARE_ONE = 8


class SamplingParameters(msgspec.Struct, frozen=True, array_like=True):
    """Every choice made: `temperature` 0 is greedy; the defaults of all others are "off".

    `logit_bias` pairs token ids with what is added to their logits. End tokens are not drawn before `min_tokens`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """A grammar in llguidance's form that the answer must be a text of.

    With `trigger_token_ids` it begins behind the first of them that is drawn; when it `repeats`, behind each. `param`
    is the part of the request that asks for it, which a refusal names.
    """

    grammar: str
    trigger_token_ids: tuple[int, ...] = ()
    repeats: bool = False
    param: str = "response_format"


class ThoughtBudget(msgspec.Struct, frozen=True, array_like=True):
    """At most so many tokens between those that begin thoughts and the one that ends them, in all of an answer.

    With `is_open` the prompt has begun them.
    """

    tokens: int
    begin_token_ids: list[int]
    end_token_id: int
    is_open: bool = False


class Sibling(msgspec.Struct, frozen=True, array_like=True):
    """One more answer to a prompt: a sequence of its own that differs in nothing but its seed."""

    sequence_id: int
    seed: int | None = None


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Generate after `token_ids` (at least one) until one of `end_token_ids` or `max_tokens`.

    With 0 of those nothing is generated: the prompt is read where it can be kept for others that begin with it.

    `constraint` needs an end token. With `top_logprobs` each token comes with its log-probability and those of so many
    others; None: without any. Its turn comes by its `priority`, and by what others of the same `key_id` have used. With
    `expected_tokens` it is predicted how much memory the answer needs; None: with `max_tokens`. `siblings` go on from
    the same prompt, which is read once for all of them. When `thought_budget` is used up, the token that ends the
    thoughts is the next. With `scores_prompt` the prompt's tokens come with their log-probabilities, too, and all of it
    is computed. `made_token_ids` are the first of those `max_tokens`, made before it was lost: the answer goes on
    behind them as if it had never stopped; such a sequence has no siblings and no prompt to score. `borders` counts the
    tokens up to the end of each message that the prompt is made of. `attempts` counts how often in a row it was lost
    and given to an engine again, without a token in between: it goes before those that are new.
    """

    sequence_id: int
    token_ids: list[int]
    max_tokens: int
    end_token_ids: list[int]
    sampling: SamplingParameters
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    priority: Priority = "normal"
    key_id: str | None = None
    expected_tokens: int | None = None
    siblings: list[Sibling] = []
    thought_budget: ThoughtBudget | None = None
    scores_prompt: bool = False
    made_token_ids: list[int] = []
    borders: list[int] = []
    attempts: int = 0

    @property
    def is_on_trial(self) -> bool:
        """Whether it was lost twice, so that it may be why: until its first token it is the only one without one."""
        return self.attempts > 1

    @property
    def known_token_ids(self) -> list[int]:
        """All that is there before the next token: the prompt, and what was made of the answer."""
        return [*self.token_ids, *self.made_token_ids] if self.made_token_ids else self.token_ids

    @property
    def answer_tokens(self) -> int:
        """How long the answer is expected to get."""
        return self.max_tokens if self.expected_tokens is None else self.expected_tokens

    @property
    def newest_id(self) -> int:
        """The highest id among this sequence and its siblings."""
        return max([self.sequence_id, *(sibling.sequence_id for sibling in self.siblings)])

    def of(self, sibling: Sibling) -> Submit:
        """Return what one of the siblings would be by itself; the prompt's tokens are scored for the first alone."""
        submit: Submit = replace(
            self,
            sequence_id=sibling.sequence_id,
            sampling=replace(self.sampling, seed=sibling.seed),
            siblings=[],
            scores_prompt=False,
        )
        return submit


class Embed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Make a vector for each of `token_ids` (at least one, none of them empty), of `dimensions` numbers or of all.

    `sequence_id` is counted with those of sequences.
    """

    sequence_id: int
    token_ids: list[list[int]]
    dimensions: int | None = None


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give up a sequence, whatever it is doing; unknown ids are ignored (it may just have ended)."""

    sequence_id: int


class KvCost(msgspec.Struct, frozen=True, array_like=True):
    """What a model keeps of a sequence, in bytes: of each token; of each token of a window, with how many; and once."""

    token_bytes: int
    windows: tuple[tuple[int, int], ...] = ()
    state_bytes: int = 0

    def row_bytes(self, tokens: int) -> int:
        """Return the bytes of a sequence that has so many."""
        allocated = -(-tokens // KV_STEP_TOKENS) * KV_STEP_TOKENS
        windows = sum(token_bytes * min(allocated, window) for token_bytes, window in self.windows)
        return self.token_bytes * allocated + windows + self.state_bytes

    def request_bytes(self, prompt_tokens: int, tokens: int, chunk_tokens: int) -> int:
        """Return the most that a request of so many tokens takes alone; its prompt is read in pieces of `chunk_tokens`.

        A model is let in with so much for its context, a request is refused by it, and the engine lets rows in by it.
        """
        return self.batch_bytes(1, tokens, (prompt_tokens,), chunk_tokens)

    def batch_bytes(
        self, rows: int, tokens: int, reading: Sequence[int] = (), chunk_tokens: int = 0
    ) -> int:
        """Return the most that so many sequences of up to so many tokens take together.

        `reading` has the lengths of the prompts that some of them read, in pieces of up to `chunk_tokens`: mlx-lm's
        caches for these grow by a step from wherever they are, and a window is kept with the last piece. Rows of keys
        and values alone are then in slots, some of which are to spare, with columns for tokens to come.
        """
        grown = KV_STEP_TOKENS - 1
        if self.windows or self.state_bytes:
            windows = sum(
                token_bytes
                * (
                    rows * min(tokens + grown, window)
                    + sum(min(prompt, chunk_tokens) for prompt in reading)
                )
                for token_bytes, window in self.windows
            )
            return rows * (self.token_bytes * (tokens + grown) + self.state_bytes) + windows
        columns = -(-(tokens + SPARE_COLUMNS) // KV_STEP_TOKENS) * KV_STEP_TOKENS
        # A prompt of one step is read into that.
        beyond = sum(
            max(prompt + grown - columns, 0) for prompt in reading if prompt > KV_STEP_TOKENS
        )
        slots = rows + rows // SLOTS_BY_SPARE_ONE
        return self.token_bytes * (slots * columns + beyond)


class Loading(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """So many of the weights' bytes are in memory; said a few times a second while they are read."""

    loaded_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.loaded_bytes / self.total_bytes if self.total_bytes else 1.0


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The model is in memory, after `load_s` in which its weights were read.

    All sequences together may keep `kv_budget_bytes`, at `kv_cost`; None: it isn't known how much one needs. Prompts
    are read in pieces of up to `chunk_tokens`.
    """

    weights_bytes: int
    dtype: str
    device: str
    has_fast_blas: bool
    load_s: float = 0.0
    kv_cost: KvCost | None = None
    kv_budget_bytes: int | None = None
    chunk_tokens: int = 0


class LoadFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The model can't be loaded; the process ends after this."""

    message: str


class Stall(msgspec.Struct, frozen=True, array_like=True):
    """A pause between two tokens that was clearly longer than usual; `beside_prefill` when prompts were read in it."""

    began_ns: int
    duration_ns: int
    after_token: int
    beside_prefill: bool


class Stamps(msgspec.Struct, array_like=True):
    """The engine's record of one sequence; None where it wasn't reached.

    `cached_tokens` of the prompt came from the prefix cache, and `cache_miss_reason` says why not all but the last
    did: it has `shared_tokens` in common with what is stored, which goes on with `ahead_token_ids` there. For
    `following_ns` it waited for another sequence to read what both begin with. `token_offsets_us` says when every
    `token_stride`th token came, in microseconds after the first. Of one that had to wait, `queue_reason` says for
    what, and `overtaken` how many that came later went first. `kv_bytes` is what its row was predicted to need. One
    with a constraint could join from `grammar_ready_ns` on; compiling took `grammar_compile_ns`, 0 when it was known.
    While it was alone `proposed_tokens` were looked up in the sequence itself; `accepted_tokens` of them came. It had
    its place and waited for files of the prefix cache for `restoring_ns`.
    """

    received_ns: int
    admitted_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_miss_reason: str | None = None
    prefill_chunks: int = 0
    output_tokens: int = 0
    batch_width_sum: int = 0
    batch_width_max: int = 0
    longest_gap_ns: int = 0
    stalls: list[Stall] = []
    token_offsets_us: list[int] = []
    token_stride: int = 1
    queue_reason: QueueReason | None = None
    overtaken: int = 0
    kv_bytes: int | None = None
    grammar_ready_ns: int | None = None
    grammar_compile_ns: int = 0
    shared_tokens: int = 0
    ahead_token_ids: list[int] = []
    following_ns: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    restoring_ns: int = 0


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A sequence is over and has left the batch; `detail` is an exception's class name when it failed.

    One is lost when the whole batch was: the exception, whose class name is `detail`, may be another one's fault.
    One is refused when its grammar can't be kept to: then `detail` says why, in words that may quote the grammar, and
    `param` is that of its constraint.
    """

    sequence_id: int
    reason: EndReason
    stamps: Stamps
    detail: str | None = None
    param: str | None = None


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """How likely the model found the token that a sequence got in this step, and the most likely ones, best first.

    Natural logarithms, of the model's own distribution: before bias, penalties, temperature and filters.
    """

    sequence_id: int
    logprob: float
    top_token_ids: list[int]
    top_logprobs: list[float]


class Step(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One step of the whole batch.

    `tokens` alternates sequence id and token id, one pair a decoded row. An end token is part of `tokens`. Those of
    `admitted` that had been left in the queue by a step before are in `waited`. `logprobs` has one entry for each token
    of a sequence that asked for them. `cached` alternates the id of one that was admitted and how many tokens of its
    prompt came from the prefix cache, for those that had some there. `prompt_logprobs` are those of prompts
    that were scored in this step, token by token; there is none of a prompt's first. `following` alternates the id of
    one that waits from now on and of the one that reads what both begin with.
    """

    at_ns: int
    tokens: list[int] = []
    admitted: list[int] = []
    ended: list[Ended] = []
    waited: list[int] = []
    logprobs: list[Logprobs] = []
    cached: list[int] = []
    prompt_logprobs: list[Logprobs] = []
    following: list[int] = []


class Vectors(msgspec.Struct, frozen=True, array_like=True):
    """Vectors of one request, in the order of `positions`: those of its inputs, counted from 0.

    `numbers` are those of all of them one after another, in little-endian float32.
    """

    sequence_id: int
    positions: list[int]
    numbers: bytes


class EmbedStamps(msgspec.Struct, array_like=True):
    """The engine's record of one request for vectors; None where it wasn't reached.

    `batches` are the forward passes that had inputs of it, `batch_width_sum` and `batch_width_max` how many inputs
    those had, of whichever request.
    """

    received_ns: int
    admitted_ns: int | None = None
    finished_ns: int | None = None
    batches: int = 0
    batch_width_sum: int = 0
    batch_width_max: int = 0


class Embedded(msgspec.Struct, frozen=True, array_like=True):
    """A request for vectors is over; `detail` is an exception's class name when it failed."""

    sequence_id: int
    reason: EndReason
    stamps: EmbedStamps
    detail: str | None = None


class Pass(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One forward pass over a batch of inputs: their vectors, and the requests that came to their end with it.

    `admitted` are the requests whose first inputs were in it; those that a pass before had left in the queue are in
    `waited`.
    """

    began_ns: int
    vectors: list[Vectors] = []
    admitted: list[int] = []
    ended: list[Embedded] = []
    waited: list[int] = []


class Room(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What memory is for from now on: stored prompts, those with keys and values of sequences, and these alone."""

    prefix_cache_bytes: int
    shared_bytes: int
    kv_budget_bytes: int


class StepTimes(msgspec.Struct, frozen=True, array_like=True):
    """`count` steps whose durations fell between the same two of `STEP_BOUNDS_S`, and their sum."""

    count: int
    total_ns: int


class BatchPoint(msgspec.Struct, frozen=True, array_like=True):
    """A step in which so many rows decode and nothing is read takes `step_ns`: the median of the last ones."""

    rows: int
    step_ns: int


class PrefixFiles(msgspec.Struct, frozen=True, array_like=True):
    """The prefix cache's files: how many bytes there are, and what became of files since the engine began.

    `corrupt` ones, and those of another model, were removed; `failed` ones could not be written; `skipped` ones were
    over the limit of a day, or memory gave them up before the disk took them.
    """

    nbytes: int = 0
    written: int = 0
    read: int = 0
    corrupt: int = 0
    failed: int = 0
    skipped: int = 0


class Vitals(msgspec.Struct, frozen=True, array_like=True):
    """How the engine is. `steps` are those since the last report; empty groups are left out.

    `active_bytes` is all that MLX holds for arrays, weights and keys and values among them; `pooled_bytes` is what it
    keeps of freed ones. `kv_bytes` is None for a model whose cache can't tell. `sequence_ids` are those that wait and
    run, `row_ids` those that have a place in the batch's tensors, and `newest_id` is the last that was taken in.
    `progress` grows with each token that is read or made, each file and each end: with work and no growth it hangs.
    `promised_kv_bytes` is what keys and values of those that run may grow to; 0 where nobody can tell. `batch_curve` is
    how long steps take of each width that there has been.
    """

    waiting: int
    running: int
    kv_bytes: int | None
    active_bytes: int
    pooled_bytes: int
    prefix_cache_bytes: int = 0
    steps: list[StepTimes] = []
    sequence_ids: list[int] = []
    row_ids: list[int] = []
    newest_id: int = 0
    prefix_files: PrefixFiles | None = None
    progress: int = 0
    promised_kv_bytes: int = 0
    batch_curve: list[BatchPoint] = []


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All is well; sent once a second, with work or without."""

    at_ns: int
    vitals: Vitals


ToEngine = Submit | Embed | Cancel | Room
FromEngine = Loading | Ready | LoadFailed | Step | Pass | Heartbeat
