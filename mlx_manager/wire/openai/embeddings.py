"""`POST /v1/embeddings`: its body, and the object that answers it, as the `openai` SDK 3.54 sends and reads them."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from mlx_manager.chat.embeddings import EmbeddingRequest, Embeddings
from mlx_manager.chat.request import Origin
from mlx_manager.errors import InvalidRequest
from mlx_manager.wire.openai.parameters import check_unsupported
from mlx_manager.wire.openai.schema import MAX_MODEL_ID

MAX_INPUTS = 2048
EncodingFormat = Literal["float", "base64"]


class EmbeddingsBody(BaseModel):
    """Body of `POST /v1/embeddings`; `input` is one text or many, each a string or a list of token ids.

    It keeps every field that was sent, so that what can't be honoured is refused.
    """

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=MAX_MODEL_ID)] = Field(
        description="Id of a model that makes embeddings"
    )
    input: (
        str
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    ) = Field(
        description="A text, a list of texts, the token ids of one, or a list of such lists; at most 2,048 inputs, "
        "none of them empty"
    )
    encoding_format: EncodingFormat | None = Field(
        None, description="`float` (the default), or `base64` of little-endian 32-bit floats"
    )
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="Keep so many numbers of each vector, the first ones"
    )
    prompt_name: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None,
        description="Which of the model's own prompts to put before texts; not in OpenAI's own API",
    )


def embedding_request(body: EmbeddingsBody, origin: Origin) -> EmbeddingRequest:
    """Return what the body asks for. Raises InvalidRequest and UnsupportedParameter."""
    check_unsupported(body.model_extra or {})
    return EmbeddingRequest(
        model=body.model,
        inputs=_inputs(body.input),
        origin=origin,
        dimensions=body.dimensions,
        prompt_name=body.prompt_name,
        encoding_format=body.encoding_format,
    )


def _inputs(
    given: str | list[int] | list[str] | list[list[int]],
) -> tuple[str | tuple[int, ...], ...]:
    many: Sequence[str | int | list[int]] = [given] if isinstance(given, str) else given
    if not many:
        raise InvalidRequest("'input' is empty. Send a text or token ids.", param="input")
    if isinstance(many[0], int):
        return (tuple(one for one in many if isinstance(one, int)),)
    if len(many) > MAX_INPUTS:
        raise InvalidRequest(
            f"'input' has {len(many)} items; a request may have {MAX_INPUTS}. Send the others in another one.",
            param="input",
        )
    inputs = tuple(one if isinstance(one, str) else tuple(_ids(one)) for one in many)
    for index, one in enumerate(inputs):
        if not one:
            raise InvalidRequest(f"input[{index}] is empty. Leave it out.", param="input")
    return inputs


def _ids(one: int | list[int]) -> list[int]:
    return [one] if isinstance(one, int) else one


def embeddings_object(answer: Embeddings, encoding_format: EncodingFormat | None) -> bytes:
    """Return the JSON of the answer: vectors as lists of numbers, or their 32-bit floats as base64."""
    write: Callable[[array[float]], Any] = _base64 if encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": write(vector)}
        for index, vector in enumerate(answer.vectors)
    ]
    tokens = {"prompt_tokens": answer.input_tokens, "total_tokens": answer.input_tokens}
    whole = {"object": "list", "data": data, "model": answer.model, "usage": tokens}
    return msgspec.json.encode(whole)


def _base64(vector: array[float]) -> str:
    """The numbers in little-endian order, whatever this machine's is."""
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
