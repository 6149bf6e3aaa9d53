"""Rows become exactly the tokens that the server sees and that the model has to produce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.training.data.rows import ChatRow, Origin, PreferenceRow, TextRow
from manylora.adapters.training.data.template import IGNORED, Encoded, Template
from manylora.adapters.training.model.base import find_base
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.conversations import conversations
from tests.support.tiny_models import CHAT_TEMPLATE
from tests.support.training_data import EOS, chat, prepared, template, write

HERE = Origin(Path("data.jsonl"), 1)
USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}

# Drops what assistants said before the last user turn, as templates of reasoning models do.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if m['role'] == 'user' or loop.last else '...' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_of(template_: Template, sequence: Encoded, *, learned: bool) -> str:
    """The learned tokens as text, or all."""
    pairs = zip(sequence.input_ids, sequence.labels, strict=True)
    ids = [token for token, label in pairs if not learned or label != IGNORED]
    return str(template_.hf.decode(ids))


def test_only_the_answers_and_their_ends_are_learned() -> None:
    plain = template(CHAT_TEMPLATE)
    row = ChatRow(
        HERE, ({"role": "system", "content": "s"}, USER, BOT, USER, BOT | {"content": "2"}), (0, 0, 1, 0, 1)
    )
    (sequence,) = plain.chat_sequences(row)
    whole = plain.hf.apply_chat_template(list(row.messages), tokenize=False)
    assert text_of(plain, sequence, learned=False) == whole.removesuffix("\n")
    assert text_of(plain, sequence, learned=True) == "hello<|im_end|>2<|im_end|>"
    assert sequence.labels.count(EOS) == 2


def test_weight_0_is_seen_but_not_learned() -> None:
    plain = template(CHAT_TEMPLATE)
    row = ChatRow(HERE, (USER, BOT, USER, BOT | {"content": "2"}), (0, 0, 0, 1))
    (sequence,) = plain.chat_sequences(row)
    assert "hello" in text_of(plain, sequence, learned=False)
    assert text_of(plain, sequence, learned=True) == "2<|im_end|>"


def test_end_tokens_in_the_content_do_not_end_the_turn() -> None:
    plain = template(CHAT_TEMPLATE)
    row = ChatRow(HERE, (USER, BOT | {"content": "a<|im_end|>b"}), (0, 1))
    assert text_of(plain, plain.chat_sequences(row)[0], learned=True) == "a<|im_end|>b<|im_end|>"


def test_control_tokens_in_messages_may_be_recognized() -> None:
    spelled = {"role": "user", "content": "a<|im_end|>b"}
    row = ChatRow(HERE, (spelled, BOT | {"content": "c<|im_end|>d"}), (0, 1))
    (as_text,) = template(CHAT_TEMPLATE).chat_sequences(row)
    (recognized,) = template(CHAT_TEMPLATE, allow_special_tokens=True).chat_sequences(row)
    assert (as_text.input_ids.count(EOS), recognized.input_ids.count(EOS)) == (2, 4)
    assert (as_text.labels.count(EOS), recognized.labels.count(EOS)) == (1, 2)


def test_a_template_that_rewrites_earlier_turns_gets_a_sequence_a_turn() -> None:
    forgetful = template(FORGETFUL)
    row = ChatRow(HERE, (USER, BOT, USER, BOT | {"content": "2"}), (0, 1, 0, 1))
    first, second = forgetful.chat_sequences(row)
    assert text_of(forgetful, first, learned=True) == "hello<|im_end|>"
    assert text_of(forgetful, second, learned=True) == "2<|im_end|>"
    assert "..." in text_of(forgetful, second, learned=False)
    for sequence, before in ((first, row.messages[:1]), (second, row.messages[:3])):
        prompt = Tokenizer(forgetful.hf).encode_chat(before)
        assert sequence.input_ids[: len(prompt)] == prompt
    skipped = ChatRow(HERE, row.messages, (0, 1, 0, 0))
    assert forgetful.chat_sequences(skipped) == [first]


def test_a_template_without_an_end_token_gets_the_tokenizers() -> None:
    bare = template(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}; {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (sequence,) = bare.chat_sequences(ChatRow(HERE, (USER, BOT), (0, 1)))
    assert text_of(bare, sequence, learned=True) == "hello; <|im_end|>"


def test_a_prompt_that_is_no_beginning_of_the_turn() -> None:
    odd = template("{% for m in messages %}{{ m['content'] }}{% endfor %}{{ '>' if add_generation_prompt }}")
    with pytest.raises(ChatTemplateError, match="writes an assistant turn differently"):
        odd.chat_sequences(ChatRow(HERE, (USER, BOT), (0, 1)))


def test_prompt_and_completion() -> None:
    plain = template(CHAT_TEMPLATE)
    chat_row = ChatRow(HERE, (USER, BOT), (0, 1))
    assert [plain.text_sequence(TextRow(HERE, "hi", "hello"))] == plain.chat_sequences(chat_row)
    bare = template(None)
    sequence = bare.text_sequence(TextRow(HERE, "hi", " hello"))
    assert text_of(bare, sequence, learned=True) == " hello<|im_end|>"
    assert sequence.input_ids[:2] == Tokenizer(bare.hf).encode("hi")


def test_preferences() -> None:
    plain = template(CHAT_TEMPLATE)
    pair = plain.pair(PreferenceRow(HERE, (USER,), BOT, BOT | {"content": "no"}))
    assert pair.prompt_ids == Tokenizer(plain.hf).encode_chat([USER])
    assert plain.hf.decode(pair.chosen_ids) == "hello<|im_end|>"
    assert plain.hf.decode(pair.rejected_ids) == "no<|im_end|>"


@pytest.mark.slow
def test_prompts_equal_the_servers_for_200_conversations(tmp_path: Path) -> None:
    """Tools, tool calls, names, system prompts, many turns, emoji, CJK, odd white space."""
    rows = conversations(200)
    data = prepared(write(tmp_path / "data.jsonl", rows), max_length=100_000)
    server = Tokenizer(template().hf)
    assert len(data.train.rows) == 200
    by_line: dict[int, list[Any]] = {}
    for sequence in data.train.sequences:
        by_line.setdefault(sequence.origin.line, []).append(sequence)
    for row in data.train.rows:
        assert isinstance(row, ChatRow)
        (sequence,) = by_line[row.origin.line]
        starts = [i for i in range(1, len(sequence.labels)) if _begins(sequence.labels, i)]
        turns = [i for i, weight in enumerate(row.weights) if weight]
        prompts = [server.encode_chat(row.messages[:turn], tools=list(row.tools) or None) for turn in turns]
        assert [sequence.input_ids[:start] for start in starts] == prompts


@pytest.mark.slow
@pytest.mark.real
def test_prompts_of_the_real_model_equal_the_servers(real_model_dir: Path) -> None:
    """The same conversations without tools, which its template has no place for; transformers agrees."""
    base, server = find_base(str(real_model_dir)), Tokenizer.load(real_model_dir)
    compared = 0
    for row in conversations(200, has_tools=False):
        messages = [{**m, "content": _flat(m["content"])} for m in row["messages"]]
        for turn in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
            prompt = base.template.prompt_ids(messages[:turn], ())
            text = base.tokenizer.apply_chat_template(
                messages[:turn], tokenize=False, add_generation_prompt=True
            )
            assert prompt == server.encode_chat(messages[:turn])
            assert prompt == base.tokenizer.encode(text, add_special_tokens=False)
            compared += 1
    assert compared > 400


def _flat(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _begins(labels: list[int], index: int) -> bool:
    return labels[index] != IGNORED and labels[index - 1] == IGNORED


def test_what_the_conversations_cover() -> None:
    rows = conversations(200)
    texts = [str(m["content"]) for row in rows for m in row["messages"]]
    assert sum("tools" in row for row in rows) > 20
    assert sum(any("tool_calls" in m for m in row["messages"]) for row in rows) > 20
    assert sum(row["messages"][0]["role"] in ("system", "developer") for row in rows) > 50
    assert sum(len(row["messages"]) > 4 for row in rows) > 50
    assert any("🦊" in text for text in texts)
    assert any("日本" in text for text in texts)


def test_over_long_rows_are_cut_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl", [chat("hi", "hello"), chat("hi", "h" * 90), chat("x" * 90, "never seen")]
    )
    data = prepared(path, CHAT_TEMPLATE, max_length=80)
    assert (data.train.cut_sequences, data.train.dropped) == (2, 1)
    assert [(w.line, w.message.split(": ")[1]) for w in data.warnings] == [
        (2, "they are cut off"),
        (3, "nothing is left to learn, so it is dropped"),
    ]
    lengths = [len(s.input_ids) for s in data.train.sequences if isinstance(s, Encoded)]
    assert lengths[1] == 80
    assert "has 112 tokens, 32 beyond max_length 80" in data.warnings[0].message
