"""What stands for a model where its prefixes are kept: another model, template or version has another root."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

# Weights are looked at here and there: their header, and so many pieces of so many bytes.
PIECES = 16
PIECE_BYTES = 1 << 16
LIBRARIES = ("mlx", "mlx-lm")
# What decides on tokens and on what is computed of them, besides weights.
TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHTS = ("*.safetensors", "*.npz")


def root_of(folders: Iterable[Path], dtype: str) -> str:
    """Return the root of the model, and any adapters, in `folders`, whose keys and values are of `dtype`."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(" ".join([dtype, *map(version, LIBRARIES)]).encode())
    for folder in folders:
        for pattern in (*TEXTS, *WEIGHTS):
            for path in sorted(folder.glob(pattern)):
                digest.update(f"{path.name} {path.stat().st_size} ".encode())
                pieces = [path.read_bytes()] if pattern in TEXTS else _pieces(path)
                for piece in pieces:
                    digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for number in range(PIECES):
            file.seek(number * max(size - PIECE_BYTES, 0) // (PIECES - 1))
            yield file.read(PIECE_BYTES)
