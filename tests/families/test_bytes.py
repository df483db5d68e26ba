"""An answer that comes as tokens of one byte each is told apart as it is when it comes whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Joining
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from mlx_manager.chat.request import Sampling
from mlx_manager.mlx_server.families.family import FAMILY_NAMES
from mlx_manager.mlx_server.families.messages import answer_parser
from mlx_manager.mlx_server.generation.answer import AnswerReader
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from tests.families.test_findings import BLOCKS, SHORT, STRAY
from tests.families.test_harmony import CALL, FINAL, PREAMBLE, THOUGHT
from tests.families.test_parser import (
    CALLED,
    MALFORMED,
    NO_CALLS,
    TOOLS,
    Call,
    family,
    gathered,
    read,
)

# Two, three and four bytes a character, and several characters that are one to the eye.
TOWN = "Zürich 東京 👩‍👩‍👧 é"
THOUGHTS = f"Größer als {TOWN}?"
THINKING = "<think></think>"
TOKEN = re.compile(r"<[^<>]+>|\[[A-Z_]+\]")
TextOf = Callable[[str, bool], ModelText]
Read = tuple[str, str, list[Call], list[str]]


def foreign(answer: str) -> str:
    """The answer with letters of several bytes where it had plain ones."""
    return answer.replace("Bern", TOWN).replace("Let me see", THOUGHTS).replace("Done", TOWN)


def in_block(name: str, written: str) -> str:
    answer = written.replace("[call]", "[call >")
    for short, mark in zip(SHORT, BLOCKS[name], strict=True):
        answer = answer.replace(short, mark)
    return answer


RECORDED = [
    *((name, answer) for name, answer, _ in CALLED),
    *((name, f"Let me see: 1 < 2.\n\n{answer}") for name, answer, _ in CALLED),
    *((name, answer) for name, answer, *_ in MALFORMED),
    *NO_CALLS,
    *((name, in_block(name, written)) for name in BLOCKS for written, *_ in STRAY),
    *(("gpt-oss", THOUGHT.replace("The user", TOWN) + rest) for rest in (FINAL, PREAMBLE + CALL)),
]


@pytest.fixture(scope="module")
def text_of(tmp_path_factory: pytest.TempPathFactory) -> TextOf:
    """Models of a family whose tokens are bytes; its marks are tokens, too, where they are said to be."""

    @cache
    def made(name: str, has_marks: bool) -> ModelText:
        one = family(name, THINKING)
        alphabet = sorted(ByteLevel.alphabet())
        tokenizer = Tokenizer(BPE({letter: at for at, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = Joining()
        if has_marks:
            marks = {token for mark in one.marks for token in TOKEN.findall(mark)}
            tokenizer.add_special_tokens(sorted(marks))
        folder = tmp_path_factory.mktemp(name)
        template = "".join(one.signs) + THINKING
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template).save_pretrained(
            str(folder)
        )
        config = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 8192}
        (folder / "config.json").write_text(json.dumps(config))
        return load_model_text(ModelFiles(name, folder, "folder", 0))

    return made


def token_ids_of(text: ModelText, answer: str) -> list[int]:
    found: list[int] = text.tokenizer.encode(answer, add_special_tokens=False)
    return found


def read_tokens(text: ModelText, token_ids: Sequence[int]) -> Read:
    """What `read` says of an answer that comes as these tokens, one by one."""
    found = list[str]()
    parser = answer_parser(text.family, TOOLS, note=lambda kind, _detail: found.append(kind))
    reader = AnswerReader(text, (), Sampling(), parser)
    deltas = [delta for token_id in token_ids for delta in reader.feed([token_id])]
    deltas += reader.finish()
    return (*gathered(deltas), [kind for kind in found if kind != "tool_call_ended"])


def test_every_family_has_recorded_answers() -> None:
    assert {name for name, _ in RECORDED} == set(FAMILY_NAMES)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("has_marks", [False, True], ids=["bytes", "marks"])
def test_answers_are_read_byte_by_byte_as_they_are_when_whole(
    text_of: TextOf, name: str, has_marks: bool
) -> None:
    text = text_of(name, has_marks)
    opens, closes = text.family.reasoning or ("", "")
    for answer in (foreign(answer) for of, answer in RECORDED if of == name):
        for whole in (answer, f"{opens}{THOUGHTS}{closes}{answer}"):
            token_ids = token_ids_of(text, whole)
            written = b"".join(map(text.token_bytes.of, token_ids))
            assert has_marks or written == whole.encode()
            assert read_tokens(text, token_ids) == read([whole], text.family), whole
