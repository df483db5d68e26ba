"""The schema's history, one step after another, and the way along it."""

from __future__ import annotations

import logging

from sqlalchemy import Connection

# Before the import: Alembic tells of its plugins while it is imported, and of every step later on.
logging.getLogger("alembic").setLevel(logging.WARNING)

from alembic import command  # noqa: E402
from alembic.config import Config  # noqa: E402
from alembic.script.revision import ResolutionError  # noqa: E402
from alembic.util import CommandError  # noqa: E402


class UnknownRevision(Exception):
    """The schema is at a step that this version has never heard of."""


def upgrade_schema(connection: Connection) -> None:
    """Take every step that the database lacks, in the transaction that `connection` has begun."""
    config = Config(attributes={"connection": connection})
    # A place in the package, not a path: it holds in a wheel, and "%" has a meaning in paths here.
    config.set_main_option("script_location", "mlx_manager:migrations")
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        if isinstance(error.__cause__, ResolutionError):
            raise UnknownRevision from error
        raise
