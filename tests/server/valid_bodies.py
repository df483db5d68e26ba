"""Bodies with every parameter of every endpoint: `VALID` are answered with 200, `REFUSED` by some models with a 400."""

from __future__ import annotations

from typing import Any

MODEL = "test/fuzzed"
ENCODER = "test/vectors"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: dict[str, Any] = {"name": "get_weather", "description": "Weather", "parameters": WEATHER}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
FLAT_TOOL: dict[str, Any] = {"type": "function", **FUNCTION}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
}
ASKED = {"role": "user", "content": "What is the weather in Bern?"}
PICTURE = {"url": "data:image/png;base64,aGVsbG8="}
USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern"}}
MESSAGE_TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather",
    "input_schema": WEATHER,
}
EPHEMERAL = {"type": "ephemeral"}
# What labels, routes, bills or caches a request, or means "not used".
LABELS: dict[str, Any] = {
    "user": "me",
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "safety_identifier": "me",
    "prompt_cache_key": "key",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "auto"},
    "moderation": {"mode": "auto"},
}
UNUSED: dict[str, Any] = {
    "functions": [],
    "function_call": "auto",
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "web_search_options": None,
    "suffix": "",
}
CONTROLS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "seed": 1,
    "presence_penalty": 1,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": -100},
    "xtc_probability": 0.5,
    "xtc_threshold": 0.1,
    "min_tokens": 1,
    "stop": ["\n\n", "END"],
    "priority": "low",
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
}
CHAT = {"model": MODEL, "max_tokens": 4, "messages": [ASKED]}
TEXT = {"model": MODEL, "max_tokens": 4, "prompt": "Once upon a time"}
RESPONSE = {"model": MODEL, "max_output_tokens": 16, "input": "Hello", "store": False}
MESSAGE = {"model": MODEL, "max_tokens": 4, "messages": [ASKED]}
PLACE = {"name": "place", "description": "A place", "schema": WEATHER, "strict": True}
SAID: dict[str, Any] = {
    "role": "assistant",
    "content": "It is sunny.",
    "name": "me",
    "refusal": None,
    "audio": None,
    "function_call": None,
    "phase": "commentary",
    "annotations": [],
    "parsed": None,
    "extra_content": {"a": 1},
    "provider_specific_fields": {"a": 1},
    "reasoning_content": "Look out.",
    "cache_control": EPHEMERAL,
}
CALLED = {
    "role": "assistant",
    "content": None,
    "reasoning": "Look out.",
    "reasoning_details": [{"type": "reasoning.text", "text": "Look out."}],
    "tool_calls": [
        {
            **CALL,
            "index": 0,
            "cache_control": EPHEMERAL,
            "extra_content": {"a": 1},
            "provider_specific_fields": {"a": 1},
            "thought_signature": "abc",
            "function": {
                **CALL["function"],
                "parsed_arguments": {"city": "Bern"},
                "provider_specific_fields": {"a": 1},
            },
        }
    ],
}
CHAT_RESULT = {
    "role": "tool",
    "tool_call_id": "call_1",
    "content": [{"type": "text", "text": "sunny"}, {"type": "image_url", "image_url": PICTURE}],
}
TEXT_PART = {
    "type": "text",
    "text": "And now?",
    "index": 0,
    "annotations": [],
    "cache_control": EPHEMERAL,
    "prompt_cache_breakpoint": {"type": "auto"},
}
CHATS: list[dict[str, Any]] = [
    CHAT,
    CHAT | CONTROLS | {"logprobs": True, "top_logprobs": 3},
    CHAT | LABELS | UNUSED | {"store": True, "n": 3, "logprobs": True, "max_completion_tokens": 3},
    CHAT | {"n": 2, "stream": True, "seed": 3, "priority": -1, "stop": "x"},
    CHAT | {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    CHAT | {"tools": [TOOL], "tool_choice": "required", "stream": True},
    CHAT | {"tools": [TOOL], "tool_choice": "none"},
    CHAT
    | {"tools": [TOOL]}
    | {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    CHAT
    | {
        "tools": [TOOL],
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "developer", "content": "In English."},
            ASKED,
            CALLED,
            CHAT_RESULT,
            SAID | {"thinking_blocks": [{"type": "thinking", "thinking": "Out.", "signature": ""}]},
            {"role": "user", "content": [TEXT_PART]},
        ],
    },
    CHAT | {"response_format": {"type": "json_schema", "json_schema": PLACE}},
    CHAT | {"response_format": {"type": "json_object"}, "stream": True},
    CHAT | {"response_format": {"type": "text"}},
    CHAT | {"structured_outputs": {"regex": "[0-9]{2}"}, "stream": True},
    CHAT | {"structured_outputs": {"json": WEATHER}},
    CHAT | {"structured_outputs": {"choice": ["yes", "no"]}},
    CHAT | {"structured_outputs": {"grammar": 'start: "a" | "b"'}},
    CHAT | {"structured_outputs": {"grammar": 'root ::= "a" | b+\nb ::= [0-9]{2}'}},
    CHAT | {"chat_template_kwargs": {"shout": True}, "reasoning_effort": "low", "verbosity": "low"},
    CHAT
    | {"reasoning": {"effort": "low", "max_tokens": 9, "exclude": True, "summary": "auto"}}
    | {"include_reasoning": False},
    CHAT | {"reasoning": {"enabled": True}, "enable_thinking": True, "thinking_token_budget": 4},
    CHAT
    | {
        "thinking": {
            "type": "enabled",
            "budget_tokens": 9,
            "display": "omitted",
            "clear_thinking": True,
        }
    },
    CHAT
    | {"messages": [ASKED, {"role": "assistant", "content": "It is"}]}
    | {"continue_final_message": True, "add_generation_prompt": False},
    CHAT | {"messages": [ASKED, {"role": "assistant", "content": "It is", "prefix": True}]},
    CHAT | {"add_generation_prompt": True},
]
TEXTS: list[dict[str, Any]] = [
    TEXT,
    TEXT | CONTROLS | {"logprobs": 2},
    TEXT | LABELS | {"suffix": "", "store": False, "n": 2},
    TEXT | {"prompt": [5, 6, 7], "echo": True, "temperature": 0, "logprobs": 1},
    TEXT | {"prompt": ["Once", "Twice"], "n": 2, "stream": True, "stop": "x", "seed": 3},
    TEXT | {"prompt": [[5, 6], [7]], "best_of": 3, "n": 2},
    TEXT | {"prompt": "Hi", "max_tokens": 0, "echo": True, "logprobs": 1},
    TEXT | {"structured_outputs": {"choice": ["yes", "no"]}},
    TEXT | {"ignore_eos": True, "logit_bias": {"7": 5}},
]
RESPONSE_PART: dict[str, Any] = {
    "type": "output_text",
    "text": "Hi",
    "annotations": [],
    "logprobs": [],
    "parsed": None,
    "index": 0,
    "cache_control": EPHEMERAL,
    "prompt_cache_breakpoint": {"type": "auto"},
}
RESPONSE_CALL = {
    "type": "function_call",
    "call_id": "c1",
    "id": "fc_1",
    "status": "completed",
    "name": "get_weather",
    "namespace": "weather",
    "arguments": "{}",
    "caller": {"type": "direct"},
    "async": False,
    "created_by": "me",
    "end_turn": True,
    "internal_chat_message_metadata_passthrough": {},
    "parsed_arguments": {},
}
RESULT_PARTS = [{"type": "input_text", "text": "sunny"}, {"type": "input_image", "image_url": "x"}]
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "developer", "content": "Be brief."},
    ASKED,
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Look."}],
        "content": [{"type": "reasoning_text", "text": "Look out."}],
        "encrypted_content": "abc",
    },
    RESPONSE_CALL,
    {
        "type": "function_call_output",
        "call_id": "c1",
        "name": "get_weather",
        "output": RESULT_PARTS,
    },
    {
        "type": "message",
        "role": "assistant",
        "content": [RESPONSE_PART],
        "status": "completed",
        "phase": "final_answer",
    },
    {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
]
UNUSED_OF_RESPONSES: dict[str, Any] = {
    "access_programs": None,
    "context_management": [],
    "conversation": None,
    "image": None,
    "personality": None,
    "prompt": None,
    "truncation": "disabled",
    "prompt_cache_options": {"prewarm": False},
    "background_options": {"a": 1},
    "client_metadata": {"a": "b"},
    "max_tool_calls": 3,
}
FLAT_TOOLS: list[dict[str, Any]] = [
    FLAT_TOOL
    | {
        "strict": False,
        "async": False,
        "defer_loading": False,
        "allowed_callers": ["direct"],
        "output_schema": None,
    },
    {"type": "namespace", "name": "agents", "description": "Agents", "tools": [FLAT_TOOL]},
    {"type": "web_search", "external_web_access": False},
]
RESPONSES: list[dict[str, Any]] = [
    RESPONSE,
    RESPONSE | {"input": ITEMS, "instructions": "Be brief.", "tools": FLAT_TOOLS},
    RESPONSE | CONTROLS | {"stream_options": {"include_obfuscation": False}},
    RESPONSE | LABELS | UNUSED_OF_RESPONSES | {"store": True},
    RESPONSE
    | {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}
    | {"top_logprobs": 2, "stream": True},
    RESPONSE | {"tools": [FLAT_TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    RESPONSE
    | {"tools": [FLAT_TOOL], "stream": True}
    | {"tool_choice": {"type": "function", "name": "get_weather"}},
    RESPONSE
    | {"reasoning": {"effort": "low", "summary": "auto", "generate_summary": None}}
    | {"thinking_token_budget": 4, "verbosity": "low"},
    RESPONSE | {"reasoning": {"context": "auto", "mode": "standard"}},
    RESPONSE
    | {"text": {"format": {"type": "json_schema", **PLACE}, "verbosity": "low"}, "stream": True},
    RESPONSE | {"text": {"format": {"type": "json_object"}}},
    RESPONSE | {"structured_outputs": {"regex": "[0-9]{2}"}},
    RESPONSE | {"background": True, "store": True},
    RESPONSE | {"background": True, "store": True, "stream": True},
]
MESSAGE_RESULT = {
    "type": "tool_result",
    "tool_use_id": "toolu_1",
    "is_error": False,
    "content": [
        {"type": "text", "text": "sunny"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
    ],
}
DOCUMENT = {
    "type": "document",
    "title": "Bern",
    "context": "A town",
    "citations": {"enabled": False},
    "source": {"type": "text", "media_type": "text/plain", "data": "Bern is a town."},
}
FOUND = {
    "type": "search_result",
    "source": "a",
    "title": "b",
    "content": [{"type": "text", "text": "c"}],
}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": [DOCUMENT, FOUND, {"type": "text", "text": "Where is it?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Look.", "signature": "abc"},
            {"type": "redacted_thinking", "data": "abc"},
            {"type": "text", "text": "Wait.", "citations": []},
            USE | {"caller": {"type": "direct"}, "toolset_name": None},
        ],
    },
    {"role": "user", "content": [MESSAGE_RESULT]},
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "So?", "cache_control": EPHEMERAL}]},
]
MESSAGE_LABELS: dict[str, Any] = {
    "metadata": {"user_id": "me"},
    "service_tier": "auto",
    "speed": "fast",
    "inference_geo": "eu",
    "billing_policy": "x",
    "fallback_credit_token": "x",
    "diagnostics": {"a": 1},
    "user_profile_id": "x",
    "workspace_id": "x",
    "cache_control": EPHEMERAL,
    "container": None,
    "context_management": {"edits": []},
    "compaction": None,
    "fallbacks": [],
    "mcp_servers": [],
    "thread": None,
}
PROMPT = {
    "model": MODEL,
    "messages": TURNS,
    "system": [{"type": "text", "text": "Hi", "cache_control": EPHEMERAL}],
    "tools": [
        MESSAGE_TOOL
        | {
            "type": "custom",
            "strict": False,
            "eager_input_streaming": True,
            "defer_loading": False,
            "input_examples": [],
            "allowed_callers": ["direct"],
            "cache_control": EPHEMERAL,
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
}
HELD = {"effort": "low", "format": {"type": "json_schema", "schema": WEATHER}, "task_budget": None}
HOW: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.9,
    "top_k": 3,
    "stop_sequences": ["END"],
    "priority": "low",
    "stream": True,
}
MESSAGES: list[dict[str, Any]] = [
    MESSAGE,
    MESSAGE | HOW,
    MESSAGE | {"max_tokens": 0},
    MESSAGE | MESSAGE_LABELS,
    PROMPT | {"max_tokens": 4, "stream": True},
    MESSAGE | {"thinking": {"type": "adaptive"}, "system": "Hi"},
    MESSAGE | {"output_config": HELD},
    MESSAGE | {"output_format": HELD["format"], "stream": True},
    MESSAGE | {"tools": [MESSAGE_TOOL], "tool_choice": {"type": "any"}},
    MESSAGE | {"tools": [MESSAGE_TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}},
    MESSAGE | {"messages": [ASKED, {"role": "assistant", "content": "It is"}]},
]
ASKED_ABOUT: dict[str, Any] = {"model": MODEL, "messages": [ASKED]}

# By endpoint, bodies that are answered with 200.
VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": CHATS,
    "/v1/completions": TEXTS,
    "/v1/responses": RESPONSES,
    "/v1/responses/input_tokens": [one for one in RESPONSES if "background" not in one],
    "/v1/embeddings": [
        {"model": ENCODER, "input": ["the cat", "a dog"], "encoding_format": "base64"},
        {"model": ENCODER, "input": [[5, 6], [7]], "dimensions": 8},
        {"model": ENCODER, "input": "the cat", "encoding_format": "float", "prompt_name": None},
        {"model": ENCODER, "input": [5, 6], "user": "me"},
    ],
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": [
        PROMPT,
        ASKED_ABOUT | MESSAGE_LABELS | {"system": "Hi"},
        ASKED_ABOUT | HOW | {"max_tokens": 4, "output_config": HELD},
        ASKED_ABOUT | {"output_format": HELD["format"]},
    ],
    "/v1/tokenize": [
        {"model": MODEL, "prompt": "Once upon", "return_token_strs": True},
        {"model": ENCODER, "prompt": "the cat", "add_special_tokens": False},
        ASKED_ABOUT
        | {"tools": [TOOL], "tool_choice": "auto", "add_generation_prompt": True}
        | {"chat_template_kwargs": {"shout": True}, "verbosity": "low"},
        ASKED_ABOUT
        | {"reasoning_effort": "low", "reasoning": {"effort": "low"}, "enable_thinking": True}
        | {"thinking": {"type": "enabled"}, "max_tokens": 4},
        ASKED_ABOUT
        | {"messages": [ASKED, {"role": "assistant", "content": "It is"}]}
        | {"continue_final_message": True},
    ],
    "/v1/detokenize": [
        {"model": MODEL, "tokens": [5, 6, 7], "skip_special_tokens": True},
        {"model": ENCODER, "tokens": [5, 6]},
    ],
    "/otlp/v1/traces": [
        {
            "resourceSpans": [
                {
                    "resource": {
                        "attributes": [{"key": "service.name", "value": {"stringValue": "x"}}]
                    },
                    "scopeSpans": [
                        {
                            "scope": {"name": "x"},
                            "spans": [
                                {
                                    "traceId": "5b8efff798038103d269b633813fc60c",
                                    "spanId": "eee19b7ec3c1b174",
                                    "name": "x",
                                    "kind": 2,
                                    "startTimeUnixNano": "1544712660000000000",
                                    "endTimeUnixNano": "1544712661000000000",
                                    "attributes": [{"key": "n", "value": {"intValue": "5"}}],
                                    "events": [{"timeUnixNano": "1544712660500000000"}],
                                    "status": {"code": 1},
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    ],
}

STRICT = {**FUNCTION, "strict": True}
ALLOWED: dict[str, Any] = {"type": "function", "function": FUNCTION | {"strict": None}}
# Bodies that a model refuses whose calls begin with no mark, or that name what is not stored.
REFUSED: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        CHAT | {"tools": [{"type": "function", "function": STRICT}]},
        CHAT
        | {"tools": [TOOL]}
        | {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [ALLOWED]},
            }
        },
    ],
    "/v1/responses": [
        RESPONSE | {"tools": [FLAT_TOOL | {"strict": True}]},
        RESPONSE | {"previous_response_id": "resp_none", "input": [{"id": "msg_none"}]},
        RESPONSE
        | {"tools": [FLAT_TOOL]}
        | {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [
                    FLAT_TOOL
                    | {"strict": None, "async": False, "defer_loading": False}
                    | {"allowed_callers": ["direct"], "output_schema": None}
                ],
            }
        },
    ],
    "/v1/messages": [
        MESSAGE | {"tools": [MESSAGE_TOOL | {"strict": True}]},
    ],
}
