"""From Anthropic's bodies to chat requests: the last place that knows it was Anthropic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Origin,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.wire.anthropic.blocks import (
    ASSISTANT,
    RESULT,
    USER,
    blocks,
    said,
    texts,
    validated,
)
from mlx_manager.wire.anthropic.parameters import (
    HARMLESS,
    HARMLESS_TO_A_COUNT,
    check_unsupported,
)
from mlx_manager.wire.anthropic.schema import (
    CountTokensBody,
    CustomTool,
    MediaBlock,
    MessagesBody,
    MessageTurn,
    Open,
    PromptBody,
    TextBlock,
    ThinkingBlock,
    ThinkingBody,
    ToolChoiceBody,
    ToolResultBlock,
    ToolUseBlock,
)
from mlx_manager.wire.begun import check_begun
from mlx_manager.wire.json_text import check_finite
from mlx_manager.wire.left_out import hosted_beside_others, not_to_be_chosen, remark
from mlx_manager.wire.signature import Signer

MODES: Mapping[str, Literal["auto", "none", "required"]] = {
    "auto": "auto",
    "any": "required",
    "tool": "required",
    "none": "none",
}
FAILED = "Error: "
# Claude Code begins its instructions with a line that is another one in each request and says nothing to a model.
BILLING = "x-anthropic-billing-header:"


def message_request(body: MessagesBody, origin: Origin, signer: Signer) -> ChatRequest:
    """Return what a message asks for. Raises InvalidRequest and UnsupportedParameter."""
    check_unsupported(body.model_extra or {})
    request = ChatRequest(
        model=body.model,
        input=_conversation(body, signer),
        origin=origin,
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            thinking_tokens=body.thinking.budget_tokens if body.thinking else None,
        ),
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
        format=_format(body),
        stream=bool(body.stream),
        priority=body.priority,
    )
    last = f"messages[{len(body.messages) - 1}]"
    return check_begun(_checked_end(request, last), last)


def _checked_end(request: ChatRequest, place: str) -> ChatRequest:
    """Return the request. Raises InvalidRequest where it begins the answer and that ends with white space.

    So does Anthropic's API: behind white space hardly a token begins as it does in texts.
    """
    assert isinstance(request.input, Conversation)
    content = request.input.messages[-1].content
    if request.input.is_begun and content != content.rstrip():
        raise InvalidRequest(
            f"{place} begins the answer, and ends with white space. Leave that out.", param=place
        )
    return request


def count_request(body: CountTokensBody, origin: Origin, signer: Signer) -> ChatRequest:
    """Return the request whose prompt is to be counted. Raises what `message_request` raises."""
    check_unsupported(body.model_extra or {}, harmless=HARMLESS | HARMLESS_TO_A_COUNT)
    conversation = _conversation(body, signer)
    if conversation.messages[-1].tool_calls:
        # Counted before the calls' results are there.
        conversation = replace(conversation, is_begun=False)
    return ChatRequest(model=body.model, input=conversation, origin=origin)


def _conversation(body: PromptBody, signer: Signer) -> Conversation:
    output, thinking = body.output_config, body.thinking
    check_unsupported(
        (output.model_extra if output else None) or {},
        kind="output_config.",
        place="output_config.",
    )
    asked = body.tools or []
    absent = hosted_beside_others([tool.get("type") for tool in asked])
    tools = tuple(_tool(tool, f"tools[{at}]") for at, tool in enumerate(asked) if at not in absent)
    return Conversation(
        messages=tuple(_combined(_turns(body, signer))),
        # Few templates know levels.
        template_arguments=(
            {"reasoning_effort": output.effort} if output and output.effort else {}
        ),
        tools=tools,
        tool_choice=_tool_choice(
            body.tool_choice, tools, {str(asked[at].get("name")) for at in absent}
        ),
        absent_tools=tuple(f"tools[{at}]" for at in sorted(absent)),
        unheld=(BILLING.rstrip(":"),) if _has_billing(body.system) else (),
        is_begun=body.messages[-1].role == "assistant",
        thinking=None if thinking is None else _thinks(thinking, body.messages[-1]),
    )


def _thinks(thinking: ThinkingBody, last: MessageTurn) -> bool:
    """Whether the model is to think now; `between_tools` is when it has the result of one before it."""
    if thinking.type != "between_tools":
        return thinking.type != "disabled"
    given = [] if isinstance(last.content, str) else last.content
    return any(block.get("type") == "tool_result" for block in given)


def _tool(tool: Mapping[str, Any], place: str) -> Tool:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise UnsupportedParameter(
            f"{place} is {kind!r}, which Anthropic's own servers and models provide. This version takes custom "
            "tools, which have an 'input_schema'. Leave this one out, or describe one of your own that does the same.",
            param=place,
        )
    custom = validated(CustomTool, tool, place)
    check_finite({f"{place}.input_schema": custom.input_schema})
    extra = {name: value for name, value in (custom.model_extra or {}).items() if name != "type"}
    check_unsupported(extra, kind="tools[].", place=f"{place}.")
    return Tool(custom.name, custom.description, custom.input_schema, bool(custom.strict))


def _format(body: PromptBody) -> AnswerFormat | None:
    """Return what the answer must be, by the parameter of today or by the one that older clients send."""
    asked, param = body.output_format, "output_format.schema"
    if body.output_config is not None and body.output_config.format is not None:
        asked, param = body.output_config.format, "output_config.format.schema"
    if asked is None:
        return None
    check_finite({param: asked.json_schema})
    return AnswerFormat("json_schema", asked.json_schema, param)


def _tool_choice(
    choice: ToolChoiceBody | None, tools: Sequence[Tool], left_out: AbstractSet[str]
) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    if choice.type in ("any", "tool") and not tools:
        raise InvalidRequest(
            f"'tool_choice' {choice.type!r} needs 'tools', and there are none.", param="tool_choice"
        )
    name = choice.name if choice.type == "tool" else None
    if choice.type == "tool" and name not in {tool.name for tool in tools}:
        if name is not None and name in left_out:
            raise InvalidRequest(not_to_be_chosen(name, "'auto'"), param="tool_choice.name")
        raise InvalidRequest(
            f"'tool_choice' names the tool {name!r}, which is none of 'tools'.",
            param="tool_choice.name",
        )
    is_parallel = not choice.disable_parallel_tool_use
    return ToolChoice(MODES[choice.type], name, is_parallel=is_parallel)


def _turns(body: PromptBody, signer: Signer) -> Iterator[Message]:
    if instructions := _instructions(body.system or ""):
        yield Message("system", instructions)
    for index, turn in enumerate(body.messages):
        place = f"messages[{index}]"
        if turn.role == "user":
            yield from _user(turn, place)
        elif turn.role == "assistant":
            yield _assistant(turn, place, signer)
        else:
            yield Message("system", _text(turn.content, f"{place}.content"))


def _has_billing(system: str | list[dict[str, Any]] | None) -> bool:
    """Whether a line of billing is left out."""
    if isinstance(system, list):
        return any(str(block.get("text", "")).startswith(BILLING) for block in system)
    return system is not None and system.startswith(BILLING)


def _instructions(system: str | list[dict[str, Any]]) -> str:
    """The system prompt without the line of billing, which would keep every request from the prefix cache."""
    if isinstance(system, str):
        line, _, rest = system.partition("\n")
        return rest if line.startswith(BILLING) else system
    return "\n".join(text for text in texts(system, "system") if not text.startswith(BILLING))


def _combined(turns: Iterable[Message]) -> Iterator[Message]:
    """One message for turns of the same role that follow each other, as Anthropic's API has it; results stay apart."""
    for role, alike in groupby(turns, key=attrgetter("role")):
        if role == "tool":
            yield from alike
        else:
            first, *others = alike
            yield _joined(first, *others) if others else first


def _joined(*turns: Message) -> Message:
    return Message(
        role=turns[0].role,
        content="\n".join(turn.content for turn in turns if turn.content),
        tool_calls=tuple(call for turn in turns for call in turn.tool_calls),
        reasoning="\n".join(turn.reasoning for turn in turns if turn.reasoning) or None,
    )


def _user(turn: MessageTurn, place: str) -> Iterator[Message]:
    """The user's words and the results of tools, in the order in which they stand."""
    if isinstance(turn.content, str):
        yield Message("user", turn.content)
        return
    found = blocks(turn.content, USER, f"{place}.content")
    for is_result, alike in groupby(found, key=lambda one: isinstance(one[1], ToolResultBlock)):
        if is_result:
            for at, block in alike:
                assert isinstance(block, ToolResultBlock)
                yield _tool_result(block, at)
        else:
            yield Message("user", "\n".join(_words(block, at) for at, block in alike))
    if not turn.content:
        yield Message("user", "")


def _words(block: Open, place: str) -> str:
    text = said(block, place)
    if text is None:
        raise UnsupportedParameter(
            f"{place} is a document that isn't text. This version understands those whose source is of type 'text', or "
            "'content' with nothing but text.",
            param=place,
        )
    return text


def _tool_result(block: ToolResultBlock, place: str) -> Message:
    pieces, left_out = _pieces(block.content or "", f"{place}.content")
    text = "\n".join(pieces)
    return Message(
        "tool",
        FAILED + text if block.is_error else text,
        tool_call_id=block.tool_use_id,
        left_out=left_out,
    )


def _pieces(content: str | list[dict[str, Any]], place: str) -> tuple[list[str], int]:
    """The texts of a result, with remarks in place of what isn't text; and how many of those there are."""
    if isinstance(content, str):
        return [content], 0
    pieces, left_out = list[str](), 0
    for at, block in blocks(content, RESULT, place):
        if isinstance(block, MediaBlock):
            pieces.append(remark(block.type))
            left_out += 1
        else:
            pieces.append(said(block, at) or "")
    return pieces, left_out


def _assistant(turn: MessageTurn, place: str, signer: Signer) -> Message:
    if isinstance(turn.content, str):
        return Message("assistant", turn.content)
    spoken, thoughts, calls = list[str](), list[str](), list[ToolCall]()
    for at, block in blocks(turn.content, ASSISTANT, f"{place}.content"):
        match block:
            case TextBlock():
                spoken.append(block.text)
            case ThinkingBlock():
                thoughts.append(signer.read(block.thinking, block.signature))
            case ToolUseBlock():
                check_finite({f"{at}.input": block.input})
                calls.append(ToolCall(block.id, block.name, block.input))
            case _:
                # Redacted by Anthropic, for Anthropic: nobody else can read it.
                pass
    reasoning = "\n".join(filter(None, thoughts)) or None
    # Citations cut a sentence of the assistant's into blocks: nothing belongs between them.
    return Message("assistant", "".join(spoken), tool_calls=tuple(calls), reasoning=reasoning)


def _text(content: str | list[dict[str, Any]], place: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(texts(content, place))
