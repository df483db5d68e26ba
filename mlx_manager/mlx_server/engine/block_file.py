"""One block or snapshot of the prefix cache as bytes: the safetensors format, with what it is in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.engine.row_state import State

# To be raised whenever the same file would mean something else.
LAYOUT_VERSION = "1"
MOST_HEADER_BYTES = 1 << 20
DIGEST_BYTES = 16
DTYPES = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "U8": mx.uint8,
    "I32": mx.int32,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Kind = Literal["block", "snapshot"]


class BlockFileCorrupt(ValueError):
    """A file isn't what was written."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a file holds: `tokens` behind the block whose key is `parent`, read by the model that `root` stands for.

    `key` is the name that everything up to these tokens has, which no other beginning shares.
    """

    kind: Kind
    root: str
    parent: str
    tokens: tuple[int, ...]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        told = (self.kind, self.root, self.parent, *map(str, self.tokens))
        key = hashlib.blake2b(" ".join(told).encode(), digest_size=DIGEST_BYTES).hexdigest()
        object.__setattr__(self, "key", key)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The bytes of one array of a file, and what they are."""

    raw: memoryview
    dtype: mx.Dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds, as it was written and not in MLX yet."""

    states: list[tuple[Stretch | None, ...]]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(one.raw.nbytes for state in self.states for one in state if one is not None)

    def arrays(self) -> list[State]:
        """Copy everything into arrays. Belongs to the engine's thread."""
        return [
            tuple(None if one is None else _array(one) for one in state) for state in self.states
        ]


def file_bytes(label: Label, arrays: Sequence[State]) -> int:
    """Return how long the file will be. Looks at shapes only."""
    return len(_head(label, arrays, "0" * 2 * DIGEST_BYTES)) + payload_bytes(arrays)


def payload_bytes(arrays: Sequence[State]) -> int:
    """Return how many bytes the arrays of a file take."""
    return sum(array.nbytes for state in arrays for array in state if array is not None)


def parts(label: Label, arrays: Sequence[State]) -> list[bytes | memoryview]:
    """Return the file in pieces, of which all but the first are the arrays' own memory.

    In any thread, but only of arrays that are computed: to compute them belongs to the engine's thread.
    """
    pieces = [_bytes_of(array) for state in arrays for array in state if array is not None]
    return [_head(label, arrays, _digest(pieces)), *pieces]


def encode(label: Label, arrays: Sequence[State]) -> bytes:
    """Return the file."""
    return b"".join(parts(label, arrays))


def read_label(path: Path) -> Label:
    """Return what a file says it holds. Raises BlockFileCorrupt, and OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        return _label(_header(file.read(_header_bytes(start)))["__metadata__"])


def decode(label: Label, data: bytes) -> Contents:
    """Return what is in a file that should hold what `label` says; in any thread. Raises BlockFileCorrupt."""
    begin = 8 + _header_bytes(data[:8])
    header, payload = _header(data[8:begin]), memoryview(data)[begin:]
    metadata = header.pop("__metadata__")
    if _label(metadata) != label or metadata.get("digest") != _digest([payload]):
        raise BlockFileCorrupt("its content is not what was written")
    try:
        lengths = [int(length) for length in metadata["lengths"].split()]
        return Contents(
            [
                tuple(_stretch(header.get(f"{index}.{part}"), payload) for part in range(length))
                for index, length in enumerate(lengths)
            ]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BlockFileCorrupt(f"its header is not ours ({error})") from error


def _head(label: Label, arrays: Sequence[State], digest: str) -> bytes:
    """Return everything before the arrays."""
    header, at = dict[str, Any](), 0
    for index, state in enumerate(arrays):
        for part, array in enumerate(state):
            if array is None:
                continue
            shape = {"dtype": NAMES[array.dtype], "shape": list(array.shape)}
            header[f"{index}.{part}"] = shape | {"data_offsets": [at, at + array.nbytes]}
            at += array.nbytes
    header["__metadata__"] = _metadata(label, [len(state) for state in arrays], digest)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _metadata(label: Label, lengths: list[int], digest: str) -> Mapping[str, str]:
    return {
        "layout": LAYOUT_VERSION,
        "kind": label.kind,
        "root": label.root,
        "parent": label.parent,
        "tokens": " ".join(map(str, label.tokens)),
        "lengths": " ".join(map(str, lengths)),
        "digest": digest,
    }


def _label(metadata: Any) -> Label:
    try:
        if metadata["layout"] != LAYOUT_VERSION or metadata["kind"] not in ("block", "snapshot"):
            raise BlockFileCorrupt("it has another layout")
        tokens = tuple(int(token) for token in metadata["tokens"].split())
        return Label(metadata["kind"], metadata["root"], metadata["parent"], tokens)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BlockFileCorrupt(f"its header is not ours ({error})") from error


def _header_bytes(start: bytes) -> int:
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= MOST_HEADER_BYTES:
        raise BlockFileCorrupt("it has no header")
    return size


def _header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except ValueError as error:
        raise BlockFileCorrupt("its header can't be read") from error
    if not isinstance(header, dict) or "__metadata__" not in header:
        raise BlockFileCorrupt("its header says nothing")
    return header


def _stretch(described: Any, payload: memoryview) -> Stretch | None:
    if described is None:
        return None
    begin, end = described["data_offsets"]
    raw, dtype = payload[begin:end], DTYPES[described["dtype"]]
    shape = tuple(int(length) for length in described["shape"])
    if int(np.prod(shape)) * dtype.size != raw.nbytes:
        raise ValueError("an array has another size")
    return Stretch(raw, dtype, shape)


def _array(stretch: Stretch) -> mx.array:
    raw = mx.array(np.asarray(stretch.raw, dtype=np.uint8))
    return raw.view(stretch.dtype).reshape(stretch.shape)


def _bytes_of(array: mx.array) -> memoryview:
    # Nothing can be cast that has no elements.
    return memoryview(cast("Any", array)).cast("B") if array.size else memoryview(b"")


def _digest(pieces: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
