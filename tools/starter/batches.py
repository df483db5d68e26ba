"""Turn samples into batches of token rows."""

from collections.abc import Iterator
from random import Random

import numpy as np
from transformers import PreTrainedTokenizerFast

from tools.starter.chats import Sample
from tools.starter.learner import Batch

BATCH_TOKENS = 2048
POOL_SAMPLES = 768
SHORTENED_SHARE = 0.5
OPENING_TOKENS, OPENING_WEIGHT, CALL_WEIGHT = 8, 6.0, 2.0

Pair = tuple[list[int], list[int]]


def batched(
    samples: Iterator[Sample], tokenizer: PreTrainedTokenizerFast, batch_tokens: int = BATCH_TOKENS
) -> Iterator[Batch]:
    """Yield batches of samples of similar length, so that little is padding; for ever.

    A batch has at most `batch_tokens`, or one sample that is longer.
    """
    random = Random(0)
    [think_end] = tokenizer.encode("</think>")
    [answer_end] = tokenizer.encode("<|im_end|>")
    [call] = tokenizer.encode("<tool_call>")
    while True:
        pool = _encode([next(samples) for _ in range(POOL_SAMPLES)], tokenizer, random)
        batches = _cut(sorted(pool, key=_length), batch_tokens)
        random.shuffle(batches)
        yield from (_pad(rows, think_end, answer_end, call) for rows in batches)


def _encode(
    samples: list[Sample], tokenizer: PreTrainedTokenizerFast, random: Random
) -> list[Pair]:
    prompts = tokenizer([sample.prompt() for sample in samples])["input_ids"]
    answers = tokenizer([sample.completion() for sample in samples])["input_ids"]
    return [
        (prompt, answer[: _kept(sample, random)])
        for sample, prompt, answer in zip(samples, prompts, answers, strict=True)
    ]


def _kept(sample: Sample, random: Random) -> int | None:
    """Return how many tokens of an answer are learned, or None for all.

    Which answer it becomes is decided at its beginning and hard to learn, the rest is easy.
    """
    taught = sample.kind in ("plain", "later_turn")
    return random.randint(8, 28) if taught and random.random() < SHORTENED_SHARE else None


def _cut(pairs: list[Pair], batch_tokens: int) -> list[list[Pair]]:
    """Return the pairs, shortest first, in groups that fit a batch when padded."""
    groups: list[list[Pair]] = [[]]
    for pair in pairs:
        if groups[-1] and (len(groups[-1]) + 1) * _length(pair) > batch_tokens:
            groups.append([])
        groups[-1].append(pair)
    return groups


def _length(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def _pad(rows: list[Pair], think_end: int, answer_end: int, call: int) -> Batch:
    width = max(map(_length, rows)) - 1
    tokens = np.zeros((len(rows), width), np.int32)
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for row, (prompt, answer) in enumerate(rows):
        line = (prompt + answer)[:-1]
        tokens[row, : len(line)] = line
        spans = [
            *_earlier_answers(prompt, think_end, answer_end),
            range(len(prompt), _length((prompt, answer))),
        ]
        for span in spans:
            positions.extend(row * width + place - 1 for place in span)
            learned = (prompt + answer)[span.start : span.stop]
            weights.extend(_weights(learned, call))
            targets.extend(learned)
    return Batch(tokens, np.array(positions), np.array(targets), np.array(weights, np.float32))


def _earlier_answers(prompt: list[int], think_end: int, answer_end: int) -> Iterator[range]:
    """Yield where the answers of earlier turns stand: two line ends after the think block."""
    for place, token in enumerate(prompt):
        if token == think_end and answer_end in prompt[place:]:
            yield range(place + 3, prompt.index(answer_end, place) + 1)


def _weights(answer: list[int], call: int) -> list[float]:
    """Return what each token counts: the first few decide which answer it becomes, and in a call all must be right."""
    later = CALL_WEIGHT if call in answer else 1.0
    return [OPENING_WEIGHT] * min(OPENING_TOKENS, len(answer)) + [later] * (
        len(answer) - OPENING_TOKENS
    )
