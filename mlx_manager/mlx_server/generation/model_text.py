"""A model's text side: its tokenizer, chat template, end tokens, context length and default sampling.

Everything here is plain Python and slow by the event loop's measure: call it in a thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mlx_manager.chat.events import Adjustment
from mlx_manager.chat.request import Conversation, RawPrompt, Sampling, Tool
from mlx_manager.chat.tokens import DetokenizeRequest, TokenizeRequest, Tokens
from mlx_manager.errors import InvalidRequest, ModelLoadFailed, UnsupportedParameter
from mlx_manager.long_lived import keep_all_so_far
from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.engine.token_bytes import TokenBytes
from mlx_manager.mlx_server.families import harmony
from mlx_manager.mlx_server.families.family import Family, family_of
from mlx_manager.mlx_server.generation.canonical import canonical
from mlx_manager.mlx_server.generation.channels import in_channels
from mlx_manager.mlx_server.generation.fingerprint import traits_of
from mlx_manager.mlx_server.generation.system_messages import SystemPlace, placed, system_place
from mlx_manager.mlx_server.generation.telling import Telling, tellings
from mlx_manager.mlx_server.generation.template_messages import (
    template_messages,
    with_instructions,
)
from mlx_manager.mlx_server.generation.template_variables import template_variables
from mlx_manager.mlx_server.generation.whereabouts import Part, parts_of
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.fit import own_context

LONGEST_TERM = 32
# Sampling that OpenAI's API documents for a request that says nothing.
API_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
DEFAULT_XTC_THRESHOLD = 0.1
# Two names for one thing: most templates' own, and DeepSeek's.
SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt for the engine. `opening` is the part of it that belongs to the answer, for whoever reads that.

    `parts` say which tokens are which message's. What is `reordered` has another order than was sent. An answer that
    `is_begun` goes on behind what its client has of it already; then `opening` is the mark that this leaves open.
    """

    token_ids: list[int]
    opening: str = ""
    parts: tuple[Part, ...] = ()
    reordered: tuple[Adjustment, ...] = ()
    is_begun: bool = False


@dataclass(frozen=True, slots=True)
class ModelText:
    """What turns requests into token ids and back for one model, and what its config says of its weights.

    Reading all this took `load_s`. The chat template reads `template_variables`, and is told of earlier calls
    by one of `tellings`, the second in requests with tools. With `is_canonical` conversations are put into their
    lasting order first. Other files or settings that make other prompts have other `traits`.
    """

    model_id: str
    tokenizer: Any
    context_tokens: int
    vocabulary_size: int
    end_token_ids: tuple[int, ...]
    sampling_defaults: dict[str, Any]
    token_bytes: TokenBytes
    quantization: str | None
    family: Family
    shown_ids: frozenset[int]
    load_s: float
    is_canonical: bool = False
    system_place: SystemPlace = "anywhere"
    tellings: tuple[Telling, Telling] = (Telling(), Telling())
    template_variables: frozenset[str] = frozenset()
    traits: str = ""

    @property
    def has_thinking_switch(self) -> bool:
        """Whether the chat template can switch thinking on and off."""
        return not self.template_variables.isdisjoint(SWITCHES)

    def encode(self, prompt: Conversation | RawPrompt) -> Encoded:
        """Return the prompt for the engine. Raises InvalidRequest when the model can't take it."""
        if isinstance(prompt, Conversation):
            prompt, names = canonical(prompt) if self.is_canonical else (prompt, ())
            reordered = [Adjustment(name, "reordered", "canonical_prompts") for name in names]
            if self._moves_system(prompt):
                reordered.append(Adjustment("messages", "reordered", "chat_template"))
            if prompt.is_begun:
                rendered, opening = self._begun(prompt)
                encoding = self._encoding(rendered, add_special_tokens=False)
                parts = parts_of(prompt, rendered, encoding)
                return Encoded(encoding.ids, opening, parts, tuple(reordered), is_begun=True)
            rendered, forced = self.render(prompt), self._forced(prompt)
            thought = self._open_reasoning(rendered)
            if forced and thought:
                # A call within thoughts would be none.
                rendered += self._end_of_reasoning
            encoding = self._encoding(rendered + forced, add_special_tokens=False)
            parts = parts_of(prompt, rendered, encoding)
            return Encoded(encoding.ids, forced or thought, parts, tuple(reordered))
        if isinstance(prompt.prompt, str):
            token_ids = self._encoding(
                prompt.prompt, add_special_tokens=True, param=prompt.place
            ).ids
        else:
            token_ids = self._checked(prompt.prompt, prompt.place)
        return Encoded(token_ids, self._echo(prompt) if prompt.is_echoed else "")

    def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Return the tokens of a text, or those that a conversation is answered from. Raises InvalidRequest."""
        if isinstance(request.input, Conversation):
            token_ids = self.encode(request.input).token_ids
        else:
            token_ids = self._encoding(
                request.input, add_special_tokens=request.adds_special_tokens
            ).ids
        pieces = [self.tokenizer.backend_tokenizer.id_to_token(one) for one in token_ids]
        return Tokens(token_ids, pieces, self.context_tokens)

    def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of token ids. Raises InvalidRequest for one that the model doesn't have."""
        token_ids = self._checked(request.token_ids, "tokens")
        decode = self.tokenizer.backend_tokenizer.decode
        return str(decode(token_ids, skip_special_tokens=request.skips_special_tokens))

    def render(self, conversation: Conversation) -> str:
        """Return the conversation as text in the model's own format, ready for the assistant's turn."""
        return in_channels(self._rendered, conversation, self.family)

    def _rendered(self, conversation: Conversation) -> str:
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                f"{self.model_id} has no chat template, so it can't chat. Use /v1/completions with it.",
                param="model",
            )
        tools = [_template_tool(tool) for tool in callable_tools(conversation)]
        messages = self._turns(conversation)
        if tools and not self._template_knows("tools"):
            messages, tools = with_instructions(messages, tools, self.family), []
        messages = placed(messages, self.system_place)
        try:
            return _applied(self.tokenizer, messages, tools or None, **_variables(conversation))
        except Exception as error:  # a template is a program that came with the model
            raise InvalidRequest(
                f"The chat template of {self.model_id} refuses these messages: {error}",
                param="messages",
            ) from error

    def _moves_system(self, conversation: Conversation) -> bool:
        """Whether system messages stand where the template has no place for them."""
        if self.system_place == "anywhere":
            return False
        turns = self._turns(conversation)
        return placed(turns, self.system_place) is not turns

    def _turns(self, conversation: Conversation) -> list[dict[str, Any]]:
        telling = self.tellings[bool(callable_tools(conversation))]
        return template_messages(conversation.messages, self.family, telling)

    def sampling_parameters(self, asked: Sampling) -> SamplingParameters:
        """Return every choice made: what was asked for, else the model's own default, else the API's.

        Raises InvalidRequest for a bias on a token that the model doesn't have.
        """
        own = self.sampling_defaults
        repetition = asked.repetition_penalty
        threshold = asked.xtc_threshold
        return SamplingParameters(
            temperature=own["temperature"] if asked.temperature is None else asked.temperature,
            top_p=own["top_p"] if asked.top_p is None else asked.top_p,
            top_k=own["top_k"] if asked.top_k is None else asked.top_k,
            min_p=own["min_p"] if asked.min_p is None else asked.min_p,
            seed=asked.seed,
            xtc_probability=asked.xtc_probability or 0.0,
            xtc_threshold=DEFAULT_XTC_THRESHOLD if threshold is None else threshold,
            repetition_penalty=own["repetition_penalty"] if repetition is None else repetition,
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            logit_bias=self._checked_bias(asked.logit_bias),
            min_tokens=asked.min_tokens or 0,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return what some tokens of a prompt say, special ones included."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def end_token_ids_for(self, asked: Sampling) -> tuple[int, ...]:
        """Return the tokens that end an answer; none when it shall go on behind them."""
        return () if asked.ignore_end else self.end_token_ids

    def _forced(self, conversation: Conversation) -> str:
        """Return what the answer is made to begin with: a call, when it must be one."""
        choice = conversation.tool_choice
        if choice.mode != "required" or not conversation.tools:
            return ""
        if self.family.in_messages:
            # Its thoughts come first, and what must follow them is its grammar's to say.
            return ""
        if self.family.form is None:
            raise UnsupportedParameter(
                f"{self.model_id} can't be made to call a tool yet. Send 'tool_choice' \"auto\" or leave it out.",
                param="tool_choice",
            )
        form = self.family.form
        return form.opening if choice.name is None else form.opening_of(choice.name)

    def _begun(self, conversation: Conversation) -> tuple[str, str]:
        """Return a conversation whose last message begins the answer, and the mark that this leaves open.

        It is what the model would have written behind the prompt that asks for the answer: templates close a whole
        message, cut white space off, and leave thoughts out. Raises InvalidRequest.
        """
        *earlier, last = conversation.messages
        mark, end = self.family.reasoning or ("", "")
        written = last.content.lstrip() if mark and last.content.lstrip().startswith(mark) else ""
        thinks = bool(written or last.reasoning)
        if conversation.thinking and not thinks and self.family.thinks:
            raise InvalidRequest(
                f"The last message begins the answer, and {self.model_id} would have to think before it. Switch its "
                "reasoning off, or leave the beginning out.",
                param="messages",
            )
        rendered = self.render(
            replace(conversation, messages=tuple(earlier), thinking=thinks, is_begun=False)
        )
        if self.family.in_messages:
            thought = f"{last.reasoning}{harmony.END}{harmony.START}assistant"
            before = f"{harmony.ANALYSIS}{thought}" if last.reasoning else ""
            return f"{rendered}{before}{harmony.FINAL}{last.content}", harmony.FINAL
        is_open = bool(self._open_reasoning(rendered))
        if written:
            # A thought that the client has begun, and maybe ended.
            behind = (
                rendered.rstrip() + written.removeprefix(mark) if is_open else rendered + written
            )
            return behind, "" if end in written else mark
        if last.reasoning and mark:
            rendered += ("" if is_open else f"{mark}\n") + f"{last.reasoning}\n"
            is_open = True
        return rendered + (self._end_of_reasoning if is_open else "") + last.content, ""

    def _open_reasoning(self, rendered: str) -> str:
        """Return the mark that opens the model's thoughts, when the prompt ends with it."""
        mark = self.family.reasoning[0] if self.family.reasoning else ""
        return mark if mark and rendered.rstrip().endswith(mark) else ""

    @property
    def _end_of_reasoning(self) -> str:
        mark = self.family.reasoning[1] if self.family.reasoning else None
        return "" if mark is None else f"{mark}{self.family.behind_thoughts}"

    def _template_knows(self, variable: str) -> bool:
        return variable in _template_of(self.tokenizer)

    def _echo(self, prompt: RawPrompt) -> str:
        """Return a prompt as text: as it was sent, or what its token ids say, special ones included."""
        if isinstance(prompt.prompt, str):
            return prompt.prompt
        return self.decode(prompt.prompt)

    def _encoding(self, text: str, *, add_special_tokens: bool, param: str | None = None) -> Any:
        # Past transformers' own `encode`, which adds as much again to a short prompt and gives the same ids.
        backend = self.tokenizer.backend_tokenizer
        checked = _checked_unicode(text, param)
        return backend.encode(checked, add_special_tokens=add_special_tokens)

    def _checked(self, token_ids: Iterable[int], param: str) -> list[int]:
        checked = list(token_ids)
        for token_id in checked:
            if not 0 <= token_id < self.vocabulary_size:
                raise InvalidRequest(
                    f"Token id {token_id} is outside the vocabulary of {self.model_id}, "
                    f"which has {self.vocabulary_size} tokens.",
                    param=param,
                )
        return checked

    def _checked_bias(self, bias: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
        return tuple((token_id, bias[token_id]) for token_id in self._checked(bias, "logit_bias"))


@cache
def _auto_tokenizer() -> Any:
    """Import transformers: a second, which a server that has no model loaded yet need not wait for."""
    from transformers import AutoTokenizer

    keep_all_so_far()
    return AutoTokenizer


def load_model_text(files: ModelFiles, family_name: str | None = None) -> ModelText:
    """Read the tokenizer and settings of a model. Raises ModelLoadFailed when they can't be read.

    `family_name` is a family to take it for, whatever its template says.
    """
    began_s = time.monotonic()
    try:
        tokenizer: Any = _auto_tokenizer().from_pretrained(files.path, local_files_only=True)
        config = files.read_json("config.json")
        generation = files.read_json("generation_config.json")
    except (
        Exception
    ) as error:  # the tokenizer libraries raise whatever a broken file makes them raise
        raise ModelLoadFailed(
            f"The tokenizer of {files.id} could not be loaded ({type(error).__name__}: {error}). "
            "Download the model again."
        ) from error
    # The limit is checked where it is known with the answer; the tokenizer would only warn in the log.
    tokenizer.model_max_length = sys.maxsize
    # What a tokenizer's file may ask for by itself, and what `encode` of transformers would have switched off.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
    family = family_of(_template_of(tokenizer), family_name or files.settings.family, tokens)
    return ModelText(
        model_id=files.id,
        tokenizer=tokenizer,
        context_tokens=_context_tokens(files, config),
        vocabulary_size=_text_setting(config, "vocab_size") or len(tokenizer),
        end_token_ids=_end_token_ids(
            tokenizer.eos_token_id, config, generation, added=_added_ids(tokenizer, family.ends)
        ),
        sampling_defaults=_sampling_defaults(generation),
        token_bytes=TokenBytes(tokenizer.backend_tokenizer),
        quantization=quantization(config),
        family=family,
        shown_ids=_special_marks(tokenizer, family),
        load_s=time.monotonic() - began_s,
        is_canonical=files.settings.canonical_prompts,
        system_place=_system_place(tokenizer),
        tellings=_tellings(tokenizer, family),
        template_variables=template_variables(tokenizer.chat_template),
        traits=traits_of(files, tokenizer.chat_template, family.name),
    )


def _system_place(tokenizer: Any) -> SystemPlace:
    if not tokenizer.chat_template:
        return "anywhere"
    return system_place(lambda turns: _applied(tokenizer, turns, None))


def _tellings(tokenizer: Any, family: Family) -> tuple[Telling, Telling]:
    if not tokenizer.chat_template:
        return Telling(), Telling()
    return tellings(
        lambda messages, telling: template_messages(messages, family, telling),
        lambda turns, tools: _applied(tokenizer, turns, tools),
        _template_of(tokenizer),
    )


def _applied(
    tokenizer: Any,
    turns: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    **variables: Any,
) -> str:
    """Return what the chat template makes of these turns, ready for the assistant's."""
    return str(
        tokenizer.apply_chat_template(
            turns, tools=tools, add_generation_prompt=True, tokenize=False, **variables
        )
    )


def _context_tokens(files: ModelFiles, config: dict[str, Any]) -> int:
    """Return the longest context, as set or as the model's config has it. Raises ModelLoadFailed for more than that."""
    own, wanted = own_context(config), files.settings.context_tokens
    if wanted is not None and wanted > own:
        raise ModelLoadFailed(
            f"MLX_SERVER_MODELS sets context_tokens {wanted} for {files.id}, whose config allows {own}. Lower it."
        )
    return wanted or own


def quantization(config: dict[str, Any]) -> str | None:
    """How most of the weights are stored: `4bit`, or a number format's own name (`mxfp4`). None when they are whole."""
    stored = config.get("quantization") or config.get("quantization_config")
    if not isinstance(stored, dict):
        return None
    mode = stored.get("mode") or stored.get("quant_method")
    if isinstance(mode, str) and mode != "affine":
        return mode[:LONGEST_TERM]
    bits = stored.get("bits")
    return f"{bits}bit" if isinstance(bits, int) else None


def _checked_unicode(text: str, param: str | None) -> str:
    """Return `text`, or refuse it for half a surrogate pair, which JSON can carry and a tokenizer can't take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"The prompt is not valid Unicode (position {error.start}: half of a surrogate pair).",
            param=param,
        ) from error
    return text


def callable_tools(conversation: Conversation) -> Sequence[Tool]:
    """Return the tools that the answer may call."""
    return () if conversation.tool_choice.mode == "none" else conversation.tools


def _variables(conversation: Conversation) -> dict[str, Any]:
    """Return the variables of the template; what the client set by name wins."""
    thinking = conversation.thinking
    switch = {} if thinking is None else dict.fromkeys(SWITCHES, thinking)
    return switch | dict(conversation.template_arguments)


def _template_of(tokenizer: Any) -> str:
    """Return the template's text; of several, all of them."""
    template = tokenizer.chat_template or ""
    return "\n".join(template.values()) if isinstance(template, dict) else str(template)


def _special_marks(tokenizer: Any, family: Family) -> frozenset[int]:
    """Return the special tokens that are marks of the family: decoding must not leave them out."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(
        token_id
        for token_id, token in added
        # Some marks are a token and a word.
        if token.special and any(token.content in mark for mark in family.marks)
    )


def _added_ids(tokenizer: Any, marks: Sequence[str]) -> Iterator[int]:
    """Yield the tokens that are one of `marks`, of those that the tokenizer's makers added."""
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.content in marks:
            yield token_id


def _template_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.parameters)}
    if tool.description is not None:
        function = {"name": tool.name, "description": tool.description, **function}
    return {"type": "function", "function": function}


def _text_setting(config: dict[str, Any], name: str) -> int | None:
    """Return a number from the config, or from its text part in models that also see."""
    value = config.get(name) or config.get("text_config", {}).get(name)
    return int(value) if value else None


def _end_token_ids(
    own: int | None, *configs: dict[str, Any], added: Iterable[int]
) -> tuple[int, ...]:
    found = [
        own,
        *(token_id for config in configs for token_id in _as_list(config.get("eos_token_id"))),
        *added,
    ]
    return tuple(dict.fromkeys(token_id for token_id in found if token_id is not None))


def _as_list(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _sampling_defaults(generation: dict[str, Any]) -> dict[str, Any]:
    """Return the model maker's recommended sampling over the API's; `do_sample: false` means greedy."""
    given = {name: generation[name] for name in API_DEFAULTS if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        given["temperature"] = 0.0
    return API_DEFAULTS | given
