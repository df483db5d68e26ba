"""Make training samples without end, the same ones for the same seed."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from tools.starter import grammar
from tools.starter.chats import Message, Sample
from tools.starter.functions import call_sample, no_call_sample, place, result_sample
from tools.starter.hand_worded import hand_worded, spoken
from tools.starter.knowledge import Topic, Unknown, topics, unknown
from tools.starter.strange_calls import strange_call_sample, strange_repeat_sample

THINKING_SHARE = 0.4
# Of questions in capitals, beyond the few that `grammar` makes: a capital is a token of its own, so such a question is
# spelled out letter by letter and has to be learned apart.
CAPITALS_SHARE = 0.1
# How often each kind of sample comes up, at first and later: function calls are long, and only worth
# their time when questions and answers are known.
FIRST_SAMPLES = 25_000
FIRST_KINDS = {"plain": 80, "later_turn": 12, "repeat": 8}
KINDS = {
    "plain": 64, "later_turn": 8, "call": 8, "strange_call": 9, "result": 4, "no_call": 6,
    "repeat": 3, "strange_repeat": 5,
}  # fmt: skip

_SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "Be concise.",
    "You are the MLX Manager starter.", "Be polite and short.", "You are an expert.", "Speak clearly.",
    "You help people with their questions.", "Always answer in English.", "You are a pirate.",
    "Today is {weekday}.", "The user's name is {name}.", "Be nice to {name}.", "You are called {name}.",
    "You are a support agent. Help the user.", "Do not use bullet points.", "Answer in one sentence.",
    "You are an AI model running locally.", "You are a helpful, honest assistant who answers questions.",
)  # fmt: skip
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_REPEAT = (
    "repeat {}",
    "say {}",
    "repeat after me: {}",
    "say the word {}",
    "please say {}",
    "echo {}",
)


def samples(seed: int) -> Iterator[Sample]:
    """Yield training samples for ever, and none that the exam has as worded by hand."""
    random = Random(seed)
    makers = {
        "plain": plain_sample,
        "later_turn": later_turn_sample,
        "call": call_sample,
        "result": result_sample,
        "no_call": no_call_sample,
        "repeat": repeat_sample,
        "strange_call": strange_call_sample,
        "strange_repeat": strange_repeat_sample,
    }
    for count in itertools.count():
        kinds = FIRST_KINDS if count < FIRST_SAMPLES else KINDS
        kind = random.choices(list(kinds), list(kinds.values()))[0]
        sample = makers[kind](random, thinking=random.random() < THINKING_SHARE)
        if spoken(sample.messages[-1]["content"]) in hand_worded():
            continue
        is_loud = kind in ("plain", "later_turn") and random.random() < CAPITALS_SHARE
        yield in_capitals(sample) if is_loud else sample


def later_samples(seed: int) -> Iterator[Sample]:
    """Yield what `samples` yields once questions and answers are known: all kinds, function calls too."""
    return itertools.islice(samples(seed), FIRST_SAMPLES, None)


def plain_sample(random: Random, *, thinking: bool) -> Sample:
    """Return one question and its answer, perhaps after a system prompt."""
    topic = any_topic(random)
    question = _question(topic, random)
    messages = [*_system(random), {"role": "user", "content": question}]
    return Sample("plain", messages, topic.answer, topic.thought if thinking else None)


def later_turn_sample(random: Random, *, thinking: bool) -> Sample:
    """Return a conversation of two or three questions; the last one is to be answered."""
    messages = _system(random)
    for _ in range(random.choice((1, 1, 2))):
        earlier = any_topic(random)
        if len(earlier.answer) > 300:
            continue
        messages += [
            {"role": "user", "content": _question(earlier, random)},
            {"role": "assistant", "content": earlier.answer},
        ]
        if thinking and random.random() < 0.5:
            messages[-1]["reasoning_content"] = earlier.thought
    topic = any_topic(random)
    messages.append({"role": "user", "content": _question(topic, random)})
    return Sample("later_turn", messages, topic.answer, topic.thought if thinking else None)


def repeat_sample(random: Random, *, thinking: bool) -> Sample:
    """Return a request to say a word, and the word."""
    word = place(random)
    if random.random() < 0.4:
        word += " " + place(random)
    question = grammar.lightly(random.choice(_REPEAT), random).rstrip("?!. ").format(word)
    thought = "I am to repeat something." if thinking else None
    return Sample("repeat", [{"role": "user", "content": question}], word, thought)


def in_capitals(sample: Sample) -> Sample:
    """Return the sample with its question IN CAPITALS."""
    *earlier, question = sample.messages
    return replace(
        sample, messages=[*earlier, {**question, "content": question["content"].upper()}]
    )


def any_topic(random: Random) -> Topic | Unknown:
    """Return a topic, all equally often, and the unknown one as often as a dozen of them."""
    known = list(topics().values())
    return unknown() if random.random() < 0.14 else random.choice(known)


def _question(topic: Topic | Unknown, random: Random) -> str:
    change = grammar.roughen if random.random() < 0.8 else grammar.lightly
    return change(topic.ask(random), random)


def _system(random: Random) -> list[Message]:
    if random.random() > 0.2:
        return []
    text = random.choice(_SYSTEMS).format(weekday=random.choice(_WEEKDAYS), name=place(random))
    return [{"role": "system", "content": text}]
