"""What is taught: topics with their answers and the ways to ask for them, read from `topics/`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from tools.starter import grammar

TOPICS = Path(__file__).with_name("topics")
UNKNOWN_TOPIC = "unknown"
_FORMS = {"nouns": grammar.NOUN_FORMS, "todo": grammar.TODO_FORMS, "can": grammar.CAN_FORMS}
_SYLLABLES = "ba ke lo mi ru tan shi gor vel po zu nim dra fe qua sto li wex yor pin".split()


@dataclass(frozen=True)
class Topic:
    """One answer, and patterns of questions by the form of sentence that they fit."""

    id: str
    about: str
    answer: str
    patterns: dict[str, tuple[str, ...]]

    @property
    def thought(self) -> str:
        """What the model says to itself before it answers."""
        return f"This is about {self.about}."

    def ask(self, random: Random) -> str:
        """Return one of the taught questions, in plain lower case."""
        form = random.choices(list(self.patterns), [_weight(form) for form in self.patterns])[0]
        phrase = grammar.expand(random.choice(self.patterns[form]), random)
        return phrase if form == "says" else random.choice(_FORMS[form]).format(phrase)


def _weight(form: str) -> float:
    return {"says": 1.3, "nouns": 1.0, "todo": 1.0, "can": 0.7}[form]


@cache
def topics() -> dict[str, Topic]:
    """Return all taught topics by id."""
    found = {}
    for path in sorted(TOPICS.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("topic", []):
            forms = {form: tuple(entry[form]) for form in (*_FORMS, "says") if form in entry}
            found[entry["id"]] = Topic(entry["id"], entry["about"], entry["answer"], forms)
    return found


@dataclass(frozen=True)
class Unknown:
    """Questions that the model can't answer, and what it says to them."""

    answer: str
    asks: tuple[str, ...]
    words: dict[str, tuple[str, ...]]

    thought = "I have not learned this."

    def ask(self, random: Random) -> str:
        """Return a question from outside the model's knowledge, in plain lower case."""
        sentence = grammar.expand(random.choice(self.asks), random)
        for name, values in self.words.items():
            while f"{{{name}}}" in sentence:
                sentence = sentence.replace(f"{{{name}}}", random.choice(values), 1)
        while "{number}" in sentence:
            sentence = sentence.replace("{number}", str(random.randrange(1000)), 1)
        while "{nonsense}" in sentence:
            sentence = sentence.replace("{nonsense}", nonsense(random), 1)
        return sentence


@cache
def unknown() -> Unknown:
    """Return what lies outside the model's knowledge."""
    entry = tomllib.loads((TOPICS / "unknown.toml").read_text(encoding="utf-8"))
    words = {name: tuple(values) for name, values in entry["words"].items()}
    return Unknown(entry["answer"], tuple(entry["asks"]), words)


def nonsense(random: Random) -> str:
    """Return a word that means nothing."""
    return "".join(random.choices(_SYLLABLES, k=random.randint(1, 4)))
