"""The command line: `mlx-manager serve`, `server`, `traces`, `trace`, `doctor conformance` and `--version`."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import typer
import uvicorn
from pydantic import ValidationError
from pydantic_settings import BaseSettings
from rich.console import Console

from mlx_manager import __version__
from mlx_manager.capability_card import keep_card, path_beside
from mlx_manager.config import Settings as ManagerSettings
from mlx_manager.conformance import report
from mlx_manager.conformance.card import card_of
from mlx_manager.conformance.check import Finding
from mlx_manager.conformance.suite import GROUPS
from mlx_manager.database import open_database
from mlx_manager.errors import MlxManagerError
from mlx_manager.log import configure_logging
from mlx_manager.mlx_server.config import Settings as ServerSettings
from mlx_manager.observability.context import current_ids
from mlx_manager.observability.redaction import clean_any
from mlx_manager.traces import terminal
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import TraceFilter, TraceStatus
from mlx_manager.traces.trace_table import list_screen

logger = logging.getLogger(__name__)

# What answers need to be written out once their requests have been ended.
CLOSING_S = 5
# After so long nobody waits any more for what doesn't end, a database that another process has locked, say.
LAST_CLOSING_S = 2 * CLOSING_S
# What a shell says of a program that SIGTERM has ended.
ENDED_BY_FORCE = 128 + signal.SIGTERM
# An idle connection is for the client to close: closed here, a request may just be on its way. httpx, and so both SDKs,
# keeps one for 5 s, to the second what uvicorn does; nginx and load balancers of clouds 60 s, Go 90 s, Caddy 120 s.
IDLE_CONNECTION_S = 130
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
doctor = typer.Typer(no_args_is_help=True, help="Look into a running server.")
app.add_typer(doctor, name="doctor")
screen = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

S = TypeVar("S", bound=BaseSettings)

TABLES: Mapping[str, type[BaseSettings]] = {"manager": ManagerSettings, "server": ServerSettings}

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="10242")
]
ModelDirs = Annotated[
    list[Path] | None, typer.Option("--model-dir", help="Folder with models; may be repeated.")
]
Model = Annotated[str | None, typer.Option(help="Id of a model to load at start.")]
Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings in [manager] and [server].")
]


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Run, serve and see local language models."""
    if version:
        screen.print(f"mlx-manager {__version__}")
        raise typer.Exit


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    model_dir: ModelDirs = None,
    model: Model = None,
    config: Config = None,
) -> None:
    """Start MLX Manager: the inference server and the pages, on one port."""
    _export(config, {"MANAGER_HOST": host, "MANAGER_PORT": port}, model_dir, model)
    settings, server_settings = _read(ManagerSettings), _read(ServerSettings)
    _check(server_settings)
    _run("mlx_manager.main:app", "MLX Manager", settings.host, settings.port, server_settings)


@app.command()
def server(
    host: Host = None,
    port: Port = None,
    model_dir: ModelDirs = None,
    model: Model = None,
    config: Config = None,
) -> None:
    """Start the inference server alone."""
    _export(config, {"SERVER_HOST": host, "SERVER_PORT": port}, model_dir, model)
    settings = _read(ServerSettings)
    _check(settings)
    _run("mlx_manager.mlx_server.main:app", "MLX Server", settings.host, settings.port, settings)


@app.command()
def traces(
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    status: Annotated[TraceStatus | None, typer.Option(help="Only with this outcome.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    config: Config = None,
) -> None:
    """List the traces kept on this machine, with or without a running server."""
    show = terminal.follow_traces if follow else terminal.print_traces
    with _trace_reader(config) as reader:
        show(reader, TraceFilter(model=model, status=status), limit, list_screen())


@app.command()
def trace(
    trace_id: Annotated[str, typer.Argument(help="Id of the trace, or how it begins.")],
    config: Config = None,
) -> None:
    """Draw one trace: what it spent its time on."""
    with _trace_reader(config) as reader:
        screen.print(terminal.waterfall(terminal.find_trace(reader, trace_id)))


@doctor.callback()
def doctors() -> None:
    """Look into a running server."""


@doctor.command()
def conformance(
    url: Annotated[
        str | None, typer.Option(help="Where the server is.", show_default="http://127.0.0.1:10242")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Id of the model to ask.", show_default="the first listed")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Key, where the server wants one.")
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            help="Ask only the checks of this group; may be repeated.",
            show_default="all of them",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    config: Config = None,
) -> None:
    """Check a running server against the protocols of its APIs, and find out what a model can do.

    Ends with status 1 when the server fails a check, with 2 when it can't be asked.
    """
    _export(config, {}, None, None)
    address = (url or f"http://127.0.0.1:{_read(ManagerSettings).port}").rstrip("/")
    table = None if as_json else screen
    wanted = groups or GROUPS
    if unknown := set(wanted) - set(GROUPS):
        _fail(f"There is no group {', '.join(sorted(unknown))}. There are: {', '.join(GROUPS)}.")
    try:
        name, found = asyncio.run(
            report.check_server(address.removesuffix("/v1"), model, key, table, wanted)
        )
    except report.Unreachable as reason:
        _fail(str(reason))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(report.as_json(name, found))
    else:
        screen.print(report.summary(found), markup=False, soft_wrap=True)
    # Some of the groups don't say what a model can do.
    if groups is None and urlsplit(address).hostname in LOCAL_HOSTS:
        _keep_card(name, found)
    if any(one.result == "fail" for one in found):
        raise typer.Exit(1)


def _keep_card(model: str, found: list[Finding]) -> None:
    """Keep what the model can do where the manager on this machine shows it, if its files are here."""
    from mlx_manager.mlx_server.state import make_catalog

    settings = _read(ServerSettings)
    path = path_beside(settings.traces_path)
    try:
        edition = make_catalog(settings).find(model).edition
        keep_card(path, card_of(model, edition, __version__, datetime.now(UTC), found))
    except (MlxManagerError, OSError) as error:
        errors.print(f"The model's card is not kept: {error}", markup=False, soft_wrap=True)
    else:
        errors.print(f"The model's card is in {path}.", markup=False, soft_wrap=True)


@contextmanager
def _trace_reader(config: Path | None) -> Iterator[TraceReader]:
    """Open the file of traces; ends the program with a line when it can't be read."""
    _export(config, {}, None, None)
    try:
        with TraceReader(_read(ServerSettings).traces_path) as reader:
            yield reader
    except MlxManagerError as error:
        _fail(error.message)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _export(
    config: Path | None, options: dict[str, Any], model_dirs: list[Path] | None, model: str | None
) -> None:
    """Put the configuration into the environment, where `main` reads it: options over variables over the file."""
    from_file = _read_config(config) if config else {}
    for name, value in from_file.items():
        os.environ.setdefault(name, value)
    if model_dirs:
        missing = [str(folder) for folder in model_dirs if not folder.is_dir()]
        if missing:
            _fail(f"There is no folder {', '.join(missing)}. Give --model-dir one that exists.")
        options["SERVER_MODEL_DIRS"] = os.pathsep.join(
            str(folder.resolve()) for folder in model_dirs
        )
    options["SERVER_PRELOAD"] = model
    os.environ.update(
        {f"MLX_{name}": str(value) for name, value in options.items() if value is not None}
    )


def _read_config(path: Path) -> dict[str, str]:
    """Return the file's settings as environment variables. Ends the program when it can't be read."""
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        _fail(f"The configuration {path} can't be read: {error.strerror}.")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        _fail(f"The configuration {path} is not valid TOML: {error}.")
    return {
        variable: text
        for table, values in tables.items()
        for variable, text in _table_variables(path, table, values)
    }


def _table_variables(path: Path, table: str, values: Any) -> list[tuple[str, str]]:
    if table not in TABLES or not isinstance(values, dict):
        _fail(
            f"The configuration {path} has {table!r}; it takes the tables [manager] and [server]."
        )
    unknown = sorted(set(values) - set(TABLES[table].model_fields))
    if unknown:
        _fail(
            f"The configuration {path} has no setting {unknown[0]!r} in [{table}]. docs/settings.md lists them."
        )
    return [
        (f"MLX_{table.upper()}_{name.upper()}", _as_text(value)) for name, value in values.items()
    ]


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        if any(isinstance(inner, dict) for inner in value.values()):
            return json.dumps(value)
        return ",".join(f"{name}={text}" for name, text in value.items())
    return os.pathsep.join(map(str, value)) if isinstance(value, list) else str(value)


def _read(kind: type[S]) -> S:
    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        # A key that can't be one may be a good one with a letter missing.
        is_secret = "SecretStr" in str(kind.model_fields[name].annotation)
        given = "can't be used" if is_secret else f"is {first['input']!r}"
        variable = f"{kind.model_config.get('env_prefix', '')}{name}".upper()
        if not is_secret:
            # Which of a table's entries it is.
            variable += "".join(f".{part}" for part in first["loc"][1:])
        _fail(f"{variable} {given}: {first['msg']}. docs/settings.md says what it takes.")


def _check(settings: ServerSettings) -> None:
    """Find what would keep the server from starting, and say it in a line instead of a traceback."""
    from mlx_manager.mlx_server.state import make_catalog

    try:
        catalog = make_catalog(settings)
        for model_id in settings.preload:
            catalog.find(model_id)
        asyncio.run(_open_and_close(settings.database_url))
    except MlxManagerError as error:
        _fail(error.message)


async def _open_and_close(database_url: str) -> None:
    database = await open_database(database_url)
    await database.close()


def _run(application: str, name: str, host: str, port: int, settings: ServerSettings) -> None:
    listener = _listen(host, port)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    configure_logging(settings.log_level, settings.log_format, current_ids, clean_any)
    config = uvicorn.Config(
        application,
        log_config=None,
        # Ours says the same without query strings, which may hold keys.
        access_log=False,
        # Running requests are ended before this with an error of ours; what is cut off here has none.
        timeout_keep_alive=IDLE_CONNECTION_S,
        timeout_graceful_shutdown=round(settings.shutdown_timeout_s) + CLOSING_S,
    )
    is_open = not (settings.api_keys or host in LOCAL_HOSTS or host.startswith("127."))
    server = _AnnouncedServer(
        config, name, _url(listener), settings.shutdown_timeout_s + LAST_CLOSING_S, is_open=is_open
    )
    server.run(sockets=[listener])


class _AnnouncedServer(uvicorn.Server):
    """Says where it is once it answers, and that it `is_open` to all who can reach this machine.

    Ends within `last_s` of being told to, come what may: its engines end with it, and the next start closes the books.
    """

    def __init__(
        self, config: uvicorn.Config, name: str, url: str, last_s: float, *, is_open: bool
    ) -> None:
        super().__init__(config)
        self._name = name
        self._url = url
        self._is_open = is_open
        self._last_s = last_s
        self._is_told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if not self._is_told:
            self._is_told = True
            last = threading.Timer(self._last_s, self._end_by_force)
            last.daemon = True
            last.start()

    def _end_by_force(self) -> None:
        logger.error(
            "server ended by force: after %(last_s)g s it had not ended by itself",
            {"last_s": self._last_s},
        )
        os._exit(ENDED_BY_FORCE)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            screen.print(f"[bold]{self._name}[/bold] {__version__} is at [bold]{self._url}[/bold]")
            screen.print(f"OpenAI-compatible API: {self._url}/v1   stop: Ctrl-C")
        if self.started and self._is_open:
            errors.print(
                "[yellow]Whoever reaches this machine can use the models: set MLX_SERVER_API_KEYS.[/yellow]"
            )


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, or end the program with what stands in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            _fail(
                f"Port {port} on {host} is taken. Stop what uses it, or choose another with --port."
            )
        _fail(f"Can't listen on {host} port {port}: {error.strerror or error}.")
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _fail(message: str) -> NoReturn:
    errors.print(f"mlx-manager: {message}", style="red", markup=False, soft_wrap=True)
    sys.exit(2)
