"""Build or examine the starter model.

On Linux put OpenBLAS in place first, or training takes twenty times as long:

    tools/setup/with-openblas.sh python -m tools.starter build
"""

import argparse
import tempfile
from pathlib import Path

from tools.starter import card
from tools.starter.build import STEPS, build
from tools.starter.exam import examine

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"


def main() -> None:
    """Run the command that is asked for."""
    arguments = _parser().parse_args()
    if arguments.command == "build":
        _build(arguments.out, arguments.steps, arguments.minutes)
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


if __name__ == "__main__":
    main()
