"""What frames Kimi K3's answers is told from what they say, wherever it is cut."""

from __future__ import annotations

from tests.families.test_parser import BERN, cuts, family, read

K3_TEXT = "<|open|>response<|sep|>I look: 1 < 2.\n<|close|>response<|sep|>"
K3_CALL = (
    '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>json type="object"<|sep|>'
    '{"city": "Bern", "days": 3}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
)
K3_END = "<|close|>message<|sep|><|end_of_msg|>"
K3_THOUGHTS = "<|open|>think<|sep|>Hm, <|open|>tools<|sep|>?\n<|close|>think<|sep|>"


def test_what_frames_an_answer_is_no_part_of_it() -> None:
    k3 = family("kimi-k3")
    answer = f"{K3_THOUGHTS}{K3_TEXT}{K3_CALL}{K3_END}"
    for pieces in cuts(answer):
        text, thoughts, calls, findings = read(pieces, k3)
        assert (text, thoughts, calls) == (
            "I look: 1 < 2.",
            "Hm, <|open|>tools<|sep|>?",
            [("weather", BERN)],
        ), pieces
        assert findings == ["reasoning_began", "reasoning_ended", "tool_call_began"]
    for pieces in cuts(f"{K3_THOUGHTS}{K3_TEXT}{K3_END}"):
        assert read(pieces, k3, ())[:2] == ("I look: 1 < 2.\n", "Hm, <|open|>tools<|sep|>?")


def test_what_frames_an_answer_behind_the_only_call_wanted_is_nothing_left_out() -> None:
    for pieces in cuts(f"{K3_CALL}{K3_END}"):
        found = read(pieces, family("kimi-k3"), is_parallel=False)
        assert found == ("", "", [("weather", BERN)], ["tool_call_began"])
