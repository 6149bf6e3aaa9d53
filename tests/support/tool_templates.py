"""Small chat templates that write calls of tools as families of models do, in words of our own."""

from __future__ import annotations

from collections.abc import Mapping

_HEAD = (
    "{%- if tools %}<|im_start|>system\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n"
    "{%- endif %}"
)
_RESULT = "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
_ASK = "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(calls: str, *, head: str = _HEAD, thought: str = "", ask: str = _ASK) -> str:
    """A template in ChatML whose assistant turns write ``calls`` behind their content."""
    turn = "<|im_start|>{{ m.role }}\n" + thought + "{{ m.content }}" + calls + "<|im_end|>\n"
    loop = "{%- for m in messages %}{% if m.role == 'tool' %}" + _RESULT + "{% else %}" + turn
    return head + loop + "{% endif %}{%- endfor %}" + ask


_EACH = "{% if m.tool_calls %}{% for c in m.tool_calls %}{% set f = c.function %}"
_LIST = (
    '{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}'
    "{% if not loop.last %}, {% endif %}{% endfor %}"
)
_LIST_OF_CALLS = "{% if m.tool_calls %}BEGIN[{% for c in m.tool_calls %}" + _LIST + "]END{% endif %}"
_TAGS = (
    "{% for k, v in f.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
)

HERMES = chatml(
    _EACH + "{% if m.content or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}"
)
THINKING = chatml(
    _EACH + "{% if m.content or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}",
    thought="{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n"
    "{% endif %}",
    ask="{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
# Thinking begins in the prompt, as DeepSeek's and SmolLM3's templates have it.
OPENED = THINKING.replace(
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
    "<think>\n{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}",
)
LISTED = chatml(_LIST_OF_CALLS.replace("BEGIN", "<tool_call>").replace("END", "</tool_call>"))
CODER = chatml(
    _EACH + "{{ '\\n' if m.content or not loop.first }}<tool_call>\n<function={{ f.name }}>\n"
    + _TAGS + "</function>\n</tool_call>{% endfor %}{% endif %}"
)  # fmt: skip
GLM = chatml(
    _EACH + "{{ '\\n' if m.content or not loop.first }}<tool_call>{{ f.name }}{{ '\n' }}"
    "{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>{{ '\n' }}{% endfor %}</tool_call>"
    "{% endfor %}{% endif %}"
)
MISTRAL = (
    "{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{%- for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{%- elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{%- elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    "{%- if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]</s>"
    "{%- else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
MISTRAL_NAMED = (
    "{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{%- for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{%- elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{%- else %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}</s>"
    "{%- endif %}{% endfor %}"
)
GRANITE = (
    "{%- if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson }}<|end_of_text|>\n{% endif %}"
    "{%- for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}"
    + _LIST_OF_CALLS.replace("BEGIN", "<|tool_call|>").replace("END", "")
    + "<|end_of_text|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
LLAMA = (
    "{%- for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if tools and loop.first %}{{ tools | tojson }}\n"
    'Answer {"name": NAME, "parameters": ARGUMENTS} to call one.\n{% endif %}'
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{%- else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DEEPSEEK = (
    "{{ tools | tojson if tools }}{%- for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{%- elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
    "{%- else %}<｜Assistant｜>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{%- if loop.first %}<｜tool▁calls▁begin｜>{% else %}{{ '\\n' }}{% endif %}"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}\n```json\n"
    "{{ c.function.arguments | tojson }}\n```<｜tool▁call▁end｜>"
    "{%- if loop.last %}<｜tool▁calls▁end｜>{% endif %}{% endfor %}<｜end▁of▁sentence｜>"
    "{%- endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
# Of nobody: markers that no family has.
STRANGE = chatml("{% for c in m.tool_calls or [] %}@@run {{ c.function | tojson }} done@@{% endfor %}")
WRAPPED = chatml(
    "{% for c in m.tool_calls or [] %}<call>"
    "{{ {'type': 'function', 'function': c.function} | tojson }}</call>"
    "{% endfor %}"
)
# Has a place for tools, but writes no calls.
DEAF = chatml("")
# Writes calls that can't be told from text.
BARE = chatml(
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}: {{ c.function.arguments }}{% endfor %}"
)

TEMPLATES: Mapping[str, str] = {
    "hermes": HERMES,
    "thinking": THINKING,
    "opened": OPENED,
    "listed": LISTED,
    "coder": CODER,
    "glm": GLM,
    "mistral": MISTRAL,
    "mistral-named": MISTRAL_NAMED,
    "granite": GRANITE,
    "llama": LLAMA,
    "deepseek": DEEPSEEK,
    "strange": STRANGE,
    "wrapped": WRAPPED,
}
