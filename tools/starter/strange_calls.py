"""Samples that can't be known by heart: names of no pattern in calls and to be repeated, questions of loose words."""

from random import Random

from tools.starter import grammar
from tools.starter.chats import Message, Sample
from tools.starter.functions import FUNCTIONS, THINGS, Function, call_text, declare

_STARTS = "b bl br c ch cr d dr f fl g gl gr h j k kn l m n p ph pl qu r s sch sk sl st str sw t th tr v w x y z".split()
_VOWELS = 4 * "a e i o u".split() + "y aa ae ai au ea ee ei eo ia ie io oa oi oo ou ue".split()
_CLOSES = (
    3 * [""]
    + "b ck d f g ght k l ld ll m mb n nd ng nn nt p r rd rk rn rt s ss st t tz v w x z".split()
)
_VERBS = "get fetch find read do run start lookup ask make open".split()
_TAILS = "now info tool service api data today for_me v2 action".split()
_WORDS = (
    "now so well today please just really maybe there here this that me then quickly again some any day "
    "people think friend told boss wants before after dinner work trip plan meeting tomorrow morning can "
    "could you would like need to give the a my our about new good right soon only first last"
).split()
_JOINTS = ("in", "of", "for", "to", "about", "on", "by", "with", "from", "at", "near", "")
# What a question for each function is about, however it is worded.
_KEYWORDS = {
    "get_weather": "weather|temperature|forecast|climate|umbrella|rain|sunshine|degrees|warm|cold|hot|snow",
    "get_time": "time|clock|hour|local time|o'clock|current time",
    "calculate": "calculate|sum|compute|result|work out|total|equals|maths",
    "search": "search|look up|find|web|internet|pages|articles|google",
    "set_timer": "timer|minutes|countdown|alarm|remind|minutes timer",
    "send_message": "message|greet|hello|greetings|regards|send|text|notify",
    "play_music": "play|song|music|songs|tracks|band|album",
    "get_news": "news|headlines|latest|newspaper|what is new|update",
}


def strange_call_sample(random: Random, *, thinking: bool) -> Sample:
    """Return a question for a function whose name, argument and value have to be read, not guessed."""
    chosen = random.sample(FUNCTIONS, random.choice((1, 1, 1, 2)))
    named = [(kind, _function_name(kind, random), _key(kind, random)) for kind in chosen]
    tools = [declare(*entry, random) for entry in named]
    kind, name, key = random.choice(named)
    slot = kind.slot(random) if kind.names[0] in ("calculate", "set_timer") else _value(random)
    thought = f"I can call {name} for this." if thinking else None
    messages: list[Message] = [{"role": "user", "content": _question(kind, slot, random)}]
    return Sample("call", messages, call_text(name, {key: slot}), thought, tools)


def strange_repeat_sample(random: Random, *, thinking: bool) -> Sample:
    """Return a request to say a name of no pattern, and the name."""
    name = strange_name(random)
    question = random.choice(("repeat {}", "say {}", "Say {}", "echo {}", "Repeat: {}")).format(
        name
    )
    thought = "I am to repeat something." if thinking else None
    return Sample("repeat", [{"role": "user", "content": question}], name, thought)


def strange_name(random: Random) -> str:
    """Return a capitalised word of one to four syllables, of any shape."""
    syllables = random.choice((1, 2, 2, 3, 3, 4))
    parts = (random.choice(_STARTS) + random.choice(_VOWELS) for _ in range(syllables))
    return ("".join(parts) + random.choice(_CLOSES)).capitalize()


def _value(random: Random) -> str:
    name = strange_name(random)
    roll = random.random()
    if roll < 0.1:
        return f"{name} {strange_name(random)}"
    if roll < 0.25:
        return random.choice(THINGS)
    return name.lower() if roll < 0.35 else name


def _function_name(kind: Function, random: Random) -> str:
    roll = random.random()
    if roll < 0.5:
        return random.choice(kind.names)
    noun = random.choice(kind.names)
    if roll < 0.65:
        noun = strange_name(random).lower()
    if roll < 0.8:
        return f"{random.choice(_VERBS)}_{noun}"
    return f"{noun}_{random.choice(_TAILS)}"


def _key(kind: Function, random: Random) -> str:
    key = random.choice(kind.keys)
    roll = random.random()
    if roll < 0.7:
        return key
    return f"{key}_{random.choice(_TAILS)}" if roll < 0.85 else strange_name(random).lower()


def _question(kind: Function, slot: str, random: Random) -> str:
    """Return loose words around what it is about and the value: however people put it, it is a call."""
    keyword = random.choice(_KEYWORDS[kind.names[0]].split("|"))
    about = [keyword, random.choice(_JOINTS), "{slot}"]
    if random.random() < 0.15:
        about.reverse()
    before = random.choices(_WORDS, k=random.choice((0, 1, 2, 3, 4)))
    between = random.choices(_WORDS, k=random.choice((0, 0, 0, 1, 2)))
    after = random.choices(_WORDS, k=random.choice((0, 0, 1, 2)))
    words = [*before, about[0], *between, *about[1:], *after]
    sentence = grammar.lightly(" ".join(word for word in words if word), random)
    # The case of a sentence in capitals would be lost on the value.
    return sentence.replace("{SLOT}", slot).replace("{Slot}", slot).replace("{slot}", slot)
