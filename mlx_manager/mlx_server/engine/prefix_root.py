"""What stands for a model where its prefixes are kept: another model, template or version has another root.

All bytes of the weights are in it: fine-tunes of one model differ in some tensors, and one that is put in another's
place must never go on from what that one has read. To read them all takes a while, so what came of it is kept, for as
long as a file is the same by its place, size and times.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import msgspec

from mlx_manager.mlx_server.engine.prefix_folder import replace_file

PIECE_BYTES = 1 << 24
# Each lets the others go while it hashes.
THREADS = 4
LIBRARIES = ("mlx", "mlx-lm")
# What decides on tokens and on what is computed of them, besides weights.
TEXTS = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
WEIGHTS = ("*.safetensors", "*.npz")
KEPT = "digests.json"
# A file that was changed just now may be changed again within the same tick of its times.
SETTLED_NS = 2_000_000_000


class Kept(msgspec.Struct, frozen=True):
    """The digest of a file that was as `state` says."""

    state: list[int]
    digest: str


def digest_of(folders: Iterable[Path], kept_in: Path, settled_ns: int = SETTLED_NS) -> str:
    """Return the digest of all that decides on what a model computes. In any thread.

    What was found of large files is kept in the folder `kept_in`, of those that were last changed `settled_ns` ago.
    Raises OSError when a file can't be read.
    """
    digest, known = hashlib.blake2b(digest_size=16), _load(kept_in / KEPT)
    found = dict(known)
    for folder in folders:
        for pattern in (*TEXTS, *WEIGHTS):
            for path in sorted(folder.glob(pattern)):
                is_text = pattern in TEXTS
                file = _digest(path.read_bytes()) if is_text else _large(path, found, settled_ns)
                digest.update(f"{path.name} {file.hex()} ".encode())
    if found != known:
        # Without it the files are read again the next time.
        with suppress(OSError):
            _save(kept_in, found)
    return digest.hexdigest()


def root_of(digest: str, dtype: str, kv_bits: int | None = None) -> str:
    """Return the root of a model with that digest, whose keys and values are of `dtype`, or kept in `kv_bits` of it."""
    kept_as = dtype if kv_bits is None else f"{dtype} in {kv_bits} bits"
    told = " ".join([digest, kept_as, *map(version, LIBRARIES)])
    return _digest(told.encode()).hex()


def _large(path: Path, found: dict[str, Kept], settled_ns: int) -> bytes:
    """Return the digest of a file, as it is known or by reading it; then it's known."""
    name, state = str(path.resolve()), _state(path)
    known = found.get(name)
    if known is not None and known.state == state:
        return bytes.fromhex(known.digest)
    found.pop(name, None)
    digest = _read(path)
    if _state(path) == state and time.time_ns() - max(state[-2:]) > settled_ns:
        found[name] = Kept(state, digest.hex())
    return digest


def _state(path: Path) -> list[int]:
    """Return what changes with a file: nothing that writes to it can choose the last of these."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(path: Path) -> bytes:
    """Return the digest of the digests of a file's pieces."""
    with path.open("rb") as file, ThreadPoolExecutor(THREADS) as threads:
        descriptor, size = file.fileno(), path.stat().st_size
        pieces = threads.map(
            lambda at: _digest(os.pread(descriptor, PIECE_BYTES, at)), range(0, size, PIECE_BYTES)
        )
        return _digest(b"".join(pieces))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _load(path: Path) -> dict[str, Kept]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Kept])
    except (OSError, msgspec.MsgspecError):
        return {}


def _save(folder: Path, found: dict[str, Kept]) -> None:
    """Keep what was found of files that are still there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = {name: kept for name, kept in found.items() if Path(name).exists()}
    replace_file(folder / KEPT, msgspec.json.encode(there))
