"""Rows to token ids and labels, through the code that the server renders and tokenizes with.

A prompt has exactly the ids that the server would compute for the conversation so far, and the answer's ids
are those that the model has to produce after it: the assistant's tokens and the token that ends its turn.
An answer is therefore tokenized apart from its prompt. Turns of one conversation share a sequence as long as
the server's prompt for the later turn begins with the ids of the earlier ones; where a template rewrites
earlier turns (or tokens merge across a border), a turn gets a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.format.text.chat import ChatTokenizer
from manylora.adapters.format.text.content_marks import Marked, Message
from manylora.adapters.training.data.rows import (
    ChatRow,
    ContrastRow,
    LabelRow,
    Origin,
    PlainRow,
    PreferenceRow,
    TextRow,
    Tools,
)

IGNORED = -100  # the label of tokens that are not trained on


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence; ``labels[i]`` is ``input_ids[i]`` where that token is trained on, else IGNORED."""

    origin: Origin
    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    def cut(self, length: int) -> Encoded:
        """This sequence cut to its first ``length`` tokens."""
        return Encoded(self.origin, self.input_ids[:length], self.labels[:length])


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """The ids of a prompt and of the two answers to it, each with its end token."""

    origin: Origin
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The ids of a text and the index of its class."""

    origin: Origin
    input_ids: list[int]
    label: int


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """The ids of texts that are compared: the anchor's, the positive's, and those of the negatives."""

    origin: Origin
    texts: list[list[int]]
    score: float | None  # the cosine that the first two should have; None: the second is to be found


class Template:
    """A tokenizer and its chat template as the trainer uses them."""

    def __init__(self, hf: Any, eos_ids: Collection[int], *, allow_special_tokens: bool = False) -> None:
        """Args:
        hf: the tokenizer.
        eos_ids: tokens at which the server ends a generation, from tokenizer and generation config.
        allow_special_tokens: control tokens that are spelled in messages count as such.
        """
        self._allows_special_tokens = allow_special_tokens
        self.chat = ChatTokenizer(hf)
        self.hf = hf
        self.eos_ids = frozenset(eos_ids)

    def chat_sequences(self, row: ChatRow) -> list[Encoded]:
        """The sequences of a conversation, each with something to learn.

        Raises:
            ChatTemplateError: the template rejects the messages or can't be trained with.
        """
        sequences: list[Encoded] = []
        current = Encoded(row.origin, [], [])
        for index, (message, weight) in enumerate(zip(row.messages, row.weights, strict=True)):
            if message["role"] != "assistant" or (index == 0 and not weight):
                continue  # no prompt asks for a first turn of the assistant: it is a part of the next one's
            prompt_ids = self.prompt_ids(row.messages[:index], row.tools)
            answer_ids = self.answer_ids(row.messages[:index], message, row.tools)
            seen = len(current.input_ids)
            if prompt_ids[:seen] != current.input_ids:
                sequences.append(current)
                current, seen = Encoded(row.origin, [], []), 0
            current = Encoded(
                row.origin,
                prompt_ids + answer_ids,
                current.labels
                + [IGNORED] * (len(prompt_ids) - seen)
                + (answer_ids if weight else [IGNORED] * len(answer_ids)),
            )
        return [sequence for sequence in [*sequences, current] if sequence.supervised]

    def text_sequence(self, row: TextRow) -> Encoded:
        """A prompt and its completion as a chat turn, or as plain text where there is no chat template."""
        if self.chat.has_chat_template:
            user: Message = {"role": "user", "content": row.prompt}
            answer: Message = {"role": "assistant", "content": row.completion}
            (sequence,) = self.chat_sequences(ChatRow(row.origin, (user, answer), (0, 1)))
            return sequence
        prompt_ids = self.chat.encode(row.prompt)  # as the server encodes a plain prompt
        answer_ids = [*self.chat.encode(row.completion, add_special_tokens=False), self._own_eos()]
        labels = [IGNORED] * len(prompt_ids) + answer_ids
        return Encoded(row.origin, prompt_ids + answer_ids, labels)

    def plain_sequences(self, row: PlainRow, length: int) -> list[Encoded]:
        """A text and the end token as sequences of at most ``length`` tokens, all of them learned."""
        ids = [*self.chat.encode(row.text), self._own_eos()]  # as the server encodes a plain prompt
        parts = [ids[start : start + length] for start in range(0, len(ids), length)]
        return [Encoded(row.origin, part, part) for part in parts if len(part) > 1]

    def pair(self, row: PreferenceRow) -> EncodedPair:
        """Prompt and answers of a preference.

        Raises:
            ChatTemplateError: the template rejects the messages or can't be trained with.
        """
        return EncodedPair(
            row.origin,
            self.prompt_ids(row.prompt, row.tools),
            self.answer_ids(row.prompt, row.chosen, row.tools),
            self.answer_ids(row.prompt, row.rejected, row.tools),
        )

    def labelled(self, row: LabelRow, classes: Sequence[str]) -> EncodedText:
        """A text as the server encodes a plain prompt; ``classes`` are the labels in the head's order."""
        return EncodedText(row.origin, self.chat.encode(row.text), classes.index(row.label))

    def contrasts(self, row: ContrastRow) -> list[EncodedTexts]:
        """A text with each of those that belong to it, encoded as the server does texts to embed."""
        anchor, *negatives = (self.chat.encode(text) for text in (row.anchor, *row.negatives))
        return [
            EncodedTexts(row.origin, [anchor, self.chat.encode(positive), *negatives], row.score)
            for positive in row.positives
        ]

    def prompt_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """The ids of the prompt that asks for the next assistant turn, as the server computes them."""
        marked = self._marked(messages, tools)
        return self._ids(self.chat.render_chat(marked.messages, tools=marked.tools), marked.mark)

    def answer_ids(self, before: Sequence[Message], answer: Message, tools: Tools) -> list[int]:
        """What the model has to produce for ``answer`` after ``before``, up to and with the end token.

        The template writes the turn; what it writes after the end token belongs to the next prompt.
        """
        marked = self._marked([*before, answer], tools)
        prompt = self.chat.render_chat(marked.messages[:-1], tools=marked.tools)
        whole = self.chat.render_chat(marked.messages, tools=marked.tools, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ChatTemplateError(
                "the chat template writes an assistant turn differently from the prompt that asks for it"
            )
        ids = self._ids(whole.removeprefix(prompt), marked.mark)
        ends = [position for position, token in enumerate(ids) if token in self.eos_ids]
        return ids[: ends[-1] + 1] if ends else [*ids, self._own_eos()]

    def _marked(self, messages: Sequence[Message], tools: Tools) -> Marked:
        if self._allows_special_tokens:
            return Marked([*map(dict, messages)], [*map(dict, tools)] or None)
        return self.chat.mark(messages, list(tools) or None)

    def _ids(self, text: str, mark: str | None) -> list[int]:
        if self._allows_special_tokens:
            return self.chat.encode(text, add_special_tokens=False)  # the template writes its own
        return self.chat.encode_rendered(text, mark)

    def ignores(self, row: ChatRow | PreferenceRow) -> str | None:
        """What of a row the template has no place for: "tools", "names" or "tool calls"; None if nothing."""
        messages = row.messages if isinstance(row, ChatRow) else (*row.prompt, row.chosen)
        whole = self.chat.render_chat(messages, tools=list(row.tools) or None, add_generation_prompt=False)
        if row.tools and whole == self.chat.render_chat(messages, add_generation_prompt=False):
            return "tools"
        for field, name in (("name", "names"), ("tool_calls", "tool calls")):
            without = [{k: v for k, v in message.items() if k != field} for message in messages]
            if any(field in message for message in messages) and whole == self.chat.render_chat(
                without, tools=list(row.tools) or None, add_generation_prompt=False
            ):
                return name
        return None

    def _own_eos(self) -> int:
        if self.hf.eos_token_id is None:
            raise ChatTemplateError("the tokenizer has no end token (eos_token), so no turn could end")
        return int(self.hf.eos_token_id)
