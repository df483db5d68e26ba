"""Build or examine the starter model.

On Linux put OpenBLAS in place first, or training takes twenty times as long:

    tools/setup/with-openblas.sh python -m tools.starter build
"""

import argparse
import json
import tempfile
from pathlib import Path

from tools.starter import card
from tools.starter.build import REFRESH_STEPS, SEED, STEPS, build, refresh
from tools.starter.exam import examine
from tools.starter.train import Progress

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"


def main() -> None:
    """Run the command that is asked for."""
    arguments = _parser().parse_args()
    if arguments.command == "build":
        _build(arguments.out, arguments.steps, arguments.minutes)
    elif arguments.command == "refresh":
        _refresh(arguments.model, arguments.out, arguments.steps, arguments.minutes)
    else:
        card.write(arguments.model, exam=examine(arguments.model), training=None)
        print((arguments.model / card.EXAM_FILE).read_text(encoding="utf-8"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.starter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    builds = commands.add_parser("build", help="train the model, examine it and write its card")
    builds.add_argument("--out", type=Path, default=STARTER, help="folder of the finished model")
    builds.add_argument("--steps", type=int, default=STEPS, help="training steps")
    builds.add_argument("--minutes", type=float, help="train for so long instead")
    refreshes = commands.add_parser(
        "refresh",
        help="go on training a model after a fact has changed, examine it and write its card",
    )
    refreshes.add_argument("--model", type=Path, default=STARTER, help="folder of the model")
    refreshes.add_argument("--out", type=Path, default=STARTER, help="folder of the finished one")
    refreshes.add_argument("--steps", type=int, default=REFRESH_STEPS, help="training steps")
    refreshes.add_argument("--minutes", type=float, help="train for so long instead")
    exams = commands.add_parser("exam", help="examine a model and write its figures into its card")
    exams.add_argument("--model", type=Path, default=STARTER, help="folder of the model")
    return parser


def _build(out: Path, steps: int, minutes: float | None) -> None:
    """Train in a folder beside `out`, and move the files only when all is done."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        progress = build(folder, steps=steps, minutes=minutes)
        card.write(folder, exam=examine(folder), training=[progress])
        for path in folder.iterdir():
            path.replace(out / path.name)


def _refresh(trained: Path, out: Path, steps: int, minutes: float | None) -> None:
    """Train beside `out`, and move the files only when all is done; the card keeps the earlier stretches."""
    earlier = json.loads((trained / card.EXAM_FILE).read_text(encoding="utf-8"))["training"]
    stretches = [Progress(**stretch) for stretch in earlier]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        # Another seed for each, or it would see the same samples again.
        progress = refresh(
            folder, trained, steps=steps, minutes=minutes, seed=SEED + len(stretches)
        )
        card.write(folder, exam=examine(folder), training=[*stretches, progress])
        for path in folder.iterdir():
            path.replace(out / path.name)


if __name__ == "__main__":
    main()
