"""Write requests of the audit log into a file, as they come: JSON lines, or CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence

from mlx_manager.mlx_server.audit.schemas import LoggedRequest
from mlx_manager.mlx_server.audit.tables import AuditRow

COLUMNS = tuple(LoggedRequest.model_fields)
# What a spreadsheet takes for the beginning of a formula; clients choose some of these texts.
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n")


async def to_jsonl(pages: AsyncIterable[Sequence[AuditRow]]) -> AsyncGenerator[bytes, None]:
    """Yield one JSON object a line."""
    async for rows in pages:
        yield b"".join(
            LoggedRequest.model_validate(row).model_dump_json().encode() + b"\n" for row in rows
        )


async def to_csv(pages: AsyncIterable[Sequence[AuditRow]]) -> AsyncGenerator[bytes, None]:
    """Yield the names of the columns, then the rows; a text that would be a formula has an apostrophe before it."""
    yield _lines([COLUMNS])
    async for rows in pages:
        shown = (LoggedRequest.model_validate(row).model_dump(mode="json") for row in rows)
        yield _lines([map(_safe, row.values()) for row in shown])


def _safe(cell: object) -> object:
    is_formula = isinstance(cell, str) and cell.startswith(FORMULA_BEGINS)
    return f"'{cell}" if is_formula else cell


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
