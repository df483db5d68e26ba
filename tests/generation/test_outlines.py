"""What an outline leaves of a schema: nothing that excludes a valid value, and all that certainly holds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.families.family import FAMILIES
from mlx_manager.mlx_server.generation.call_grammars import call_of
from mlx_manager.mlx_server.generation.grammar_rules import Says
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.generation.outlines import outline, outlined
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from tests.generation.test_schema_corpus import STARTER, Walker, matcher_of
from tests.support.json_schemas import HELD, REFUSED, Schema, schemas

CORPUS = schemas(HELD) + schemas(REFUSED)
INTEGER, TEXT = {"type": "integer"}, {"type": "string"}
A = {"$ref": "#/$defs/a"}


@pytest.fixture(scope="module")
def text() -> ModelText:
    return load_model_text(ModelFiles("starter", Path(STARTER), "built-in", 0))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    vocabulary = Vocabulary(STARTER)
    vocabulary.read()
    return vocabulary


@pytest.mark.parametrize("schema", [one for _, one in schemas(HELD)], ids=[n for n, _ in schemas(HELD)])  # fmt: skip
def test_what_is_valid_is_of_the_outline_too(
    schema: Schema, text: ModelText, vocabulary: Vocabulary
) -> None:
    found, chance = Draft202012Validator(outline(schema)), random.Random(1)
    matcher = matcher_of(schema, text, vocabulary)
    for _ in range(4):
        written = Walker(vocabulary).walk(matcher.copy(), chance)
        if written is not None:
            assert found.is_valid(json.loads(written)), written


def test_every_outline_compiles(vocabulary: Vocabulary) -> None:
    form = next(one.form for one in FAMILIES if one.name == "hermes")
    assert form is not None
    says = Says(json.dumps, lambda schema: f"%json {json.dumps(schema)}")
    count = 0
    for _, schema in CORPUS:
        within = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
        if (tool := outlined(Tool("f", None, within))) is not None:
            vocabulary.matcher(call_of(tool, form, says))
            count += 1
    assert count > 200


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "pattern": "^(?=a)", "format": "x", "minLength": 9}, TEXT),
        ({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 9},
         INTEGER | {"minimum": 1, "maximum": 9}),
        ({"type": "integer", "minimum": 9, "maximum": 1}, INTEGER),
        ({"type": ["string", "null"], "description": "x"}, {"type": ["string", "null"]}),
        ({"type": "string", "enum": ["a", "b"]}, {"enum": ["a", "b"]}),
        ({"const": 1}, {"enum": [1]}),
        ({"const": 2**60}, {}),
        ({"enum": []}, {}),
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, {"type": "array", "items": INTEGER}),
        ({"type": "array", "prefixItems": [TEXT], "items": INTEGER}, {"type": "array"}),
        ({"type": "object", "patternProperties": {"a": TEXT}, "additionalProperties": False}, {"type": "object"}),
        ({"type": "object", "required": ["a"], "additionalProperties": False},
         {"type": "object", "required": ["a"]}),
        ({"type": "object", "properties": {"a": {"not": TEXT}}, "if": {}}, {"type": "object", "properties": {"a": {}}}),
        ({"oneOf": [TEXT, INTEGER]}, {"anyOf": [TEXT, INTEGER]}),
        ({"anyOf": [TEXT, {"not": {}}]}, {}),
        ({"allOf": [TEXT, {"minLength": 2}]}, {}),
        ({"allOf": [TEXT]}, {"anyOf": [TEXT]}),
        ({"type": "nonsense"}, {}),
        ({"$ref": "https://example.com/schema"}, {}),
    ],
)  # fmt: skip
def test_of_a_schema_remains_what_certainly_holds(schema: Schema, expected: Schema) -> None:
    assert outline(schema) == expected


def parameters(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"enum": [1]},
        {"$ref": "#/nowhere"},
        parameters(**{f"a{at}": TEXT for at in range(201)}),
        parameters(a={"anyOf": [{"type": "array", "items": TEXT}] * 51}),
        parameters(a=A) | {"required": ["a"], "$defs": {"a": parameters(a=A) | {"required": ["a"]}}},
    ],
)  # fmt: skip
def test_what_says_nothing_or_too_much_has_none(schema: Schema) -> None:
    assert outlined(Tool("f", None, schema)) is None


def test_definitions_that_are_nothing_but_each_other_say_nothing() -> None:
    b = {"$ref": "#/$defs/b"}
    tree = {"anyOf": [TEXT, {"type": "array", "items": {"$ref": "#/$defs/tree"}}]}
    schema = parameters(x=A) | {"$defs": {"a": b, "b": {"anyOf": [A, b]}, "tree": tree}}
    assert outline(schema)["$defs"] == {"a": {}, "b": {}, "tree": tree}


def test_references_of_the_root_are_followed() -> None:
    place = parameters(city=TEXT) | {"required": ["city"]}
    schema = {"$ref": "#/definitions/Place", "definitions": {"Place": place}}
    tool = outlined(Tool("f", None, schema))
    assert tool is not None
    assert {name: tool.parameters[name] for name in place} == place
    assert tool.is_strict
