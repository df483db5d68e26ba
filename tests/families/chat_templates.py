"""A small chat template for each sort of a family, which does as the published ones do where calls are concerned."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_manager.mlx_server.families import forms
from mlx_manager.mlx_server.families.forms import CallForm
from mlx_manager.mlx_server.generation.telling import CallPlace

EACH = "{% for m in messages %}"
END = "{% endfor %}"
CALLS = "{% for c in m.tool_calls %}"
ARGUMENTS = "{{ c.function.arguments | tojson }}"
PAIRS = "{% for key, value in c.function.arguments.items() %}"
TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"


@dataclass(frozen=True)
class ChatTemplate:
    """The template of models of `family` whose calls have `form`; `end` stands behind what the assistant says.

    `tokens` are special tokens of such models, where the template alone doesn't say whose it is. It says earlier calls
    at `place`; whether it `takes_several` in one message, and `keeps_text` beside them, is the published ones' choice.
    """

    family: str
    form: CallForm
    end: str
    source: str
    tokens: tuple[str, ...] = ()
    place: CallPlace = "own"
    takes_several: bool = True
    keeps_text: bool = True


def chat_ml(calls: str, *, knows: str = "", result: str = "") -> str:
    """A template in ChatML that says calls as `calls` and results as `result`, and `knows` tools where it is said."""
    role = "{{ m.role }}" if not result else "{{ 'user' if m.role == 'tool' else m.role }}"
    said = result or "{{ m.content }}"
    return (
        f"{{% if tools %}}<|im_start|>system\n{knows}{TOOLS}<|im_end|>\n{{% endif %}}"
        f"{EACH}<|im_start|>{role}\n"
        f"{{% if m.role == 'tool' %}}{said}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
        f"{{% if m.tool_calls %}}{calls}{{% endif %}}<|im_end|>\n{END}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


HERMES = chat_ml(
    CALLS + '\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": ' + ARGUMENTS + "}\n</tool_call>" + END,
    result="<tool_response>\n{{ m.content }}\n</tool_response>",
)  # fmt: skip
QWEN_CODER = chat_ml(
    CALLS + "\n<tool_call>\n<function={{ c.function.name }}>\n"
    + PAIRS + "<parameter={{ key }}>\n{{ value }}\n</parameter>\n" + END + "</function>\n</tool_call>" + END,
    result="<tool_response>\n{{ m.content }}\n</tool_response>\n",
)  # fmt: skip
LFM2_CALLS = (
    "<|tool_call_start|>[" + CALLS + "{{ c.function.name }}("
    + PAIRS + "{{ key }}='{{ value }}'{{ ', ' if not loop.last }}" + END
    + "){{ ', ' if not loop.last }}" + END + "]<|tool_call_end|>"
)  # fmt: skip
LFM2 = chat_ml(LFM2_CALLS, knows="List of tools: ")
# Neither of these says any call.
LFM2_LIST = (
    "{% if tools %}<|im_start|>system\nList of tools: <|tool_list_start|>" + TOOLS
    + "<|tool_list_end|><|im_end|>\n{% endif %}" + EACH + "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'tool' %}<|tool_response_start|>{{ m.content }}<|tool_response_end|>"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n" + END
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
LFM2_5 = (
    "{% if tools %}<|im_start|>system\nList of tools: " + TOOLS + "<|im_end|>\n{% endif %}"
    + EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # fmt: skip
GLM = (
    "[gMASK]<sop>{% if tools %}<|system|>\n" + TOOLS + "{% endif %}" + EACH
    + "{% if m.role == 'assistant' %}<|assistant|>{{ '\n' + m.content if m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function.name }}\n" + PAIRS
    + "<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value }}</arg_value>\n" + END + "</tool_call>" + END
    + "{% elif m.role == 'tool' %}<|observation|>\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}" + END
    + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)  # fmt: skip
# Ids of other lengths are refused, and so are two turns of one side with nothing but calls and results between them.
# What is said beside calls is left out.
CHECKED = (
    "{% set n = namespace(turns=0) %}{% for m in messages %}{% if m.role != 'tool' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (n.turns % 2 == 0) %}{{ raise_exception('conversation roles must alternate') }}"
    "{% endif %}{% set n.turns = n.turns + 1 %}{% endif %}{% endfor %}"
    "{% macro checked(id) %}{% if id is not string or id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}{{ id }}{% endmacro %}"
)
MISTRAL_ARRAY = (
    CHECKED + "{% if tools %}[AVAILABLE_TOOLS]" + TOOLS + "[/AVAILABLE_TOOLS]{% endif %}" + EACH
    + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS][" + CALLS
    + '{"name": "{{ c.function.name }}", "arguments": ' + ARGUMENTS
    + ', "id": "{{ checked(c.id) }}"}{{ ", " if not loop.last }}' + END + "]</s>"
    '{% elif m.role == \'tool\' %}[TOOL_RESULTS]{"content": {{ m.content | tojson }}, '
    '"call_id": "{{ checked(m.tool_call_id) }}"}[/TOOL_RESULTS]'
    "{% else %}{{ m.content }}</s>{% endif %}" + END
)  # fmt: skip
MISTRAL = (
    CHECKED + "{% if tools %}[AVAILABLE_TOOLS]" + TOOLS + "[/AVAILABLE_TOOLS]{% endif %}" + EACH
    + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}"
    "[TOOL_RESULTS]{{ checked(m.tool_call_id) }}[TOOL_CONTENT]{{ m.content }}[/TOOL_RESULTS]"
    "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}"
    "[CALL_ID]{{ checked(c.id) }}[ARGS]" + ARGUMENTS + END + "</s>{% endif %}" + END
)  # fmt: skip
# Of a call only its id says whose it is.
KIMI = (
    "{% if tools %}<|im_system|>tool_declare<|im_middle|>" + TOOLS + "<|im_end|>{% endif %}" + EACH
    + "{% if m.role == 'assistant' %}<|im_assistant|>assistant<|im_middle|>{{ m.content }}{% if m.tool_calls %}"
    "<|tool_calls_section_begin|>" + CALLS + "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>" + ARGUMENTS
    + "<|tool_call_end|>" + END + "<|tool_calls_section_end|>{% endif %}{% elif m.role == 'tool' %}"
    "<|im_system|>tool<|im_middle|>## Return of {{ m.tool_call_id }}\n{{ m.content }}"
    "{% else %}<|im_user|>user<|im_middle|>{{ m.content }}{% endif %}<|im_end|>" + END
    + "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)  # fmt: skip
DEEPSEEK_TURNS = (
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'tool' %}"
    "<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}"
)
DEEPSEEK_END = (
    "<｜end▁of▁sentence｜>{% endif %}"
    + END
    + "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
# Arguments are put together with texts, and so must be one.
DEEPSEEK_FENCED = (
    EACH + DEEPSEEK_TURNS + "{% if m.tool_calls %}<｜tool▁calls▁begin｜>" + CALLS
    + "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' "
    "+ c.function.arguments + '\n```<｜tool▁call▁end｜>' }}" + END + "<｜tool▁calls▁end｜>{% endif %}" + DEEPSEEK_END
)  # fmt: skip
DEEPSEEK = (
    "{% if tools %}## Tools" + TOOLS + "{% endif %}" + EACH + DEEPSEEK_TURNS
    + "{% if m.tool_calls %}<｜tool▁calls▁begin｜>" + CALLS
    + "{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments "
    "+ '<｜tool▁call▁end｜>' }}" + END + "<｜tool▁calls▁end｜>{% endif %}" + DEEPSEEK_END
)  # fmt: skip
DEEPSEEK_INVOCATIONS = (
    "{% if tools %}## Tools" + TOOLS + "{% endif %}" + EACH
    + DEEPSEEK_TURNS.replace("<｜tool▁output▁begin｜>", "<function_results><result>")
    .replace("<｜tool▁output▁end｜>", "</result></function_results>")
    + "{% if m.tool_calls %}\n\n<｜DSML｜function_calls>\n" + CALLS
    + '<｜DSML｜invoke name="{{ c.function.name }}">\n' + PAIRS
    + '<｜DSML｜parameter name="{{ key }}" string="{{ (value is string) | string | lower }}">{{ value }}'
    "</｜DSML｜parameter>\n" + END + "</｜DSML｜invoke>\n" + END + "</｜DSML｜function_calls>{% endif %}" + DEEPSEEK_END
)  # fmt: skip
MINIMAX = (
    "]~!b[]~b]system\n" + TOOLS + "[e~[\n" + EACH
    + "{% if m.role == 'assistant' %}]~b]ai\n{{ m.content }}{% if m.tool_calls %}\n<minimax:tool_call>\n" + CALLS
    + '<invoke name="{{ c.function.name }}">\n' + PAIRS + '<parameter name="{{ key }}">{{ value }}</parameter>\n' + END
    + "</invoke>\n" + END + "</minimax:tool_call>{% endif %}[e~[\n"
    "{% elif m.role == 'tool' %}]~b]tool\n<response>{{ m.content }}</response>[e~[\n"
    "{% else %}]~b]user\n{{ m.content }}[e~[\n{% endif %}" + END + "{% if add_generation_prompt %}]~b]ai\n{% endif %}"
)  # fmt: skip
# Calls are none of a message's own, but what it says behind a mark.
GRANITE = (
    "{% if tools %}<|start_of_role|>system<|end_of_role|>Write <|tool_call|> followed by a JSON list of tools used."
    + TOOLS + "<|end_of_text|>\n{% endif %}" + EACH
    + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n" + END
    + "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)  # fmt: skip
# One call in a message, and nothing beside it; results have a role of their own name.
LLAMA_3 = (
    "{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n" + TOOLS + "<|eot_id|>{% endif %}" + EACH
    + "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}" + CALLS
    + '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "{{ c.function.name }}", "parameters": '
    + ARGUMENTS + "}<|eot_id|>" + END + "{% else %}"
    "<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endif %}" + END
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)  # fmt: skip
LLAMA_3_1 = LLAMA_3.replace(
    "<|end_header_id|>\n\n{\"name\"",
    "<|end_header_id|>\n\n{% if c.function.name in builtin_tools or [] %}<|python_tag|>{% endif %}{\"name\"",
)  # fmt: skip
LLAMA_4 = (
    "{% if tools %}<|header_start|>system<|header_end|>\n\n" + TOOLS + "<|eot|>{% endif %}" + EACH
    + "<|header_start|>{{ 'ipython' if m.role == 'tool' else m.role }}<|header_end|>\n\n"
    "{% if m.tool_calls %}<|python_start|>" + CALLS
    + '{"name": "{{ c.function.name }}", "parameters": ' + ARGUMENTS + "}" + END + "<|python_end|>{% endif %}"
    "{{ m.content }}<|eot|>" + END
    + "{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
)  # fmt: skip
# User and model in turns, and nobody else.
GEMMA_3 = (
    EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n" + END
    + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)  # fmt: skip
# Results go on within the model's turn, with the name of their tool.
FUNCTION_GEMMA = (
    "{% if tools %}<start_of_turn>developer\n" + TOOLS + "<end_of_turn>\n{% endif %}" + EACH
    + "{% if m.role == 'tool' %}{% if m.name is not string %}{{ raise_exception('whose result is it?') }}{% endif %}"
    "<start_function_response>response:{{ m.name }}{value:<escape>{{ m.content }}"
    "<escape>}<end_function_response>{% else %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<start_function_call>call:{{ c.function.name + '{' }}" + PAIRS
    + "{{ key }}:<escape>{{ value }}<escape>{{ ',' if not loop.last }}" + END + "}<end_function_call>" + END
    + "{{ '<end_of_turn>\n' if not m.tool_calls }}{% endif %}" + END
    + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)  # fmt: skip
GEMMA_4 = (
    FUNCTION_GEMMA.replace("<start_of_turn>", "<|turn>").replace("<end_of_turn>", "<turn|>")
    .replace("<start_function_call>", "<|tool_call>").replace("<end_function_call>", "<tool_call|>")
    .replace("<start_function_response>", "<|tool_response>").replace("<end_function_response>", "<tool_response|>")
    .replace("<escape>", '<|"|>')
)  # fmt: skip
# One call in a message, in a message of its own; its result is told by the tool.
HARMONY = (
    "{% if tools %}<|start|>developer<|message|>" + TOOLS + "<|end|>{% endif %}"
    "{% set last = namespace(tool='') %}" + EACH
    + "{% if m.role == 'tool' %}<|start|>functions.{{ last.tool }} to=assistant<|channel|>commentary<|message|>"
    "{{ m.content | tojson }}<|end|>{% elif m.tool_calls %}"
    "{% if m.content %}<|start|>assistant<|channel|>analysis<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% set last.tool = m.tool_calls[0].function.name %}"
    "<|start|>assistant to=functions.{{ last.tool }}<|channel|>commentary json<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}" + END
    + "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)  # fmt: skip
# Marks are made by macros of a word each, and an answer is put into a response.
KIMI_K3 = (
    "{% macro open(tag, of='') %}{{ '<|open|>' + tag + of + '<|sep|>' }}{% endmacro %}"
    "{% macro close(tag) %}{{ '<|close|>' + tag + '<|sep|>' }}{% endmacro %}"
    "{% macro type(value) %}{{ 'string' if value is string else 'number' }}{% endmacro %}{% if tools %}"
    "{{ open('message', ' role=\"system\"') }}" + TOOLS + "{{ close('message') }}<|end_of_msg|>{% endif %}"
    + EACH + "{{ open('message', ' role=\"' + m.role + '\"') }}{% if m.role == 'assistant' %}"
    "{% if thinking %}{{ open('think') }}{{ m.reasoning_content }}{{ close('think') }}{% endif %}"
    "{{ open('response') }}{{ m.content }}{{ close('response') }}{% if m.tool_calls %}{{ open('tools') }}" + CALLS
    + "{{ open('call', ' tool=\"' + c.function.name + '\" index=\"' + loop.index | string + '\"') }}" + PAIRS
    + "{{ open('argument', ' key=\"' + key + '\" type=\"' + type(value) + '\"') }}{{ value }}{{ close('argument') }}"
    + END + "{{ close('call') }}" + END + "{{ close('tools') }}{% endif %}{% else %}{{ m.content }}{% endif %}"
    "{{ close('message') }}<|end_of_msg|>" + END + "{% if add_generation_prompt %}"
    "{{ open('message', ' role=\"assistant\"') }}{{ open('think' if thinking else 'response') }}{% endif %}"
)  # fmt: skip

CHAT_TEMPLATES = {
    "Hermes": ChatTemplate("hermes", forms.HERMES, "<|im_end|>", HERMES),
    "Qwen3-Coder": ChatTemplate("qwen3-coder", forms.QWEN_CODER, "<|im_end|>", QWEN_CODER),
    "GLM": ChatTemplate("glm", forms.GLM, "<|assistant|>", GLM),
    "Mistral 7B": ChatTemplate(
        "mistral", forms.MISTRAL_ARRAY, "</s>", MISTRAL_ARRAY, keeps_text=False
    ),
    "Mistral Small 3.2": ChatTemplate("mistral", forms.MISTRAL, "</s>", MISTRAL),
    "Kimi K2": ChatTemplate("kimi", forms.KIMI, "<|im_end|>", KIMI),
    "Kimi K3": ChatTemplate("kimi-k3", forms.XTML, "<|end_of_msg|>", KIMI_K3),
    "DeepSeek V3": ChatTemplate(
        "deepseek", forms.DEEPSEEK_FENCED, "<｜end▁of▁sentence｜>", DEEPSEEK_FENCED
    ),
    "DeepSeek V3.1": ChatTemplate("deepseek", forms.DEEPSEEK, "<｜end▁of▁sentence｜>", DEEPSEEK),
    "DeepSeek V3.2": ChatTemplate(
        "deepseek-v3.2", forms.DEEPSEEK_INVOCATIONS, "<｜end▁of▁sentence｜>", DEEPSEEK_INVOCATIONS
    ),
    "MiniMax M2": ChatTemplate("minimax", forms.MINIMAX, "[e~[", MINIMAX),
    "LFM2": ChatTemplate("lfm2", forms.LFM2, "<|im_end|>", LFM2),
    "LFM2 with a list": ChatTemplate(
        "lfm2", forms.LFM2, "<|im_end|>", LFM2_LIST, place="calls_as_text"
    ),
    "LFM2.5": ChatTemplate(
        "lfm2",
        forms.LFM2,
        "<|im_end|>",
        LFM2_5,
        ("<|tool_call_start|>", "<|tool_call_end|>"),
        place="calls_as_text",
    ),
    "Granite 3": ChatTemplate(
        "granite", forms.GRANITE, "<|end_of_text|>", GRANITE, place="calls_as_text"
    ),
    "Llama 3.2": ChatTemplate(
        "llama3",
        forms.BARE,
        "<|eot_id|>",
        LLAMA_3,
        place="one_a_message",
        takes_several=False,
    ),
    "Llama 3.1": ChatTemplate(
        "llama3",
        forms.BARE,
        "<|eot_id|>",
        LLAMA_3_1,
        place="one_a_message",
        takes_several=False,
    ),
    "Llama 4": ChatTemplate("llama4", forms.BARE, "<|eot|>", LLAMA_4),
    "Gemma 3": ChatTemplate("gemma3", forms.BARE, "<end_of_turn>", GEMMA_3, place="all_as_text"),
    "FunctionGemma": ChatTemplate(
        "functiongemma", forms.FUNCTION_GEMMA, "<start_of_turn>", FUNCTION_GEMMA
    ),
    "Gemma 4": ChatTemplate("gemma4", forms.GEMMA_4, "<|turn>", GEMMA_4),
    "gpt-oss": ChatTemplate("gpt-oss", forms.HARMONY, "<|call|>", HARMONY, takes_several=False),
}
