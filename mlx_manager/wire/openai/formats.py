"""What an answer must be, from the two parameters that say so."""

from __future__ import annotations

import json

from mlx_manager.chat.request import AnswerFormat
from mlx_manager.errors import InvalidRequest
from mlx_manager.wire.json_text import check_finite
from mlx_manager.wire.openai.schema import (
    ChatCompletionBody,
    GenerationBody,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredOutputs,
)

RESPONSE_FORMAT = "response_format"
STRUCTURED_OUTPUTS = "structured_outputs"


def answer_format(body: GenerationBody) -> AnswerFormat | None:
    """Return what an answer must be; None for any text. Raises InvalidRequest when it is said twice."""
    return the_only(_response_formats(body), body.structured_outputs, RESPONSE_FORMAT)


def the_only(
    formats: list[AnswerFormat], structured_outputs: StructuredOutputs | None, param: str
) -> AnswerFormat | None:
    """Return the one format among those that `param` asked for and those of `structured_outputs`; None without any.

    Raises InvalidRequest when there are several.
    """
    found = [*formats, *_structured_outputs(structured_outputs)]
    if len(found) > 1:
        raise InvalidRequest(
            f"An answer can be held to one format. Send one of {param!r} and {STRUCTURED_OUTPUTS!r}, with one way to "
            "say it.",
            param=found[-1].param,
        )
    return found[0] if found else None


def _response_formats(body: GenerationBody) -> list[AnswerFormat]:
    asked = body.response_format if isinstance(body, ChatCompletionBody) else None
    match asked:
        case JsonObjectFormat():
            return [AnswerFormat("json_schema", {"type": "object"}, RESPONSE_FORMAT)]
        case JsonSchemaFormat():
            schema, param = asked.json_schema.json_schema, f"{RESPONSE_FORMAT}.json_schema.schema"
            check_finite({param: schema})
            return [AnswerFormat("json_schema", schema, param)]
        case _:
            return []


def _structured_outputs(asked: StructuredOutputs | None) -> list[AnswerFormat]:
    found = list[AnswerFormat]()
    if asked is None:
        return found
    if asked.json_schema is not None:
        check_finite({f"{STRUCTURED_OUTPUTS}.json": asked.json_schema})
        found.append(AnswerFormat("json_schema", asked.json_schema, f"{STRUCTURED_OUTPUTS}.json"))
    if asked.regex is not None:
        found.append(AnswerFormat("regex", asked.regex, f"{STRUCTURED_OUTPUTS}.regex"))
    if asked.choice is not None:
        choices = " | ".join(json.dumps(choice) for choice in asked.choice)
        # As one terminal, which many thousands may be; a rule can't have more than 2,000 ways to go on.
        grammar = f"start: CHOICE\nCHOICE: {choices}"
        found.append(AnswerFormat("grammar", grammar, f"{STRUCTURED_OUTPUTS}.choice"))
    if asked.grammar is not None:
        found.append(AnswerFormat("grammar", asked.grammar, f"{STRUCTURED_OUTPUTS}.grammar"))
    return found
