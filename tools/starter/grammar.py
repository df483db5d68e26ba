"""Turn short patterns such as `(start|run) it( now|)` into many sentences, and roughen them."""

import re
from random import Random

_CHOICE = re.compile(r"\(([^()]*)\)")

# Different words for one thing, swapped now and then so that recall doesn't hang on a single one.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "start": ("launch", "run", "begin", "boot", "fire up"),
    "show": ("display", "print", "list"),
    "use": ("utilise", "employ", "work with", "try"),
    "find": ("locate", "discover", "look up"),
    "get": ("obtain", "have", "receive"),
    "see": ("view", "look at", "watch"),
    "explain": ("describe", "clarify"),
    "computer": ("machine", "pc", "laptop", "box"),
    "answer": ("reply", "response"),
    "answers": ("replies", "responses"),
    "set": ("define", "specify", "configure"),
    "models": ("llms", "language models", "networks"),
    "send": ("transmit", "pass"),
    "program": ("app", "tool", "software"),
    "limit": ("restrict", "cap"),
    "want": ("would like", "wish"),
    "works": ("functions", "operates"),
    "write": ("type", "put"),
    "many": ("lots of", "several", "multiple"),
    "do": ("can", "does", "should", "would"),
    "can": ("could", "may", "do", "might"),
    "i": ("we", "one", "you", "a user", "people"),
    "my": ("our", "the", "your", "a"),
    "the": ("a", "this", "that", "your", "its"),
    "is": ("was", "would be", "are", "does"),
    "how": ("in what way", "by what means", "what"),
    "what": ("which", "how"),
    "which": ("what",),
    "tell me": ("say", "let me know"),
    "make": ("create", "produce", "get", "let"),
    "run": ("execute", "start", "use", "operate"),
    "running": ("up", "active", "going", "started"),
    "change": ("modify", "alter", "switch", "adjust", "replace"),
    "different": ("another", "other", "new"),
    "download": ("fetch", "pull", "grab", "get"),
    "install": ("set up", "add", "put"),
    "supported": ("possible", "available", "allowed", "accepted", "ok"),
    "need": ("require", "want", "have to have", "depend on"),
    "needed": ("required", "necessary", "mandatory"),
    "long": ("big", "large"),
    "short": ("brief", "small"),
    "slow": ("taking so long", "sluggish"),
    "error": ("problem", "message", "failure"),
    "folder": ("directory", "path", "place"),
    "stop": ("end", "finish", "halt", "quit"),
    "cancel": ("abort", "interrupt", "kill", "stop"),
    "crashes": ("dies", "fails", "breaks", "goes down", "is gone"),
    "happens": ("occurs", "goes on", "is happening", "is done"),
    "recorded": ("saved", "kept", "stored", "logged", "written down"),
    "contain": ("hold", "include", "have in it", "consist of"),
    "settings": ("options", "configuration", "preferences", "variables"),
    "free": ("free of charge", "without paying"),
    "there": ("present", "available"),
    "bigger": ("larger", "smarter", "more powerful", "real"),
    "python": ("python 3", "the interpreter"),
    "private": ("secret", "safe", "confidential"),
    "data": ("information", "text", "stuff"),
    "request": ("call", "query", "http request"),
    "requests": ("calls", "queries", "people", "chats"),
    "does": ("will", "can", "did", "would"),
    "tests": ("unit tests", "test suite", "checks"),
    "code": ("snippet", "example", "source"),
    "it": ("this", "mlx manager", "that", "the app"),
    "mlx manager": ("mlx-manager", "the manager", "this tool", "MLX Manager"),
}

OPENERS = ("hi", "hello", "hey", "ok", "so", "please", "well", "sorry", "um", "now", "quick question",
           "one question", "a question", "just curious", "one more thing", "another question", "and",
           "thanks", "good", "listen", "i wonder", "right", "also", "but", "then", "next", "i am new here",
           "excuse me", "great")  # fmt: skip
CLOSERS = ("please", "thanks", "thank you", "now", "here", "today", "for me", "again", "exactly",
           "in mlx manager", "with mlx manager", "on my machine", "in this app", "in short", "quickly",
           "if i may ask", "in general", "in detail", "in simple words", "by the way", "actually", "then",
           "i forgot", "i am curious", "with this", "in one sentence", "at the moment", "anyway")  # fmt: skip
FILLERS = ("really", "just", "maybe", "actually", "simply", "basically", "kind of", "please", "also",
           "even", "still", "exactly", "somehow", "now", "like", "usually", "normally")  # fmt: skip

ASIDES = ("i am new here.", "i'm a beginner.", "my friend told me about this.", "i have a mac.", "it is late.",
          "i read the readme.", "my boss wants to know.", "hello again.", "i need this for work.", "i'm on linux.",
          "i have tried everything.", "i just found this.", "my colleague asked me.", "for my project.",
          "i have to ask something.", "i'm a bit lost.", "this looks nice.", "it is my first day with it.",
          "i use windows at work.", "bear with me.", "i was wondering,", "let me ask you this:", "say,",
          "there is one thing i don't get:", "i'm writing a small app.", "i'm a student.", "last question:")  # fmt: skip

NOUN_FORMS = ("what is {}", "what's {}", "whats {}", "what are {}", "explain {}", "tell me about {}",
              "{}", "describe {}", "what does {} mean", "define {}", "can you explain {}", "explain {} to me",
              "what do you know about {}", "what exactly is {}", "i don't understand {}", "what do you mean by {}",
              "could you tell me what {} is", "i want to know about {}", "what can you tell me about {}",
              "information about {}", "what is meant by {}", "how does {} work", "do you know {}",
              "help me understand {}", "what about {}", "i have a question about {}", "meaning of {}",
              "why is there {}", "tell me what {} is", "{} explained", "i read about {} what is it",
              "what is {} good for", "what is the use of {}", "where do i find {}", "question about {}",
              "teach me about {}", "more about {}", "say something about {}")  # fmt: skip
TODO_FORMS = ("how do i {}", "how can i {}", "how to {}", "how do you {}", "how would i {}", "how should i {}",
              "i want to {}", "i would like to {}", "i'd like to {}", "can i {}", "is it possible to {}",
              "what is the way to {}", "help me {}", "show me how to {}", "tell me how to {}", "{}",
              "what do i need to do to {}", "what must i do to {}", "could you tell me how to {}",
              "i need to {}", "explain how to {}", "what's the best way to {}", "is there a way to {}",
              "any way to {}", "steps to {}", "i am trying to {}", "how does one {}", "where do i {}",
              "where can i {}", "i'm looking for a way to {}", "what command do i use to {}", "may i {}",
              "i don't know how to {}", "how might i {}", "please {}", "can you {}", "what lets me {}",
              "am i able to {}", "how is it possible to {}", "teach me to {}", "do i have to {}")  # fmt: skip
CAN_FORMS = ("does it {}", "does mlx manager {}", "can it {}", "can mlx manager {}", "will it {}", "do you {}",
             "is it able to {}", "can you {}", "does this {}", "does the server {}", "{}", "could it {}",
             "i want to know if it can {}", "is mlx manager able to {}", "would it {}", "does this app {}",
             "tell me if it can {}", "does mlx-manager {}", "can this {}", "will mlx manager {}")  # fmt: skip


def expand(pattern: str, random: Random) -> str:
    """Return one sentence of a pattern, choosing among the alternatives in its brackets."""
    while match := _CHOICE.search(pattern):
        choice = random.choice(match.group(1).split("|"))
        pattern = pattern[: match.start()] + choice + pattern[match.end() :]
    return " ".join(pattern.split())


def roughen(sentence: str, random: Random) -> str:
    """Return the sentence as people type it: padded, garbled, in any case, with odd punctuation."""
    words = sentence.split()
    if random.random() < 0.4:
        words = _swap_synonyms(words, random)
    if len(words) > 2 and random.random() < 0.25:
        words = _drop_words(words, random)
    if len(words) > 2 and random.random() < 0.12:
        words.insert(random.randrange(len(words)), random.choice(FILLERS))
    if random.random() < 0.12:
        words = _misspell(words, random)
    return _punctuate(_pad(" ".join(words), random), random)


def lightly(sentence: str, random: Random) -> str:
    """Return the sentence with only its case and punctuation varied."""
    return _punctuate(sentence, random)


def _swap_synonyms(words: list[str], random: Random) -> list[str]:
    return [
        random.choice(SYNONYMS[word]) if word in SYNONYMS and random.random() < 0.35 else word
        for word in words
    ]


def _drop_words(words: list[str], random: Random) -> list[str]:
    """Drop a word or so, the small ones rather than the long ones."""
    kept = [word for word in words if random.random() > (0.25 if len(word) < 5 else 0.06)]
    return kept or words


def _misspell(words: list[str], random: Random) -> list[str]:
    index = random.randrange(len(words))
    word = words[index]
    if len(word) < 4:
        return words
    at = random.randrange(1, len(word) - 1)
    garbled = random.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at] + word[at:],
        )
    )
    return [*words[:index], garbled, *words[index + 1 :]]


def _pad(sentence: str, random: Random) -> str:
    if random.random() < 0.1:
        sentence = f"{random.choice(ASIDES)} {sentence}"
    elif random.random() < 0.18:
        sentence = random.choice(OPENERS) + random.choice((" ", ", ", ", ", ": ", "! ")) + sentence
    if random.random() < 0.18:
        sentence = sentence + random.choice((" ", " ", ", ")) + random.choice(CLOSERS)
    return sentence


def _punctuate(sentence: str, random: Random) -> str:
    end = random.choice(("", "", "", "?", "?", "?", ".", "!", " ?", "??", "..."))
    style = random.random()
    if style < 0.45:
        sentence = sentence[:1].upper() + sentence[1:]
    elif style < 0.49:
        sentence = sentence.upper()
    elif style < 0.52:
        sentence = sentence.title()
    return _proper_names(sentence, random) + end


def _proper_names(sentence: str, random: Random) -> str:
    if random.random() < 0.5:
        sentence = sentence.replace("mlx manager", "MLX Manager").replace(" i ", " I ")
    if random.random() < 0.4:
        for name, proper in _PROPER.items():
            sentence = re.sub(rf"\b{name}\b", proper, sentence)
    return sentence


_PROPER = {
    "openai": "OpenAI", "anthropic": "Anthropic", "logfire": "Logfire", "python": "Python",
    "linux": "Linux", "api": "API", "mlx": "MLX", "cuda": "CUDA", "url": "URL",
}  # fmt: skip
