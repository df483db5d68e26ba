"""The comparison: the bare loop, this server and mlx-lm's, on one model, with 1 to 64 clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Child
from benchmarks.contenders import BareContender, Contender, ServerContender
from benchmarks.models import make_model
from benchmarks.prompts import PromptMaker
from benchmarks.rounds import Say, Series, measure
from benchmarks.servers import Server, fast_blas, mlx_lm_server, mlx_manager_server
from benchmarks.work import ModelName, WorkName, load_for

BARE = "bare loop"
BARE_SPREAD = "bare loop, spread"
OURS = "MLX Manager"
OURS_STREAMED = "MLX Manager, streamed"
MLX_LM = "mlx_lm.server"
MLX_LM_STREAMED = "mlx_lm.server, streamed"
# It takes a connection for each request and lets five wait to be accepted. With more clients than this the system turns
# some away so often that they wait for theirs for most of a minute.
MOST_MLX_LM_CLIENTS = 32


@dataclass(frozen=True, slots=True)
class Comparison:
    """All series of one model and one kind of work, by number of clients and name of the contender."""

    model: ModelName
    work: WorkName
    series: dict[int, dict[str, Series]]


def compare(
    model: ModelName,
    work: WorkName,
    clients: Sequence[int],
    rounds: int,
    folder: Path,
    say: Say,
    *,
    has_mlx_lm: bool = True,
    is_quick: bool = False,
) -> Comparison:
    """Measure all contenders on `model`; `folder` takes the model and the servers' output."""
    path = make_model(folder / "models", model)
    say(f"starting the contenders on {model}")
    with _contenders(path, folder / model, has_mlx_lm=has_mlx_lm) as contenders:
        series = dict[int, dict[str, Series]]()
        for count in clients:
            taking_part = [one for one in contenders if _takes_part(one.name, work, count)]
            load = load_for(model, count, work, is_quick=is_quick)
            series[count] = measure(taking_part, load, rounds, say)
    return Comparison(model, work, series)


def _takes_part(contender: str, work: WorkName, clients: int) -> bool:
    if contender == BARE_SPREAD:
        # The rows of mixed work end each in a step of its own as it is.
        return work == "even"
    return clients <= MOST_MLX_LM_CLIENTS or contender not in (MLX_LM, MLX_LM_STREAMED)


@contextmanager
def _contenders(model: Path, folder: Path, *, has_mlx_lm: bool) -> Iterator[list[Contender]]:
    prompts = PromptMaker(model)
    with ExitStack() as stack:
        bare = stack.enter_context(Child("benchmarks.bare", [str(model)], fast_blas()))
        clients = stack.enter_context(Child("benchmarks.client"))
        ours = stack.enter_context(mlx_manager_server(model, folder / "mlx-manager"))

        def behind_http(name: str, server: Server, *, stream: bool) -> ServerContender:
            return ServerContender(name, server, clients, prompts, stream=stream)

        contenders: list[Contender] = [
            BareContender(BARE, bare, prompts),
            BareContender(BARE_SPREAD, bare, prompts, spread=True),
            behind_http(OURS, ours, stream=False),
            behind_http(OURS_STREAMED, ours, stream=True),
        ]
        if has_mlx_lm:
            theirs = stack.enter_context(mlx_lm_server(model, folder / "mlx-lm"))
            contenders += [
                behind_http(MLX_LM, theirs, stream=False),
                behind_http(MLX_LM_STREAMED, theirs, stream=True),
            ]
        yield contenders
