"""Queries are traced: statements, never values."""

from __future__ import annotations

import logfire
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from mlx_manager.observability.logfire_config import instrument_sqlalchemy
from tests.support.spans import Spans, ids


async def test_a_query_is_a_client_span_under_whoever_asked(spans: Spans) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    instrument_sqlalchemy(engine)

    with logfire.span("asking"):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT :word"), {"word": "value-of-a-parameter"})
    await engine.dispose()

    span = spans.one("SELECT")
    assert span.kind is SpanKind.CLIENT
    assert ids(span.parent) == ids(spans.one("asking").context)
    attributes = span.attributes or {}
    assert attributes["db.system.name"] == "sqlite"
    assert attributes["db.query.text"] == "SELECT ?"
    assert "value-of-a-parameter" not in spans.text()


def test_instrumenting_twice_traces_once(spans: Spans) -> None:
    engine = create_engine("sqlite://")
    instrument_sqlalchemy(engine)
    instrument_sqlalchemy(engine)

    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

    assert len(spans.named("SELECT")) == 1


def test_every_engine_is_traced_not_only_the_first(spans: Spans) -> None:
    for _ in range(2):
        engine = create_engine("sqlite://")
        instrument_sqlalchemy(engine)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    assert len(spans.named("SELECT")) == 2


def test_a_failed_query_says_which_error_but_not_its_text(spans: Spans) -> None:
    engine = create_engine("sqlite://")
    instrument_sqlalchemy(engine)

    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE keys (name TEXT PRIMARY KEY)"))
        insert = text("INSERT INTO keys VALUES (:name)")
        connection.execute(insert, {"name": "a-marked-secret"})
        with pytest.raises(IntegrityError):
            connection.execute(insert, {"name": "a-marked-secret"})
        connection.execute(text("SELECT 1"))

    failed = spans.named("INSERT")[-1]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description is None
    assert (failed.attributes or {})["error.type"] == "IntegrityError"
    assert spans.one("SELECT").status.status_code is StatusCode.UNSET
    assert "a-marked-secret" not in spans.text()
