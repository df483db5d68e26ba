"""Libraries that mlx-lm imports and an engine never uses: it reads no text and downloads nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# To import them took 0.6 of the 0.85 s in which an engine comes up, and 27 of its 85 MB.
UNUSED = ("transformers", "transformers.tokenization_utils_base", "huggingface_hub")


@contextmanager
def left_out() -> Iterator[None]:
    """Within the block mlx-lm finds stand-ins for those of them that nobody has imported yet.

    Afterwards they can be imported as ever: the code that a model brings along may do so.
    """
    absent = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update({name: _Absent(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


class _Absent(ModuleType):
    """A module in which every name is the same class."""

    def __getattr__(self, name: str) -> type[_Unused]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused


class _Unused:
    """What mlx-lm names, inherits from and registers when it is imported, and makes only for text."""

    @classmethod
    def register(cls, *_classes: object, **_named: object) -> None:
        """Do nothing: nobody looks anything up."""
