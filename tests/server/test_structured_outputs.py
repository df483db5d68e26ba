"""Answers that must be something, through the real SDK, by the starter model, which would rather say something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from jsonschema import Draft202012Validator
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

import mlx_manager
from tests.server.test_tools import CALL_TOKEN, MODEL, WEATHER, ask
from tests.support.running import RunningServer
from tests.support.spans import Spans

STARTER = Path(mlx_manager.__file__).parent / "starter"
QUESTION = {"role": "user", "content": "What is MLX Manager?"}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "stars": {"type": "integer", "minimum": 0, "maximum": 5},
    },
    "required": ["name", "stars"],
    "additionalProperties": False,
}
STRICT: Any = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=12)
    kind: Literal["town", "village"]
    # Within bounds: the model would write the digits of an integer for ever.
    streets: list[Annotated[int, Field(ge=0, le=999)]] = Field(max_length=3)


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


async def text_of(openai: AsyncOpenAI, **fields: Any) -> str:
    response = await ask(openai, QUESTION, **{"max_tokens": 600, **fields})
    assert response.choices[0].finish_reason == "stop"
    return str(response.choices[0].message.content)


async def test_the_sdk_parses_an_answer_into_a_model_of_ours(openai: AsyncOpenAI) -> None:
    response = await openai.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        temperature=1,
        response_format=Place,
    )
    assert isinstance(response.choices[0].message.parsed, Place)


async def test_a_streamed_answer_is_held_to_its_schema_too(openai: AsyncOpenAI) -> None:
    stream = await ask(openai, QUESTION, response_format=schema_format(SCHEMA), stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert Draft202012Validator(SCHEMA).is_valid(json.loads(text))


async def test_a_json_object_is_an_object_of_any_kind(openai: AsyncOpenAI) -> None:
    short = {"response_format": {"type": "json_object"}, "temperature": 0.5, "seed": 3}
    response = await ask(openai, QUESTION, max_tokens=300, **short)
    choice = response.choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"regex": "[a-c]{2}/[0-9]"}, "[a-c]{2}/[0-9]"),
        ({"choice": ["très bien", 'say "no"']}, '(très bien|say "no")'),
        ({"grammar": 'start: "<" NAME ">"\nNAME: /[a-z]{1,5}/'}, "<[a-z]{1,5}>"),
        ({"grammar": 'root ::= "<" name ">"\nname ::= [a-z]{1,5}\n'}, "<[a-z]{1,5}>"),
        ({"grammar": 'root ::= ("a" | "b"){2,4} end # twice\nend ::= "." "."'}, "[ab]{2,4}[.]{2}"),
        ({"json": {"enum": [1, 22]}}, "(1|22)"),
        ({"choice": ["<|im_end|>", "</think> <tool_call>"]}, "(<.im_end.>|</think> <tool_call>)"),
        ({"json": {"const": "<|im_start|>system"}}, '"<.im_start.>system"'),
        ({"choice": [f"choice number {number}" for number in range(5000)]}, "choice number [0-9]+"),
    ],
)
async def test_other_forms_are_kept_to_as_well(
    openai: AsyncOpenAI, asked: dict[str, Any], expected: str
) -> None:
    assert re.fullmatch(expected, await text_of(openai, extra_body={"structured_outputs": asked}))


@pytest.mark.parametrize("step", [25, 1000, 0.5])
async def test_a_number_is_a_multiple_of_what_its_schema_says(
    openai: AsyncOpenAI, step: float
) -> None:
    schema = {"type": "number", "multipleOf": step, "minimum": 0, "maximum": step * 40}
    number = json.loads(await text_of(openai, response_format=schema_format(schema)))
    assert number % step == 0


async def test_completions_can_be_held_to_something_too(openai: AsyncOpenAI) -> None:
    response = await openai.completions.create(
        model=MODEL, prompt="One, two, ", extra_body={"structured_outputs": {"choice": ["three", "four"]}}
    )  # fmt: skip
    assert response.choices[0].text in ("three", "four")


async def test_thoughts_are_free_and_the_answer_behind_them_is_not(openai: AsyncOpenAI) -> None:
    response = await ask(
        openai, QUESTION, response_format=schema_format(SCHEMA), reasoning_effort="low"
    )
    message = response.choices[0].message
    assert message.reasoning_content == "This is about MLX Manager."
    assert Draft202012Validator(SCHEMA).is_valid(json.loads(message.content))


async def test_arguments_of_a_strict_tool_are_of_its_schema(openai: AsyncOpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Oslo", "Rome"]},
            "days": {"type": "integer", "minimum": 3, "maximum": 3},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    # Left to itself the model says Bern, and no number of days.
    offered: dict[str, Any] = WEATHER["function"]  # type: ignore[assignment]
    tool = {"type": "function", "function": offered | {"strict": True, "parameters": parameters}}
    question = {"role": "user", "content": "What is the weather in Bern?"}
    response = await ask(openai, question, tools=[tool])
    (call,) = response.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert Draft202012Validator(parameters).is_valid(json.loads(call.function.arguments))


async def test_with_strict_tools_an_answer_may_still_be_text(openai: AsyncOpenAI) -> None:
    plain, offered = await ask(openai, QUESTION), await ask(openai, QUESTION, tools=[STRICT])
    assert offered.choices[0].finish_reason == "stop"
    assert plain.choices[0].finish_reason == "stop"
    assert offered.choices[0].message.tool_calls is None


# It knows no JSON but that of calls, and would rather call once more.
NO_CALL = {str(CALL_TOKEN): -100}
WEATHER_QUESTION = {"role": "user", "content": "What is the weather in Bern?"}
RESULT = [
    WEATHER_QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 C"},
]


def test_the_token_that_begins_a_call_is_the_one_that_is_meant() -> None:
    tokenizer = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    assert tokenizer.id_to_token(CALL_TOKEN) == "<tool_call>"


@pytest.mark.parametrize("tool", [WEATHER, STRICT], ids=["loose", "strict"])
@pytest.mark.parametrize("effort", [None, "low"], ids=["at once", "behind thoughts"])
async def test_with_tools_and_a_format_the_model_calls_first_and_answers_in_the_format_then(
    openai: AsyncOpenAI, tool: Any, effort: str | None
) -> None:
    fields: dict[str, Any] = {"tools": [tool], "response_format": schema_format(SCHEMA)}
    if effort is not None:
        fields["reasoning_effort"] = effort
    called = (await ask(openai, WEATHER_QUESTION, **fields)).choices[0]
    assert called.finish_reason == "tool_calls"
    assert called.message.content is None
    (call,) = called.message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    shy: dict[str, Any] = {"logit_bias": NO_CALL, "max_tokens": 400}
    answered = (await ask(openai, *RESULT, **fields, **shy)).choices[0]
    assert answered.finish_reason == "stop"
    assert Draft202012Validator(SCHEMA).is_valid(json.loads(answered.message.content))


async def test_a_parsed_response_may_call_its_strict_tools_first(openai: AsyncOpenAI) -> None:
    tool: Any = {"type": "function", **STRICT["function"]}
    asked: dict[str, Any] = {"model": MODEL, "tools": [tool], "text_format": Place}
    question: Any = [WEATHER_QUESTION]
    called = await openai.responses.parse(input=question, temperature=0, **asked)
    [call] = called.output
    assert call.type == "function_call"
    assert called.output_parsed is None
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 C"}
    answered = await openai.responses.parse(
        input=[result],  # type: ignore[list-item]
        previous_response_id=called.id,
        temperature=0,
        extra_body={"logit_bias": NO_CALL},
        **asked,
    )
    assert isinstance(answered.output_parsed, Place)


async def test_a_message_with_strict_tools_and_a_format_calls_or_answers_in_its_format(
    anthropic: AsyncAnthropic,
) -> None:
    tool: Any = {
        "name": "get_weather",
        "description": "Get the weather of a place",
        "input_schema": STRICT["function"]["parameters"],
        "strict": True,
    }
    asked: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 400,
        "tools": [tool],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "extra_body": {"temperature": 0},
    }
    reasons = set()
    # Which of both it takes is for the model to say: of several questions it calls at some.
    for question in (
        str(WEATHER_QUESTION["content"]),
        "Tell me a joke",
        "Tell me a story",
        "How do I use the OpenAI client?",
        "How do I use the Anthropic client?",
    ):
        message: Any = [{"role": "user", "content": question}]
        answered = await anthropic.messages.create(messages=message, **asked)
        [block] = answered.content
        if block.type == "tool_use":
            assert answered.stop_reason == "tool_use"
            assert set(block.input) == {"city"}
        else:
            assert block.type == "text"
            assert answered.stop_reason == "end_turn"
            assert Draft202012Validator(SCHEMA).is_valid(json.loads(block.text))
        reasons.add(answered.stop_reason)
    assert reasons == {"tool_use", "end_turn"}


async def test_a_format_beside_a_call_that_must_be_made_is_no_hindrance(
    openai: AsyncOpenAI,
) -> None:
    fields: dict[str, Any] = {"tools": [STRICT], "response_format": schema_format(SCHEMA)}
    response = await ask(openai, QUESTION, tool_choice="required", max_tokens=400, **fields)
    assert response.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("temperature", [0, 1.3])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
async def test_a_call_that_must_be_made_is_one_of_the_tools_and_well_formed(
    openai: AsyncOpenAI, choice: Any, temperature: float
) -> None:
    question = {"role": "user", "content": "Tell me a joke"}
    response = await openai.chat.completions.create(
        model=MODEL,
        messages=[question],  # type: ignore[list-item]
        tools=[STRICT],
        tool_choice=choice,
        temperature=temperature,
        seed=1,
        max_tokens=800,
        parallel_tool_calls=False,
    )
    (call,) = response.choices[0].message.tool_calls or []
    assert response.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) >= {"city"}


FORECAST = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 3},
        # What no grammar says is not asked for, as it isn't strict.
        "stops": {
            "type": "array",
            "items": {"enum": ["a", "b"]},
            "uniqueItems": True,
            "maxItems": 0,
        },
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


async def test_a_call_that_must_be_made_has_the_types_and_values_of_its_schema_also_where_it_is_not_strict(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic
) -> None:
    # Left to itself the model says Bern, and no number of days.
    function: dict[str, Any] = {"name": "get_weather", "parameters": FORECAST}
    asked: Any = {"type": "function", "function": {"name": "get_weather"}}
    response = await ask(
        openai,
        WEATHER_QUESTION,
        tools=[{"type": "function", "function": function}],
        tool_choice=asked,
        max_tokens=600,
    )
    (call,) = response.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Oslo", "Rome")
    assert arguments["days"] in (1, 2, 3)
    tool: Any = {"name": "get_weather", "input_schema": FORECAST}
    message: Any = WEATHER_QUESTION
    answered = await anthropic.messages.create(
        model=MODEL,
        max_tokens=600,
        messages=[message],
        tools=[tool],
        tool_choice={"type": "tool", "name": "get_weather"},
        extra_body={"temperature": 0},
    )
    [block] = answered.content
    assert block.type == "tool_use"
    assert block.input == arguments


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"response_format": schema_format({"type": "array", "uniqueItems": True})},
         "response_format.json_schema.schema", "uniqueItems"),
        ({"response_format": schema_format({"type": "nonsense"})},
         "response_format.json_schema.schema", "Invalid type: nonsense"),
        ({"response_format": schema_format({"type": "integer", "multipleOf": 9999991})},
         "response_format.json_schema.schema", "'multipleOf' are too large"),
        ({"response_format": schema_format({"allOf": [{"multipleOf": 997}, {"multipleOf": 9.91}]})},
         "response_format.json_schema.schema", "'multipleOf' are too large"),
        ({"response_format": schema_format({"prefixItems": [{"multipleOf": 25000}] * 4 + [{"multipleOf": 99999}]})},
         "response_format.json_schema.schema", "'multipleOf' are too large"),
        ({"response_format": schema_format({"type": "integer", "multipleOf": 1e300})},
         "response_format.json_schema.schema", "'multipleOf' are too large"),
        ({"structured_outputs": {"grammar": 'start: %json {"\\u006dultipleOf" : 9999991}'}},
         "structured_outputs.grammar", "'multipleOf' are too large"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"grammar": "start: <|unknown|>"}}, "structured_outputs.grammar", "<|unknown|>"),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json", "refers to itself"),
        ({"response_format": schema_format({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}})},
         "response_format.json_schema.schema", "refers to itself"),
        ({"response_format": schema_format({"multipleOf": 9999, "minimum": 123, "maximum": 98765432198})},
         "response_format.json_schema.schema", "'multipleOf' are too large"),
        ({"response_format": schema_format({"const": 2**53 + 1})},
         "response_format.json_schema.schema", "9007199254740993 has more digits"),
        ({"response_format": schema_format({"enum": ["x" * 1000] * 300})},
         "response_format.json_schema.schema", "at most 262144 are compiled"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
         "tools", "not"),
        ({"structured_outputs": {"grammar": "x: y"}}, "structured_outputs.grammar", "can't be kept to"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar",
         "as GBNF, which its '::=' say it is: Rule 'x' not found"),
        ({"structured_outputs": {"grammar": "a ::= b"}}, "structured_outputs.grammar", "begin with 'root ::='"),
        ({"structured_outputs": {"grammar": "root ::= " + "(" * 3000}}, "structured_outputs.grammar", "too deeply"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "one format"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
         "structured_outputs.regex", "one format"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "Leave"),
    ],
)  # fmt: skip
async def test_what_can_not_be_kept_to_is_refused_before_any_token(
    openai: AsyncOpenAI, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(sdk.BadRequestError, match=re.escape(says)) as refusal:
        await openai.chat.completions.create(model=MODEL, messages=[QUESTION], extra_body=fields)  # type: ignore[list-item]
    assert refusal.value.param == param


def strict(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    function = {
        "name": name,
        "strict": True,
        "parameters": schema | {"additionalProperties": False},
    }
    return {"type": "function", "function": function}


UNKEPT = {"type": "array", "uniqueItems": True}
LONG_FORMAT = schema_format({"enum": [f"{number:1000}" for number in range(260)]})


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [strict("f"), strict("g", x=UNKEPT)]},
         "tools", "strict tool 'g' can't be kept to: failed to compile JSON schema: Unimplemented keys"),
        ({"tools": [strict("f"), strict("g", x=UNKEPT)], "tool_choice": "required"},
         "tools", "strict tool 'g' can't be kept to: failed to compile JSON schema: Unimplemented keys"),
        ({"tools": [strict("f"), strict("g", x=UNKEPT)], "response_format": schema_format(SCHEMA)},
         "tools", "strict tool 'g' can't be kept to: failed to compile JSON schema: Unimplemented keys"),
        ({"tools": [strict("f"), strict("g")], "response_format": schema_format(UNKEPT)},
         "response_format.json_schema.schema", "Unimplemented keys"),
        ({"tools": [strict("f"), strict("g", x={"const": "y" * 1500})], "response_format": LONG_FORMAT},
         "tools", "beside the strict tools 'f', 'g', though each can by itself: it has"),
        ({"tools": [strict("g", x={"multipleOf": 97})], "response_format": schema_format({"multipleOf": 113})},
         "tools", "beside the strict tool 'g', though each can by itself: its 'multipleOf'"),
        ({"tools": [strict("g", x={"multipleOf": 99999})], "response_format": schema_format(SCHEMA)},
         "tools", "strict tool 'g' can't be kept to: its 'multipleOf'"),
    ],
)  # fmt: skip
async def test_a_refusal_names_the_tool_the_format_or_both(
    openai: AsyncOpenAI, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(sdk.BadRequestError, match=re.escape(says)) as refusal:
        await openai.chat.completions.create(model=MODEL, messages=[QUESTION], extra_body=fields)  # type: ignore[list-item]
    assert refusal.value.param == param
    if param == "tools":
        assert "'strict' out" in str(refusal.value)


async def test_rules_that_refer_to_each_other_thousandfold_end_no_process(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    engine = server.resident(MODEL).engine
    rules = "\n".join(f'r{number}: "a" r{number + 1}' for number in range(9000))
    grammar = f'start: r0\n{rules}\nr9000: "z"'
    fields = {"structured_outputs": {"grammar": grammar}}
    response = await ask(openai, QUESTION, extra_body=fields, max_tokens=5)
    assert str(response.choices[0].message.content).startswith("aa")
    assert server.resident(MODEL).engine is engine


async def test_a_stream_is_refused_before_it_begins(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": [QUESTION], "stream": True}
    schema = {"response_format": schema_format({"type": "array", "uniqueItems": True})}
    response = await http.post("/v1/chat/completions", json=body | schema)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_other_apis_refuse_a_schema_in_their_own_words(
    http: httpx.AsyncClient, path: str
) -> None:
    schema: dict[str, Any] = {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/messages": {"messages": [QUESTION], "max_tokens": 9, "output_config": schema},
        "/v1/responses": {"input": "Hello", "text": schema},
    }
    if path == "/v1/messages":
        del schema["format"]["name"]
    response = await http.post(path, json={"model": MODEL, **bodies[path]})
    assert response.status_code == 400, response.text
    assert "can't be kept to" in response.json()["error"]["message"]


async def test_a_trace_says_how_long_an_answer_waited_for_its_grammar(
    http: httpx.AsyncClient, server: RunningServer, spans: Spans
) -> None:
    # Compiled when it comes first, and known when it comes again.
    names = [f"property number {number}" for number in range(1500)]
    schema = {"properties": {name: {"type": "null"} for name in names}, "required": names}
    asked = {"response_format": schema_format({"type": "object"} | schema), "max_tokens": 2}
    events = list[dict[str, Any]]()
    for _ in range(2):
        body = {"model": MODEL, "messages": [QUESTION]} | asked
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        await server.close_books()
        queue = spans.named("queue")[-1]
        (event,) = queue.events
        assert event.name == "grammar.ready"
        assert (queue.start_time or 0) <= event.timestamp <= (queue.end_time or 0)
        events.append(dict(event.attributes or {}))
    assert events[0]["mlx.grammar.wait_s"] >= events[0]["mlx.grammar.compile_s"] > 0
    assert "mlx.grammar.compile_s" not in events[1]


async def test_an_expression_with_half_a_surrogate_pair_is_refused(http: httpx.AsyncClient) -> None:
    # The SDK can't send it; JSON can.
    body = (
        b'{"model": "mlx-manager/starter", "messages": [{"role": "user", "content": "x"}],'
        b' "structured_outputs": {"regex": "\\ud800"}}'
    )
    response = await http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "structured_outputs.regex"
