"""Write the model card: what the starter is, what it can do, and the figures of its exam."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.starter.knowledge import topics, unknown
from tools.starter.train import Progress

EXAM_FILE = "exam.json"
CARD_FILE = "README.md"
_CARD = Path(__file__).with_name("card.md")
_PARTS = {
    "taught": "taught questions, {topics} topics, any case and punctuation",
    "paraphrases": "questions worded by hand, never trained on",
    "unknown": "made-up questions outside its knowledge: says that it doesn't know",
    "later_turns": "the last question of a conversation",
    "calls": "function call, names mostly made up",
    "calls_reworded": "function call, worded by hand, names never seen before",
    "results": "reports the result of a function",
    "no_calls": "answers without a call when no function fits",
    "repeats": "repeats a made-up name",
}
_MARKS = {
    "well_formed": "well-formed",
    "offered": "an offered function",
    "right_function": "the right function",
    "right_key": "the right argument name",
    "right_value": "the right value",
}


def write(folder: Path, *, exam: dict[str, Any], training: list[Progress] | None) -> None:
    """Write `exam.json` and `README.md`; without `training`, its earlier figures stay.

    `training` has an entry for every stretch that the weights were trained in.
    """
    path = folder / EXAM_FILE
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    figures = [asdict(stretch) for stretch in training] if training else earlier.get("training")
    record = {"training": figures, **exam}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(render(record), encoding="utf-8")


def render(record: dict[str, Any]) -> str:
    """Return the card with the figures of an exam record in it."""
    return (
        _CARD.read_text(encoding="utf-8")
        .replace("{exam}", _exam_table(record["parts"]))
        .replace("{calls}", _call_table(record["parts"]))
        .replace("{training}", _training(record["training"]))
        .replace("{unknown}", unknown().answer)
    )


def percent(part: dict[str, int], mark: str = "exact") -> str:
    """Return a figure as the card states it, such as `57/60 (95 %)`."""
    return f"{part[mark]}/{part['asked']} ({part[mark] / part['asked']:.0%})".replace("%", " %")


def _exam_table(parts: dict[str, dict[str, int]]) -> str:
    lines = ["| exact answers | thinking off | thinking on |", "|---|---|---|"]
    for name, title in _PARTS.items():
        cells = [percent(parts[key]) for key in (name, f"{name}_thinking")]
        lines.append(f"| {title.format(topics=len(topics()))} | {cells[0]} | {cells[1]} |")
    thinking = [part for part in parts.values() if "thinks_well" in part]
    total = {mark: sum(part[mark] for part in thinking) for mark in ("thinks_well", "asked")}
    lines.append(f"| well-formed think block | - | {percent(total, 'thinks_well')} |")
    return "\n".join(lines)


def _call_table(parts: dict[str, dict[str, int]]) -> str:
    lines = [
        "| function calls, thinking off | made-up questions | worded by hand |",
        "|---|---|---|",
    ]
    for mark, title in _MARKS.items():
        cells = [percent(parts[name], mark) for name in ("calls", "calls_reworded")]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _training(stretches: list[dict[str, Any]] | None) -> str:
    if not stretches:
        return "The training figures were not kept."
    steps, tokens, seconds = (
        sum(stretch[figure] for stretch in stretches) for figure in ("step", "tokens", "seconds")
    )
    again = f", in {len(stretches)} stretches with a falling learning rate each"
    return (
        f"The shipped weights took {steps:,} steps, {tokens / 1e6:.1f} million tokens and "
        f"{seconds / 60:.0f} minutes ({tokens / seconds:,.0f} tokens/s) on two shared CPU cores"
        f"{again if len(stretches) > 1 else ''}; the last training loss was "
        f"{stretches[-1]['loss']:.3f}. A rebuild takes about as many steps in one stretch and gives "
        "a model like this one, not the same bits."
    )
