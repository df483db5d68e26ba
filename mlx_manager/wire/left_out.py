"""What the model is told of a tool's result that it can't read.

Agents read pictures and documents with their tools, and send the results back with every later turn. Refused, such a
conversation would be at its end; with a remark in its place the model can say so, or look for another way. What the
user shows is refused: there the remark would answer a question that was asked about the picture.
"""

from __future__ import annotations

from collections.abc import Mapping

# By the type of a part or a block in any of the APIs.
NAMES: Mapping[str, str] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "document": "document",
    "file": "file",
    "input_file": "file",
}


def remark(kind: str) -> str:
    """Return what stands in the place of a part of a type that is among `NAMES`."""
    return f"[{NAMES[kind]} left out: this model reads text only]"
