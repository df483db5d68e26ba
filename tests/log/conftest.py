"""A fresh interpreter for what belongs to a process."""

from tests.observability.conftest import python

__all__ = ["python"]
