"""One span per statement that a SQLAlchemy engine runs.

`logfire.instrument_sqlalchemy` does nothing here, and says so nowhere: the instrumentor behind it wants SQLAlchemy
below 2.1. Talked into working, it names spans after the database's file, keeps a driver's error text, which quotes
values, in the status, and takes one engine per process. SQLAlchemy's events are all it needs.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from mlx_manager.observability import attributes as names
from mlx_manager.observability.instruments import SCOPE

# Spans of the statements that run on a connection now, innermost last; SQLAlchemy keeps the dictionary for such uses.
_RUNNING = "mlx_manager.running_spans"
_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}


def trace_queries(engine: Engine) -> None:
    """Listen to `engine`; a second call changes nothing, since SQLAlchemy keeps a listener once."""
    event.listen(engine, "before_cursor_execute", _begin)
    event.listen(engine, "after_cursor_execute", _end)
    event.listen(engine, "handle_error", _fail)


def _begin(
    connection: Connection,
    cursor: object,
    statement: str,
    parameters: object,
    context: object,
    executemany: bool,
) -> None:
    operation = statement.split(None, 1)[0].upper() if statement.strip() else "SQL"
    attributes: dict[str, AttributeValue] = {
        names.DB_SYSTEM: _SYSTEMS.get(connection.dialect.name, connection.dialect.name),
        names.DB_OPERATION: operation,
        names.DB_QUERY: statement,
    }
    span = trace.get_tracer(SCOPE).start_span(
        operation, kind=SpanKind.CLIENT, attributes=attributes
    )
    _running(connection).append(span)


def _end(connection: Connection, *_: object) -> None:
    _running(connection).pop().end()


def _fail(context: ExceptionContext) -> None:
    running = _running(context.connection) if context.connection is not None else []
    if running:
        span = running.pop()
        span.set_attribute(names.ERROR_TYPE, type(context.original_exception).__qualname__)
        span.set_status(StatusCode.ERROR)
        span.end()


def _running(connection: Connection) -> list[Span]:
    running: list[Span] = connection.info.setdefault(_RUNNING, [])
    return running
