"""What a training sample is: a conversation, and the answer the model shall learn to give."""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

Message = dict[str, Any]
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


@dataclass(frozen=True)
class Sample:
    """A conversation up to a question (`messages`) and the answer (`reply`) to be learned.

    With `thought`, thinking is on and the reply begins with it.
    """

    kind: str
    messages: list[Message]
    reply: str
    thought: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)

    def prompt(self) -> str:
        """Return the rendered conversation, ready to be answered."""
        text: str = _template().render(
            messages=self.messages,
            tools=self.tools or None,
            add_generation_prompt=True,
            enable_thinking=self.thought is not None,
        )
        return text

    def completion(self) -> str:
        """Return what the model shall write, its end mark included."""
        thought = "" if self.thought is None else f"<think>\n{self.thought}\n</think>\n\n"
        return f"{thought}{self.reply}<|im_end|>"


@cache
def _template() -> Any:
    # transformers renders with the same two whitespace rules; the result must be equal.
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
