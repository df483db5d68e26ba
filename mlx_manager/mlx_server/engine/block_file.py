"""One block or snapshot of the prefix cache as bytes: the safetensors format, with what it is in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.engine.row_state import State

# To be raised whenever the same file would mean something else.
LAYOUT_VERSION = "1"
MOST_HEADER_BYTES = 1 << 20
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
    """What a file holds: `tokens` behind the block whose key is `parent`, read by the model that `root` stands for."""

    kind: Kind
    root: str
    parent: str
    tokens: tuple[int, ...]

    @property
    def key(self) -> str:
        """The name that everything up to these tokens has, which no other beginning shares."""
        told = (self.kind, self.root, self.parent, *map(str, self.tokens))
        return hashlib.blake2b(" ".join(told).encode(), digest_size=16).hexdigest()


def encode(label: Label, arrays: list[State]) -> bytes:
    """Return the file. Evaluates and copies: belongs to the engine's thread."""
    header: dict[str, Any] = {}
    parts, at = list[bytes](), 0
    for index, state in enumerate(arrays):
        for part, array in enumerate(state):
            if array is None:
                continue
            raw = np.asarray(array.reshape(-1).view(mx.uint8)).tobytes()
            shape = {"dtype": NAMES[array.dtype], "shape": list(array.shape)}
            header[f"{index}.{part}"] = shape | {"data_offsets": [at, at + len(raw)]}
            parts.append(raw)
            at += len(raw)
    payload = b"".join(parts)
    header["__metadata__"] = _metadata(label, [len(state) for state in arrays], payload)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + payload


def read_label(path: Path) -> Label:
    """Return what a file says it holds. Raises BlockFileCorrupt, and OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        return _label(_header(file.read(_header_bytes(start)))["__metadata__"])


def decode(label: Label, data: bytes) -> list[State]:
    """Return the arrays of a file that should hold what `label` says. Raises BlockFileCorrupt."""
    begin = 8 + _header_bytes(data[:8])
    header, payload = _header(data[8:begin]), data[begin:]
    metadata = header.pop("__metadata__")
    if _label(metadata) != label or metadata.get("digest") != _digest(payload):
        raise BlockFileCorrupt("its content is not what was written")
    try:
        lengths = [int(length) for length in metadata["lengths"].split()]
        return [
            tuple(_array(header.get(f"{index}.{part}"), payload) for part in range(length))
            for index, length in enumerate(lengths)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BlockFileCorrupt(f"its header is not ours ({error})") from error


def _metadata(label: Label, lengths: list[int], payload: bytes) -> Mapping[str, str]:
    return {
        "layout": LAYOUT_VERSION,
        "kind": label.kind,
        "root": label.root,
        "parent": label.parent,
        "tokens": " ".join(map(str, label.tokens)),
        "lengths": " ".join(map(str, lengths)),
        "digest": _digest(payload),
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


def _array(described: Any, payload: bytes) -> mx.array | None:
    if described is None:
        return None
    begin, end = described["data_offsets"]
    raw = mx.array(np.frombuffer(payload[begin:end], dtype=np.uint8))
    return raw.view(DTYPES[described["dtype"]]).reshape(described["shape"])


def _digest(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
