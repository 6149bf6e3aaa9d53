"""What messages say never becomes a control token; what the template writes always does."""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.format.text.chat import ChatTokenizer
from manylora.adapters.format.text.text_encoder import TextEncoder
from tests.support.tiny_models import byte_tokenizer
from tests.support.tokenizer_kinds import KINDS, of_kind

STRIPPED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = "<|im_start|>{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>"
WRAPPED = "<|im_start|>{% for m in messages %}<{{ m.content }}|im_end|>{% endfor %}"
LOUD = "{% for m in messages %}<|im_start|>{{ m.content | upper }}/{{ m.content | lower }}{% endfor %}"
CUTTING = (
    "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] }}"
    "/{{ m.content.replace('<think>', '') }}/{{ m.content | replace('q', '') }}<|im_end|>{% endfor %}"
)
JSON = (
    "{% for m in messages %}<|im_start|>{{ m.content | tojson }}{{ m.content | tojson(ensure_ascii=True) }}"
    "<|im_end|>{% endfor %}"
)
TEMPLATES = {
    "plain": None,
    "stripped": STRIPPED,
    "bare": BARE,
    "wrapped": WRAPPED,
    "loud": LOUD,
    "cutting": CUTTING,
    "json": JSON,
}
FAITHFUL = ("plain", "stripped", "bare")  # what they write of content decodes to it

calm = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def chat(kind: str, template: str = "plain") -> ChatTokenizer:
    source = TEMPLATES[template]
    return ChatTokenizer(of_kind(kind) if source is None else of_kind(kind, source))


@cache
def control(kind: str) -> dict[int, str]:
    """The control tokens, but the one that stands for unknown characters."""
    tokens = TextEncoder(of_kind(kind).backend_tokenizer).control
    return {i: text for i, text in tokens.items() if text != "<unk>"}


# Parts from which control tokens could come together, and none of which is one.
_PARTS = ["<", ">", "|", "<|", "|>", "im_end", "im_start", "/s", "s", "[", "MASK", "]", "pad", " ", "\n"]
_PARTS += [
    "think",
    "</think>",
    "<think>",
    "hello",
    "é",
    "日本",
    "🙂",
    "\u0000",
    "q",
    "^"[:0],
    "\\u",
    "{{ x }}",
]


def fragments() -> st.SearchStrategy[str]:
    return st.lists(st.one_of(st.sampled_from(_PARTS), st.text(max_size=4)), max_size=8).map("".join)


def planted() -> st.SearchStrategy[str]:
    spelled = ["<|im_end|>", "<|im_start|>", "<pad>", "<s>", "</s>", "[MASK]", "\u2192", "<|IM_END|>", "|><"]
    spelled += ["<|im_end|><|im_start|>", "\uff1c/s\uff1e", "<S>", "<|im_<think>end|>", "<|im_qend|>"]
    spelled += ["<unk>"]
    part = st.one_of(st.sampled_from(spelled), st.sampled_from(_PARTS), st.text(max_size=3))
    return st.lists(part, min_size=1, max_size=8).map("".join).filter(bool)


def most_slow(names: Iterable[str], fast: Container[str]) -> list[Any]:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


EVERY_KIND = most_slow(KINDS, ("bytes", "Unigram", "flags"))
EVERY_TEMPLATE = most_slow(TEMPLATES, ("plain", "bare", "cutting"))


def conversation(texts: list[str]) -> list[dict[str, Any]]:
    roles = ["user", "assistant", "tool", "system"]
    return [{"role": roles[i % 4], "content": text} for i, text in enumerate(texts)]


def plain_ids(tokenizer: ChatTokenizer, messages: list[dict[str, Any]]) -> list[int]:
    return tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)


def of_the_template(kind: str, template: str, messages: list[dict[str, Any]]) -> list[int]:
    """The control tokens of a conversation of the same shape that says nothing."""
    empty = [{**message, "content": "x"} for message in messages]
    return [i for i in plain_ids(chat(kind, template), empty) if i in control(kind)]


def spells_none(kind: str, template: str, messages: list[dict[str, Any]]) -> bool:
    """Whether the plain template makes no control token but its own of it."""
    ids = plain_ids(chat(kind, template), messages)
    return [i for i in ids if i in control(kind)] == of_the_template(kind, template, messages)


@pytest.mark.parametrize("template", EVERY_TEMPLATE)
@pytest.mark.parametrize("kind", EVERY_KIND)
@calm
@given(st.lists(fragments(), min_size=1, max_size=4))
def test_other_texts_are_read_as_ever(kind: str, template: str, texts: list[str]) -> None:
    messages = conversation(texts)
    if spells_none(kind, template, messages) and "<unk>" not in "".join(texts):
        assert chat(kind, template).encode_chat(messages) == plain_ids(chat(kind, template), messages)


@pytest.mark.parametrize("template", EVERY_TEMPLATE)
@pytest.mark.parametrize("kind", EVERY_KIND)
@calm
@given(st.lists(planted(), min_size=1, max_size=4))
def test_no_control_token_comes_from_content(kind: str, template: str, texts: list[str]) -> None:
    messages = conversation(texts)
    ids = chat(kind, template).encode_chat(messages)
    found = [i for i in ids if i in control(kind)]
    assert found == of_the_template(kind, template, messages), chat(kind, template).mark(messages)


@pytest.mark.parametrize("template", FAITHFUL)
@pytest.mark.parametrize("kind", ["bytes", "byte-level BPE"])
@calm
@given(st.lists(planted(), min_size=1, max_size=4))
def test_the_text_comes_back(kind: str, template: str, texts: list[str]) -> None:
    tokenizer, messages = chat(kind, template), conversation(texts)
    ids = tokenizer.encode_chat(messages)
    decoded = of_kind(kind).backend_tokenizer.decode(ids, skip_special_tokens=False)
    assert decoded == tokenizer.render_chat(messages)


@pytest.mark.parametrize("kind", EVERY_KIND)
@calm
@given(planted())
def test_every_text_of_a_conversation_is_content(kind: str, text: str) -> None:
    """Names, parts, calls with their arguments, their results, descriptions of tools and their keys."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.name }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
        "{{ m.tool_calls | default([]) | tojson }}{% endfor %}"
        "{{ tools | tojson }}"
    )
    tokenizer = ChatTokenizer(of_kind(kind, template))
    call = {"type": "function", "function": {"name": text, "arguments": {text: [text, 1, None, True]}}}
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "name": text,
            "content": [{"type": "text", "text": text}, {"type": "text", "text": "x"}],
        },
        {"role": "assistant", "name": "x", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "x", "content": text},
    ]
    tool = {"type": "function", "function": {"name": text, "parameters": {"properties": {text: {"x": text}}}}}
    ids = tokenizer.encode_chat(messages, tools=[tool])
    assert sum(i in control(kind) for i in ids) == 3


THINKING = (
    "{% set end = '</think>' %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and end in m.content %}"
    "<think>{{ m.content.split(end)[0].split('<think>')[-1].strip() }}</think>\n"
    "{{ m.content.split(end)[-1].lstrip() }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize("special", [True, False])
@calm
@given(st.text("ab <>/|", max_size=9), st.text("ab <>/|", max_size=9))
def test_a_template_finds_what_it_looks_for_in_assistant_turns(
    special: bool, thought: str, answer: str
) -> None:
    hf = of_kind("bytes", THINKING)
    hf.add_tokens(["<think>", "</think>"], special_tokens=special)
    tokenizer = ChatTokenizer(hf)
    messages = [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": f"<think>{thought}</think>\n{answer}"},
        {"role": "user", "content": "so"},
    ]
    assert tokenizer.encode_chat(messages) == plain_ids(tokenizer, messages)


def test_a_user_does_not_close_the_thoughts_of_an_assistant() -> None:
    hf = of_kind("bytes", THINKING)
    hf.add_tokens(["<think>", "</think>"], special_tokens=True)
    tokenizer = ChatTokenizer(hf)
    ids = tokenizer.encode_chat([{"role": "user", "content": "</think>"}])
    assert {259, 260}.isdisjoint(ids)
    assert hf.decode(ids) == "<|im_start|>user\n</think><|im_end|>"


def test_an_end_token_in_an_assistant_turn_is_text_even_where_the_template_looks_for_it() -> None:
    template = (
        "{% for m in messages %}{% if '<|im_end|>' in m.content %}{% endif %}{{ m.content }}{% endfor %}"
    )
    tokenizer = ChatTokenizer(of_kind("bytes", template))
    assert 258 not in tokenizer.encode_chat([{"role": "assistant", "content": "a<|im_end|>b"}])


def test_a_token_that_two_messages_spell_together() -> None:
    tokenizer = chat("bytes", "bare")
    ids = tokenizer.encode_chat(conversation(["<|", "im_", "end", "|>"]))
    assert ids.count(258) == 1


def test_roles_that_templates_make_tokens_of_stay_the_templates() -> None:
    hf = of_kind("bytes", "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    hf.add_tokens(["<|user|>", "<|system|>"], special_tokens=True)
    ids = ChatTokenizer(hf).encode_chat([{"role": "user", "content": "<|system|>user"}])
    assert [i for i in ids if i > 255] == [259]


def test_a_mark_is_no_character_of_the_messages() -> None:
    tokenizer = chat("bytes", "json")
    for text in ("\ue000<|im_end|>", "\\ue000<|im_end|>", "\\uE000\ue001\ue002<|im_end|>"):
        messages = [{"role": "user", "content": text}]
        marked = tokenizer.mark(messages)
        assert marked.mark is not None
        assert marked.mark not in text
        assert tokenizer.encode_chat(messages).count(258) == 1
    everything = "".join(map(chr, [*range(0xE000, 0xF900), *range(0x10_0000, 0x11_0000)]))
    with pytest.raises(ChatTemplateError, match="private-use"):
        tokenizer.encode_chat([{"role": "user", "content": everything}])


def test_a_character_that_is_a_control_token_and_nothing_else_is_refused() -> None:
    hf = byte_tokenizer()
    hf.add_tokens(["^"], special_tokens=True)  # the vocabulary has no other token for it
    with pytest.raises(ChatTemplateError, match="only as a control token"):
        ChatTokenizer(hf).encode_chat([{"role": "user", "content": "2^3"}])


def test_no_text_names_the_tokens_secretly() -> None:
    """The names by which control tokens are known inside differ from one tokenizer object to the next."""
    first, second = (TextEncoder(byte_tokenizer().backend_tokenizer) for _ in range(2))
    assert first.encode("<|im_end|>", None) == second.encode("<|im_end|>", None) == [258]


def test_added_ids_never_meet_those_of_a_vocabulary_with_gaps() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: 3 * i for i, c in enumerate(alphabet)} | {"<s>": 1}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    text = "".join(map(chr, range(32, 500)))
    ids = TextEncoder(backend).encode("<s>" + text + "<\ue000s>", "\ue000")
    assert ids == [1, *backend.encode(text).ids, *backend.encode("<").ids, *backend.encode("s>").ids]
