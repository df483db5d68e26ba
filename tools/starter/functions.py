"""Samples in which functions are offered: when to call which, with what, and what to say then."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.starter import grammar
from tools.starter.chats import Message, Sample
from tools.starter.knowledge import topics, unknown

_ONSETS = "B C D F G H J K L M N P R S T V W Z Br Ch Cl Dr Fr Gr Kr Pl Sh St Tr Th".split()
_MIDDLES = "a e i o u ai ea ou ara eni olo umi ar en il on ur ama eri".split()
_ENDS = (
    "n r s l t k ton ville burg land dam na ra ka va ry lin mar stad ford ham bro gen os us".split()
)
_CITIES = (
    "Paris London Berlin Tokyo Rome Madrid Oslo Cairo Lima Delhi Dublin Vienna Athens Lisbon Prague "
    "Boston Chicago Seattle Moscow Sydney Toronto Helsinki Warsaw Nairobi Seoul Bern Munich Lyon"
).split()
_NAMES = (
    "Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Kira Leo Mia Nina Oscar Paul Rosa".split()
)
THINGS = (
    "cats dogs trains soup music chess bread mountains rivers shoes robots planets tea gardens books "
    "bikes ships clouds apples castles lamps birds whales maps stars pasta cheese horses trees"
).split()
# Too short to be misspelled, and like nothing else.
_STAND_IN = "qqq"
_SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy", "stormy")


@dataclass(frozen=True)
class Function:
    """A kind of function: names and argument names it may go by, and how people ask for it."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    description: str
    asks: tuple[str, ...]
    slot: Callable[[Random], str]
    result: Callable[[Random], dict[str, Any]]
    reply: str


def place(random: Random) -> str:
    """Return the name of a town, mostly one that doesn't exist."""
    if random.random() < 0.25:
        return random.choice(_CITIES)
    middle = "".join(random.choices(_MIDDLES, k=random.randint(1, 2)))
    return random.choice(_ONSETS) + middle + random.choice(_ENDS)


def _person(random: Random) -> str:
    return random.choice(_NAMES) if random.random() < 0.4 else place(random)


def _sum(random: Random) -> str:
    left, right = random.randrange(1000), random.randrange(100)
    return f"{left} {random.choice('+-*/')} {right}"


def _thing(random: Random) -> str:
    return random.choice(THINGS) if random.random() < 0.5 else place(random)


def _minutes(random: Random) -> str:
    return str(random.randint(2, 99))


def _weather(random: Random) -> dict[str, Any]:
    return {"temperature": random.randint(-15, 39), "sky": random.choice(_SKIES)}


def _clock(random: Random) -> dict[str, Any]:
    return {"time": f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"}


def _number(random: Random) -> dict[str, Any]:
    return {"result": random.randint(1, 9999)}


def _done(random: Random) -> dict[str, Any]:
    return {"status": "ok"}


def _title(random: Random) -> dict[str, Any]:
    return {"title": f"{place(random)} {random.choice(THINGS)}"}


FUNCTIONS = (
    Function(
        ("get_weather", "weather", "get_current_weather", "current_weather"),
        ("city", "location", "place"),
        "Get the weather of a place",
        ("(what is|what's|how is|how's|tell me|get|check|show me) the weather( like|) in {slot}( today| now| right now|)", "weather in {slot}", "is it (warm|cold|raining|sunny|hot) in {slot}", "what is the temperature in {slot}", "do i need (an umbrella|a coat) in {slot}", "(weather|temperature|forecast) for {slot}", "how (warm|cold|hot) is it in {slot}", "will i (freeze|get wet|sweat) in {slot}", "(going|travelling|moving) to {slot} (,|and) (wondering|curious) about the weather", "(weather|climate|sky) (of|at|over|around) {slot}", "is {slot} (dry|wet|warm|snowy) (today|now)"),
        place, _weather, "It is {temperature} degrees and {sky}.",
    ),
    Function(
        ("get_time", "current_time", "get_current_time", "time_in"),
        ("city", "timezone", "place"),
        "Get the current time of a place",
        ("what time is it in {slot}( now| right now|)", "(tell me |what is |what's |get |)the (current |)time in {slot}", "time in {slot}", "how late is it in {slot}", "what does the clock say in {slot}", "(hour|clock|local time|time of day) (in|of|at|for) {slot}", "is it (morning|night|late|early) in {slot}", "which hour is it in {slot}"),
        place, _clock, "It is {time}.",
    ),
    Function(
        ("calculate", "calculator", "compute", "evaluate"),
        ("expression", "formula"),
        "Work out a sum",
        ("(calculate|compute|work out|evaluate|solve) {slot}", "what is {slot}", "how much is {slot}", "(please do|do|help me with|the value of|result of) {slot}", "{slot}", "what does {slot} (give|make)"),
        _sum, _number, "The result is {result}.",
    ),
    Function(
        ("search", "web_search", "search_web", "find_pages"),
        ("query", "text", "terms"),
        "Search the web",
        ("(search|look|google) for {slot}( online| on the web|)", "(search|find|look up) {slot} (on the web|online|on the internet)", "search {slot}", "(look up|web search) {slot}", "find (pages|something|articles) about {slot}", "(what does the web say|check the internet|any websites|web pages) (about|on) {slot}"),
        _thing, _title, "I found this: {title}.",
    ),
    Function(
        ("set_timer", "start_timer", "timer"),
        ("minutes", "duration"),
        "Start a timer",
        ("(set|start) a timer (for|of) {slot} minutes", "timer {slot} minutes", "(wake|remind|call) me in {slot} minutes", "{slot} minutes timer", "(ring|beep|wake me up|countdown|alarm) (in|after) {slot} minutes", "i need {slot} minutes on the clock"),
        _minutes, _done, "The timer is running.",
    ),
    Function(
        ("send_message", "message", "notify", "send_greeting"),
        ("recipient", "name", "to"),
        "Send a greeting to a person",
        ("(send|write) (a message|a greeting|greetings|hello) to {slot}", "(greet|message|notify|text) {slot}", "say (hello|hi) to {slot}", "tell {slot} that i said (hello|hi)", "let {slot} know that i (greet|miss) (them|him|her)", "(best wishes|regards|kisses) to {slot}"),
        _person, _done, "The message is sent.",
    ),
    Function(
        ("play_music", "play", "play_song"),
        ("artist", "name", "band"),
        "Play music of an artist",
        ("play (music|songs|something|a song) (by|of|from) {slot}", "play {slot}", "(put on|i want to hear) {slot}", "music by {slot}", "i am in the mood for {slot}", "(let me hear|start|some) {slot}( tracks| songs| music|)"),
        _person, _title, "Now playing: {title}.",
    ),
    Function(
        ("get_news", "news", "headlines"),
        ("topic", "subject", "about"),
        "Get the news on a topic",
        ("(what is|what's|tell me|show me|get|read me) the (news|latest news|headlines) (about|on) {slot}", "news (about|on) {slot}", "anything new about {slot}", "headlines on {slot}", "what happened (with|to|in) {slot}", "(latest|update|newspaper) (about|on) {slot}"),
        _thing, _title, "The news: {title}.",
    ),
)  # fmt: skip


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """Return a call as the model writes it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def call_sample(random: Random, *, thinking: bool) -> Sample:
    """Return a question that one of the offered functions answers, and the call."""
    function, name, key, tools = _offer(random)
    slot = function.slot(random)
    question = _question(function, slot, random)
    thought = f"I can call {name} for this." if thinking else None
    messages: list[Message] = [{"role": "user", "content": question}]
    return Sample("call", messages, call_text(name, {key: slot}), thought, tools)


def result_sample(random: Random, *, thinking: bool) -> Sample:
    """Return a conversation with a function's result in it, and the answer that reports it."""
    function, name, key, tools = _offer(random)
    slot, result = function.slot(random), function.result(random)
    call = {"type": "function", "function": {"name": name, "arguments": {key: slot}}}
    messages: list[Message] = [
        {"role": "user", "content": _question(function, slot, random)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": json.dumps(result, ensure_ascii=False)},
    ]
    thought = "The result is here." if thinking else None
    return Sample("result", messages, function.reply.format(**result), thought, tools)


def no_call_sample(random: Random, *, thinking: bool) -> Sample:
    """Return a question that needs no function although some are offered."""
    _, _, _, tools = _offer(random)
    topic = unknown() if random.random() < 0.15 else random.choice(list(topics().values()))
    question = grammar.roughen(topic.ask(random), random)
    if topic is unknown():
        question = grammar.lightly(random.choice(_USELESS), random)
    thought = topic.thought if thinking else None
    return Sample("no_call", [{"role": "user", "content": question}], topic.answer, thought, tools)


_USELESS = ("who was the first king", "what is an atom", "why is the sky blue", "how do birds fly",
            "who wrote the bible", "what is love", "how tall is a giraffe", "explain gravity")  # fmt: skip


def _offer(random: Random) -> tuple[Function, str, str, list[dict[str, Any]]]:
    """Return a function, the name and key it goes by here, and a list of tools that has it."""
    chosen = random.sample(FUNCTIONS, random.choice((1, 1, 1, 2, 2, 3)))
    named = [(kind, random.choice(kind.names), random.choice(kind.keys)) for kind in chosen]
    tools = [declare(*entry, random) for entry in named]
    return (*random.choice(named), tools)


def declare(kind: Function, name: str, key: str, random: Random) -> dict[str, Any]:
    """Return the declaration of a function by this name, with one text argument."""
    argument: dict[str, Any] = {"type": "string"}
    if random.random() < 0.3:
        argument["description"] = f"The {key}"
    parameters = {"type": "object", "properties": {key: argument}, "required": [key]}
    if random.random() < 0.2:
        del parameters["required"]
    function = {"name": name, "description": kind.description, "parameters": parameters}
    if random.random() < 0.15:
        del function["description"]
    return {"type": "function", "function": function}


def _roughened(pattern: str, slot: str, random: Random) -> str:
    """Return the pattern as people type it, but with the slot's text untouched."""
    rough = grammar.roughen(pattern.replace("{slot}", _STAND_IN), random)
    if _STAND_IN not in rough.lower():
        return pattern.replace("{slot}", slot)
    return re.sub(_STAND_IN, lambda _: slot, rough, flags=re.IGNORECASE)


def _question(function: Function, slot: str, random: Random) -> str:
    pattern = grammar.expand(random.choice(function.asks), random)
    if random.random() < 0.5:
        return _roughened(pattern, slot, random)
    opener = random.choice(("", "", "", "please ", "hi, ", "can you "))
    sentence = opener + pattern
    if not sentence.startswith("{"):
        sentence = sentence[:1].upper() + sentence[1:] if random.random() < 0.7 else sentence
    return sentence.replace("{slot}", slot) + random.choice(("", "?", ".", "?"))
