"""Run the checks against a server for a person: a table as they end, or JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict

import httpx
from rich.console import Console
from rich.markup import escape

from mlx_manager.conformance.check import Finding, Result
from mlx_manager.conformance.subject import Subject
from mlx_manager.conformance.suite import GROUPS, findings

TIMEOUT_S = 300.0
STYLES: Mapping[Result, str] = {
    "pass": "green",
    "fail": "bold red",
    "yes": "green",
    "no": "yellow",
    "n/a": "dim",
}


class Unreachable(Exception):
    """There is no server, or none with such a model; the message says what to do."""


async def check_server(
    url: str,
    model: str | None,
    key: str | None,
    screen: Console | None,
    groups: Collection[str] = GROUPS,
) -> tuple[str, list[Finding]]:
    """Run the checks and return the model's id and what they found; `screen` gets a line as each ends.

    Without `model` the first one that the server lists. Raises Unreachable.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        subject = Subject(client, await _model_of(client, url, model))
        found = []
        async for finding in findings(subject, groups):
            found.append(finding)
            if screen is not None:
                screen.print(row(finding), soft_wrap=True)
        return subject.model, found


async def _model_of(client: httpx.AsyncClient, url: str, model: str | None) -> str:
    try:
        response = await client.get("/v1/models")
        ids = [one["id"] for one in response.raise_for_status().json()["data"]]
    except httpx.HTTPStatusError as error:
        raise Unreachable(
            f"{url} answers {error.response.status_code}. It may want a --key."
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(
            f"No server answers at {url}: {error}. Start one, or give its --url."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise Unreachable(f"{url} has no list of models at /v1/models.") from None
    if model is not None and model not in ids:
        raise Unreachable(f"{url} has no model {model!r}. It has: {', '.join(ids)}.")
    if not ids:
        raise Unreachable(f"{url} has no models.")
    return str(model or ids[0])


def row(finding: Finding) -> str:
    """A finding as a line of the table: check, how it was asked, result, time, note."""
    style = STYLES[finding.result]
    name = f"{finding.group}: {finding.name}"
    took = f"{finding.duration_s:7.2f} s"
    return (
        f"{escape(name):<44} {finding.way:<9} [{style}]{finding.result:<4}[/{style}] {took}  "
        f"{escape(finding.note)}"
    )


def summary(found: Iterable[Finding]) -> str:
    """How many passed, failed and did not apply, and what the model can do."""
    results = [(one.result, one) for one in found]
    counts = {kind: sum(result == kind for result, _ in results) for kind in STYLES}
    can = [one.name for result, one in results if result == "yes"]
    return (
        f"{counts['pass']} passed, {counts['fail']} failed, {counts['n/a']} don't apply. "
        f"The model: {', '.join(can) or 'none of what was asked'}."
    )


def as_json(model: str, found: Iterable[Finding]) -> str:
    """The same for a program."""
    return json.dumps({"model": model, "findings": [asdict(one) for one in found]}, indent=2)
