"""Answers in Harmony's form are told apart by their headers, wherever they are cut."""

from __future__ import annotations

from collections import defaultdict

import pytest

from mlx_manager.chat.events import BETWEEN_MESSAGES, ReasoningDelta, TextDelta, ToolCallDelta
from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.messages import answer_parser
from tests.families.test_parser import BERN, Call, cuts, family, read

OSS = family("gpt-oss")
THOUGHT = "<|channel|>analysis<|message|>The user asks for 1 < 2.\n<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>Yes,\n\nit is. <|return|>"
CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Bern", "days": 3}<|call|>'
)
PREAMBLE = "<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
CALLS: list[Call] = [("weather", BERN)]
BEGAN, ENDED = "reasoning_began", "reasoning_ended"


@pytest.mark.parametrize(
    ("answer", "text", "thoughts", "calls"),
    [
        (THOUGHT + FINAL, "Yes,\n\nit is. ", "The user asks for 1 < 2.\n", []),
        (THOUGHT + CALL, "", "The user asks for 1 < 2.\n", CALLS),
        (THOUGHT + PREAMBLE + CALL, "I look it up.", "The user asks for 1 < 2.\n", CALLS),
        # Messages of one kind are parted by a blank line.
        (
            THOUGHT + PREAMBLE + THOUGHT + FINAL,
            "I look it up.\n\nYes,\n\nit is. ",
            "The user asks for 1 < 2.\n\n\nThe user asks for 1 < 2.\n",
            [],
        ),
        (FINAL.removeprefix("<|start|>assistant"), "Yes,\n\nit is. ", "", []),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}", "", []),
        # An end that was forgotten, a channel that nobody knows, and none at all.
        (THOUGHT.removesuffix("<|end|>") + FINAL, "Yes,\n\nit is. ", "The user asks for 1 < 2.\n", []),
        ("<|channel|>comment<|message|>Hm.<|end|>", "Hm.", "", []),
        ("<|start|>assistant<|message|>Hm.", "Hm.", "", []),
        ("Nothing but text, and <|end|> of it", "Nothing but text, and \n\n of it", "", []),
        ("token by token", "token by token", "", []),
    ],
)  # fmt: skip
def test_messages_are_told_apart_by_their_headers(
    answer: str, text: str, thoughts: str, calls: list[Call]
) -> None:
    for pieces in cuts(answer):
        found, thought, called, findings = read(pieces, OSS)
        assert (found, thought, called) == (text, thoughts, calls), pieces
        assert findings.count(BEGAN) == findings.count(ENDED) == answer.count("analysis")


def test_a_call_is_text_where_there_are_no_tools() -> None:
    header = CALL.removesuffix('{"city": "Bern", "days": 3}<|call|>')
    for pieces in cuts(CALL):
        assert read(pieces, OSS, ())[:3] == (header + '{"city": "Bern", "days": 3}', "", [])


@pytest.mark.parametrize(
    ("answer", "text", "calls", "findings"),
    [
        # No object of arguments: the message is text, header and all.
        (
            "<|channel|>commentary to=python code<|message|>print(1)<|call|>",
            "<|channel|>commentary to=python code<|message|>print(1)",
            [],
            ["tool_call_malformed"],
        ),
        # Behind its beginning a call can only go on.
        (
            '<|channel|>commentary to=functions.wait json<|message|>{"n": oops}<|call|>' + FINAL,
            "Yes,\n\nit is. ",
            [("wait", '{"n": oops}')],
            ["tool_call_began", "tool_call_malformed"],
        ),
        # What stands behind the arguments is text.
        (
            '<|channel|>commentary to=functions.wait json<|message|>{"n": 1} and so<|call|>',
            "and so",
            [("wait", {"n": 1})],
            ["tool_call_began"],
        ),
        (
            "<|channel|>commentary to=functions.wait<|message|><|call|>",
            "",
            [("wait", {})],
            ["tool_call_began", "tool_call_repaired"],
        ),
        # A header that another one follows.
        (
            "<|channel|>commentary<|mesage|>Bern" + CALL,
            "<|channel|>commentary<|mesage|>Bern",
            CALLS,
            ["tool_call_began"],
        ),
        # A header is no text, but what is no header is.
        ("<|channel|>commentary to=functions.wait <|constrain|>js", "", [], []),
        ("<|channel|>so they say", "<|channel|>so they say", [], []),
    ],
)
def test_nothing_of_a_malformed_message_is_dropped(
    answer: str, text: str, calls: list[Call], findings: list[str]
) -> None:
    for pieces in cuts(answer):
        assert read(pieces, OSS) == (text, "", calls, findings), pieces


def test_one_call_is_enough_where_they_must_not_be_parallel() -> None:
    for pieces in cuts(CALL + CALL):
        assert read(pieces, OSS, is_parallel=False)[2] == CALLS


def test_what_is_said_meanwhile_is_told_from_the_final_answer() -> None:
    unknown = "<|start|>assistant<|channel|>comment<|message|>Hm.<|end|>"
    for pieces in cuts(PREAMBLE + CALL + unknown + FINAL):
        parser = answer_parser(OSS, (Tool("weather"),))
        deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
        said = defaultdict[str | None, str](str)
        for one in deltas:
            if isinstance(one, TextDelta):
                said[one.phase] += one.text
        assert said == {
            "commentary": "I look it up.",
            None: f"{BETWEEN_MESSAGES}Hm.",
            "final_answer": f"{BETWEEN_MESSAGES}Yes,\n\nit is. ",
        }, pieces


def test_a_message_leaves_as_it_comes() -> None:
    parser = answer_parser(OSS, (Tool("wait"),))
    parser.feed("<|channel|>analysis<|message|>H")
    assert parser.is_reasoning
    assert parser.feed("m, ") == [ReasoningDelta("m, ")]
    parser.feed(
        '<|end|><|start|>assistant to=functions.wait<|channel|>commentary<|message|>{"a": "'
    )
    assert parser.feed("some of it") == [ToolCallDelta(0, "some of it")]
    parser.feed('"}<|end|><|start|>assistant<|channel|>final<|message|>')
    assert not parser.is_reasoning
    assert parser.feed("Yes, ") == [TextDelta("Yes, ", phase="final_answer")]
