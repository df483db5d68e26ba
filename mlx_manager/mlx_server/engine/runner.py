"""Runs sequences through one model by mlx-lm's `BatchGenerator`.

Only this file, `lanes` and `decode_batch` know that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.batch_api import check_batch_api
from mlx_manager.mlx_server.engine.decode_batch import SlottedGenerator
from mlx_manager.mlx_server.engine.drawing import Drawing, drawing_for, processors_for
from mlx_manager.mlx_server.engine.grammar import Matcher
from mlx_manager.mlx_server.engine.lanes import LanedGenerator
from mlx_manager.mlx_server.engine.logprobs import most_likely
from mlx_manager.mlx_server.engine.messages import (
    Logprobs,
    PrefixFiles,
    Submit,
)
from mlx_manager.mlx_server.engine.prefix_cache import Match, PrefixCache, no_match
from mlx_manager.mlx_server.engine.prefix_disk import Fetch, PrefixDisk
from mlx_manager.mlx_server.engine.prompt_score import PromptScore
from mlx_manager.mlx_server.engine.read_prompt import ReadPrompt
from mlx_manager.mlx_server.engine.row_state import (
    RowState,
    caches_for,
    kinds_of,
    plain_layers,
    state_of,
)
from mlx_manager.mlx_server.engine.sampling import (
    greedy,
)
from mlx_manager.mlx_server.engine.sequence import Lane
from mlx_manager.mlx_server.engine.single_row import as_batch
from mlx_manager.mlx_server.engine.snapshots import snapshot_places

LEAST_REUSED_TOKENS = 16
# The end of an answer whose grammar was too complex to go on with.
GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token of one sequence; `end` says that it was the last one, and why: `stop`, `length`, or GIVEN_UP."""

    sequence_id: int
    token_id: int
    end: str | None


@dataclass(frozen=True, slots=True)
class Scored:
    """What a step has scored of prompts: whose, the log-probabilities, and who wanted nothing else and is done."""

    read_by: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    done: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """What one step did: a chunk of prompt for each id in `prefilled`, and a token for each row that decodes.

    A row that is alone may have several tokens at once; `rows` is how many rows had any. `proposed` says, by the ids of
    theirs, how many tokens were proposed and how many of those were right.

    `logprobs` has one entry for each token whose sequence asked for them. `read` has the prompts, by the ids of those
    that read them, from which others can go on now; `scored` is what was done about log-probabilities of prompts.
    """

    prefilled: list[int]
    tokens: list[TokenOutput]
    logprobs: list[Logprobs] = field(default_factory=list)
    read: dict[int, ReadPrompt] = field(default_factory=dict)
    scored: Scored = field(default_factory=Scored)
    rows: int = 0
    proposed: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Memory:
    """What MLX holds, in bytes: for keys and values of rows (None: unknown), for all arrays, and of freed ones.

    `prefix_cache_bytes` are part of `active_bytes`, as are those for rows.
    """

    kv_bytes: int | None
    active_bytes: int
    pooled_bytes: int
    prefix_cache_bytes: int
    prefix_files: PrefixFiles | None = None


class Runner:
    """Runs sequences through one model, together. Belongs to the thread that loaded the model.

    Without `prefix_cache_bytes` no prompts are stored; with 0 there is no room for them now.
    """

    def __init__(
        self,
        model: Any,
        max_batch: int,
        prefix_cache_bytes: int | None = None,
        shared_bytes: int | None = None,
        prefix_disk: PrefixDisk | None = None,
        lookup_tokens: int = 0,
    ) -> None:
        check_batch_api(BatchGenerator)
        self._model = model
        self._kinds = kinds_of(model)
        self._plain_layers = plain_layers(model)
        self._stores_prompts = prefix_cache_bytes is not None and self._kinds.is_supported
        self._prefix_cache_bytes = prefix_cache_bytes or 0
        self._prefixes = PrefixCache(
            self._prefix_cache_bytes,
            needs_states=self._kinds.needs_states,
            disk=prefix_disk if self._stores_prompts else None,
        )
        self._shared_bytes = shared_bytes
        self._max_batch = max_batch
        self._lookup_tokens = lookup_tokens
        self._stop_sequences: dict[tuple[int, ...], StopSequences] = {}
        self.reset()

    def reset(self) -> None:
        """Drop every row and start with an empty batch."""
        self._uid_of: dict[int, int] = {}
        self._sequence_of: dict[int, int] = {}
        # How far each row has read its prompt, and the places behind which its state can be gone on from.
        self._read_tokens: dict[int, int] = {}
        self._places: dict[int, list[int]] = {}
        self._top_logprobs: dict[int, int] = {}
        self._matchers: dict[int, Matcher] = {}
        self._shared: set[int] = set()
        self._read: dict[int, ReadPrompt] = {}
        self._scores: dict[int, tuple[PromptScore, Drawing]] = {}
        options: dict[str, Any] = {"sampler": greedy, "completion_batch_size": self._max_batch}
        self._generator = (
            LanedGenerator(self._model, **options)
            if self._plain_layers is None
            else SlottedGenerator(
                self._model,
                self._plain_layers,
                keeps_rows=self._stores_prompts,
                lookup_tokens=self._lookup_tokens,
                note_read=self._note_read,
                **options,
            )
        )

    def insert(
        self,
        submit: Submit,
        matcher: Matcher | None = None,
        read: ReadPrompt | None = None,
        lane: Lane = None,
    ) -> Match:
        """Let a sequence join with the next step, and return what needs not be computed of its prompt.

        One with a constraint needs the `matcher` of its grammar; `read` is what another has read of the prompt. What is
        to be computed is read in `lane`. Raises ValueError when mlx-lm refuses it.
        """
        self._generator.enter(lane)
        drawing = drawing_for(submit, matcher)
        if submit.scores_prompt and len(submit.token_ids) > 1:
            score = PromptScore(self._model, submit, make_prompt_cache(self._model))
            self._scores[submit.sequence_id] = score, drawing
            return no_match("prompt_logprobs")
        if read is not None:
            self._join(submit, [submit.known_token_ids[read.tokens :]], read.caches(), drawing)
            return Match(RowState(read.tokens, [], []), None)
        match = self._match(submit.known_token_ids)
        caches = caches_for(self._model, match.row)
        uid = self._join(submit, self._segments(submit, match), caches, drawing)
        if submit.siblings:
            self._share(uid, len(submit.token_ids) - 1, match)
        return match

    def _join(
        self, submit: Submit, segments: list[list[int]], caches: list[Any], drawing: Drawing
    ) -> int:
        """Have mlx-lm read `segments` behind what `caches` hold of a prompt, and return its name for the row."""
        sampler, matcher = drawing
        token_ids = submit.known_token_ids
        read_tokens = len(token_ids) - sum(map(len, segments))
        uid: int
        [uid] = self._generator.insert_segments(
            [segments],
            max_tokens=[_most_tokens(submit)],
            caches=[as_batch(caches)],
            all_tokens=[token_ids[:read_tokens]],
            samplers=[sampler],
            logits_processors=[processors_for(sampler)],
            stop_sequences=[self._stop_sequences_for(submit.end_token_ids)],
        )
        self._uid_of[submit.sequence_id] = uid
        self._sequence_of[uid] = submit.sequence_id
        self._read_tokens[submit.sequence_id] = read_tokens
        # The last token is read with the first step of decoding, the one before it is the last place.
        ends = accumulate(map(len, segments), initial=read_tokens)
        self._places[submit.sequence_id] = [min(end, len(token_ids) - 1) for end in ends]
        if submit.top_logprobs is not None and submit.max_tokens > 0:
            self._top_logprobs[uid] = submit.top_logprobs
        if matcher is not None:
            self._matchers[uid] = matcher
        return uid

    def fetch(self, submit: Submit) -> list[Fetch]:
        """Have read from files what `insert` would need of them; nothing where it needs none."""
        if submit.scores_prompt or not self.has_room:
            return []
        if self.stored_tokens(submit.known_token_ids) < LEAST_REUSED_TOKENS:
            return []
        return self._prefixes.fetch(submit.known_token_ids)

    def take(self, fetches: list[Fetch]) -> bool:
        """Take in some of what was read; whether a sequence that needs it can be inserted without waiting."""
        return self._prefixes.take(fetches)

    def remove(self, sequence_id: int) -> None:
        """Take a row out at whatever stage it is; what it has read stays in the prefix cache."""
        self._scores.pop(sequence_id, None)
        # Prompts may stand still before their first piece: mlx-lm can't take out of a batch what isn't in its caches.
        read_tokens, places = self._read_tokens.get(sequence_id, 0), self._places.get(sequence_id)
        is_unread = places is not None and read_tokens == 0 < places[-1]
        uid = self._forget(sequence_id)
        if uid is None:
            return
        if not self.has_room or is_unread:
            self._generator.remove([uid])
            return
        removed = self._generator.remove([uid], return_prompt_caches=True)
        if uid in removed:
            self._store(*removed[uid])

    def step(self, chunk_tokens: int, lane: Lane = None) -> RunnerOutput:
        """Decode one token of every row that can, then compute up to `chunk_tokens` of each prompt in a lane.

        With 0 prompts stand still; those that have nothing but their last token left go on.
        """
        self._generator.enter(lane)
        scored = self._score(chunk_tokens, lane)
        self._generator.prefill_step_size = chunk_tokens
        prompts, rows = cast("Any", self._generator).next()
        # Behind the step that has begun: what was stored in the one before is computed by now.
        self._prefixes.settle()
        chunks = [row for row in prompts if not row.end_of_prompt] if chunk_tokens else []
        prefilled = [self._sequence_of[row.uid] for row in chunks]
        if prompts and self._plain_layers is None:
            self._note_read(prompts)
        tokens = [
            TokenOutput(self._sequence_of[row.uid], row.token, self._end_of(row)) for row in rows
        ]
        logprobs = self._logprobs(rows) if self._top_logprobs else []
        proposed = self._proposed()
        if self.has_room:
            for row in rows:
                if row.finish_reason is not None:
                    self._store(row.prompt_cache, row.all_tokens)
        self._forget_all(token.sequence_id for token in tokens if token.end)
        read, self._read = self._read, {}
        return RunnerOutput(
            scored.read_by + prefilled,
            tokens,
            logprobs,
            read,
            scored,
            len({row.uid for row in rows}),
            proposed,
        )

    @property
    def has_room(self) -> bool:
        """Whether prompts are stored, and have any memory now."""
        return self._stores_prompts and self._prefix_cache_bytes > 0

    @property
    def row_ids(self) -> list[int]:
        """The sequences that have a place in the batch."""
        return list(self._uid_of)

    def close(self, timeout_s: float) -> None:
        """Have the files of the prefix cache written that wait to be, as long as there is time."""
        self._prefixes.close(timeout_s)

    def stored_tokens(self, token_ids: list[int]) -> int:
        """Return how many of a prompt's tokens need not be computed."""
        return self._prefixes.shared(token_ids)

    def read_tokens(self, sequence_id: int) -> int:
        """Return how many tokens of its prompt a row has read."""
        return self._read_tokens[sequence_id]

    def usable_tokens(self, sequence_id: int, tokens: int) -> int:
        """Return how many of the first `tokens` of a row's prompt others can go on from once it has read them."""
        if not self.has_room:
            return 0
        if not self._kinds.needs_states:
            return tokens
        return max((one for one in self._places[sequence_id] if one <= tokens), default=0)

    def store(self, sequence_id: int) -> None:
        """Keep in the prefix cache what a row has read up to now."""
        uid = self._uid_of[sequence_id]
        self._store(*self._generator.extract_cache([uid])[uid])

    def set_room(self, prefix_cache_bytes: int, shared_bytes: int) -> None:
        """Change what stored prompts may take, alone and with the rows; what they give up, MLX gives back."""
        self._prefix_cache_bytes = prefix_cache_bytes
        self._shared_bytes = shared_bytes
        self._share_budget()
        self._generator.clear_buffers()

    def memory(self) -> Memory:
        """Say what memory is in use; looks at each layer once, computes nothing."""
        self._share_budget()
        self._prefixes.settle()
        return Memory(
            self._kv_bytes(),
            mx.get_active_memory(),
            mx.get_cache_memory(),
            self._prefixes.nbytes,
            self._prefixes.files,
        )

    def _score(self, chunk_tokens: int, lane: Lane) -> Scored:
        """Read on in the prompt that is to be scored and has this lane; what is read of it joins the batch."""
        if lane is None or lane not in self._scores or chunk_tokens == 0:
            return Scored()
        sequence_id, (score, drawing) = lane, self._scores[lane]
        logprobs = score.read(chunk_tokens)
        if not score.is_done:
            return Scored([sequence_id], logprobs)
        del self._scores[sequence_id]
        if score.submit.max_tokens == 0:
            return Scored([sequence_id], logprobs, [sequence_id])
        tokens = len(score.submit.token_ids) - 1
        read = ReadPrompt.of(tokens, score.caches)
        if score.submit.siblings:
            self._read[sequence_id] = read
        self._join(score.submit, [score.submit.token_ids[tokens:]], read.caches(), drawing)
        return Scored([sequence_id], logprobs)

    def _share(self, uid: int, tokens: int, match: Match) -> None:
        """Have others go on from the prompt of a row, at once where all of it but the last token is stored."""
        if match.tokens < tokens:
            self._shared.add(uid)
        else:
            self._read[self._sequence_of[uid]] = ReadPrompt.of(
                tokens, caches_for(self._model, match.row)
            )

    def _keep_shared(self, row: Any) -> None:
        """Keep what a row has read when its last token is all that is left: only there can any kind of cache be cut."""
        read_tokens, all_tokens = row.progress
        if row.uid in self._shared and not row.end_of_prompt and read_tokens == all_tokens - 1:
            self._shared.remove(row.uid)
            caches, token_ids = self._generator.extract_cache([row.uid])[row.uid]
            self._read[self._sequence_of[row.uid]] = ReadPrompt.of(len(token_ids), caches)

    def _note_read(self, prompts: list[Any]) -> None:
        """Remember how far prompts are read, and keep what rows leave where they are to leave something."""
        self._share_budget()
        for row in prompts if self._shared else ():
            self._keep_shared(row)
        for row in prompts:
            sequence_id = self._sequence_of[row.uid]
            if row.end_of_prompt:
                continue
            done, whole = row.progress
            length = self._places[sequence_id][-1] + 1
            self._read_tokens[sequence_id] = length - whole + done
            if row.end_of_segment and self.has_room and self._kinds.needs_states:
                self.store(sequence_id)

    def _share_budget(self) -> None:
        """Let the prefix cache have what running rows leave of the bytes for both."""
        if self._shared_bytes is not None:
            kv_bytes = self._kv_bytes() or 0
            if kv_bytes > self._shared_bytes and isinstance(self._generator, SlottedGenerator):
                self._generator.shrink()
                kv_bytes = self._kv_bytes() or 0
            left = max(self._shared_bytes - kv_bytes, 0)
            self._prefixes.resize(min(self._prefix_cache_bytes, left))

    def _match(self, token_ids: list[int]) -> Match:
        if not self._stores_prompts:
            return no_match("off" if self._kinds.is_supported else "unsupported_model")
        if not self.has_room:
            return no_match("no_room")
        # Every chat of a model begins with the same few tokens; to bring those back costs more than to read them.
        return self._prefixes.match(token_ids, LEAST_REUSED_TOKENS)

    def _segments(self, submit: Submit, match: Match) -> list[list[int]]:
        """Return what is to be computed of a prompt, cut where snapshots shall be taken if the model needs any.

        That is behind its messages, and where it leaves what is stored: the next one may leave it there, too.
        """
        token_ids = submit.known_token_ids
        begin, end = match.tokens, len(token_ids)
        cuts = list[int]()
        if self.has_room and self._kinds.needs_states:
            cuts = snapshot_places([*submit.borders, match.shared_tokens], begin, end - 1)
        return [token_ids[a:b] for a, b in pairwise([begin, *cuts, end])]

    def _store(self, caches: list[Any], token_ids: list[int]) -> None:
        if token_ids:
            self._share_budget()
            self._prefixes.store(token_ids, state_of(caches, len(token_ids)))

    def _end_of(self, row: Any) -> str | None:
        reason: str | None = row.finish_reason
        if reason == "stop" and (matcher := self._matchers.get(row.uid)) and matcher.is_given_up:
            return GIVEN_UP
        return reason

    def _logprobs(self, rows: list[Any]) -> list[Logprobs]:
        """Return those that were asked for, of what the rows were drawn from."""
        asked = [row for row in rows if row.uid in self._top_logprobs]
        if not asked:
            return []
        return most_likely(
            [self._sequence_of[row.uid] for row in asked],
            [row.token for row in asked],
            [self._top_logprobs[row.uid] for row in asked],
            mx.stack([row.logprobs for row in asked]),
        )

    def _proposed(self) -> list[tuple[int, int, int]]:
        if not isinstance(self._generator, SlottedGenerator):
            return []
        return [
            (self._sequence_of[one.uid], one.proposed, one.right)
            for one in self._generator.take_proposed()
            if one.uid in self._sequence_of
        ]

    def _kv_bytes(self) -> int | None:
        try:
            kv_bytes: int = self._generator.prompt_cache_nbytes
        except (NotImplementedError, AttributeError):
            # Some of mlx-lm's caches don't count themselves.
            return None
        return kv_bytes

    def _forget_all(self, sequence_ids: Iterable[int]) -> None:
        for sequence_id in sequence_ids:
            self._forget(sequence_id)

    def _forget(self, sequence_id: int) -> int | None:
        uid = self._uid_of.pop(sequence_id, None)
        if uid is not None:
            del self._sequence_of[uid]
            del self._read_tokens[sequence_id], self._places[sequence_id]
            self._top_logprobs.pop(uid, None)
            self._matchers.pop(uid, None)
            self._shared.discard(uid)
            self._read.pop(sequence_id, None)
        return uid

    def _stop_sequences_for(self, end_token_ids: list[int]) -> StopSequences:
        key = tuple(end_token_ids)
        if key not in self._stop_sequences:
            self._stop_sequences[key] = StopSequences([[token_id] for token_id in key])
        return self._stop_sequences[key]


def _most_tokens(submit: Submit) -> int:
    """Return how many tokens mlx-lm is to make. It makes one at least: a prompt that is only read ends there, too."""
    return 1 if submit.max_tokens == 0 else submit.max_tokens - len(submit.made_token_ids)
