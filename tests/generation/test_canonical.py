"""What changes from day to day stands behind what stays."""

from __future__ import annotations

import pytest

from mlx_manager.chat.request import Conversation, Message, Tool
from mlx_manager.mlx_server.generation.canonical import canonical

HI = Message("user", "Today's date: 2026-11-25")


def instructions(text: str) -> Conversation:
    return Conversation((Message("system", text), HI))


@pytest.mark.parametrize(
    "line",
    [
        "Today's date: 2026-11-25",
        "Current date: Wednesday, November 25, 2026",
        "The current date is 2026-11-25.",
        "  - Current time: 12:30 UTC",
        "Today is 25 November 2026",
        "Date: 2026-11-25T12:00:00Z",
        "x-anthropic-billing-header: cc_version=2.1.15.f1b; cc_entrypoint=cli; cch=00000;",
    ],
)
def test_a_line_that_is_another_one_each_time_goes_to_the_end_of_the_instructions(
    line: str,
) -> None:
    found, changed = canonical(instructions(f"You help.\n{line}\nBe brief."))
    assert found.messages == (Message("system", f"You help.\nBe brief.\n{line}"), HI)
    assert changed == ("system",)


@pytest.mark.parametrize(
    "text",
    [
        "You help.\nBe brief.",
        "You help.\nWrite dates as 2026-11-25.",
        "You help.\nTimeouts are 30 seconds.",
        "You help.\nTime is money.",
        "You help.\nToday's date: 2026-11-25",
    ],
)
def test_other_lines_and_those_at_the_end_stay_where_they_are(text: str) -> None:
    asked = instructions(text)
    assert canonical(asked) == (asked, ())


def test_tools_are_sorted_by_name() -> None:
    a, b = Tool("a", None, {}), Tool("b", None, {})
    found, changed = canonical(Conversation((HI,), tools=(b, a)))
    assert (found.tools, found.messages, changed) == ((a, b), (HI,), ("tools",))
