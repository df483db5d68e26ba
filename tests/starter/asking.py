"""Ask a loaded model one question, greedily."""

from typing import Any

from mlx_lm import stream_generate


def ask(
    starter: tuple[Any, Any], question: str, *, thinking: bool = False,
    tools: list[dict[str, Any]] | None = None,
) -> str:  # fmt: skip
    """Return the answer; it must end by itself."""
    return answer(starter, [{"role": "user", "content": question}], thinking=thinking, tools=tools)


def answer(
    starter: tuple[Any, Any], messages: list[dict[str, Any]], *, thinking: bool = False,
    tools: list[dict[str, Any]] | None = None,
) -> str:  # fmt: skip
    """Return the answer to a conversation; it must end by itself."""
    model, tokenizer = starter
    prompt = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking
    )
    steps = list(stream_generate(model, tokenizer, prompt, max_tokens=400))
    assert steps[-1].finish_reason == "stop"
    return "".join(step.text for step in steps)


def function(name: str, key: str, description: str) -> dict[str, Any]:
    """Return the declaration of a function with one text argument."""
    properties = {key: {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": [key]}
    described = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": described}
