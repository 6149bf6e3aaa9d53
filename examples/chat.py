"""Chats to token ids: the template that serves is the template that trains."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from examples.recipe import Message

IGNORED = -100  # the label of tokens that are not trained on
MAX_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Encoded:
    """One chat; ``labels[i]`` is ``input_ids[i]`` where that token is trained on, else IGNORED."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """A few chats, padded on the right to the longest of them."""

    input_ids: Tensor  # int64 [batch, length]
    attention_mask: Tensor  # int64 [batch, length], 0 on padding
    labels: Tensor  # int64 [batch, length]


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The prompt that asks for the next assistant message, as text."""
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return text


def encode(tokenizer: Any, messages: Sequence[Message]) -> Encoded:
    """Supervises what an assistant turn must produce: its content and the end token.

    A turn's tokens are made apart from the prompt before it, because that is how they come about when
    serving: the prompt is tokenized alone and the model goes on from there.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    seen = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index])
        if not prompt.startswith(seen):
            raise ValueError("the chat template rewrites earlier turns; they can't be trained on in one pass")
        answer = message["content"] + tokenizer.eos_token
        context_ids = tokenizer.encode(prompt.removeprefix(seen), add_special_tokens=False)
        answer_ids = tokenizer.encode(answer, add_special_tokens=False)
        input_ids += context_ids + answer_ids
        labels += [IGNORED] * len(context_ids) + answer_ids
        seen = prompt + answer
    if len(input_ids) > MAX_TOKENS:
        raise ValueError(f"a chat has {len(input_ids)} tokens, more than {MAX_TOKENS}")
    return Encoded(input_ids, labels)


def batches(chats: Sequence[Encoded], size: int, pad_id: int, rng: random.Random) -> Iterator[Batch]:
    """All chats once, in random order; in each pool of eight batches, those of similar length together."""
    shuffled = rng.sample(chats, len(chats))
    pool_size = 8 * size
    for start in range(0, len(shuffled), pool_size):
        pool = sorted(shuffled[start : start + pool_size], key=lambda chat: len(chat.input_ids))
        groups = [pool[first : first + size] for first in range(0, len(pool), size)]
        rng.shuffle(groups)
        for group in groups:
            yield collate(group, pad_id)


def collate(group: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad on the right; the padding is neither seen nor trained on."""
    length = max(len(chat.input_ids) for chat in group)

    def padded(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

    return Batch(
        input_ids=padded([chat.input_ids for chat in group], pad_id),
        attention_mask=padded([[1] * len(chat.input_ids) for chat in group], 0),
        labels=padded([chat.labels for chat in group], IGNORED),
    )
