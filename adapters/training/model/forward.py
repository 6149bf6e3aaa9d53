"""Forward passes outside of training: logits where something is learned, and greedy answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import IGNORED, Encoded, EncodedPair, EncodedText, Template
from manylora.adapters.training.model.virtual_tokens import virtual_tokens

BATCH = 8


@dataclass(frozen=True, slots=True)
class Answered:
    """A greedy answer, without its end token."""

    token_ids: list[int]
    stopped: bool  # by itself rather than at the limit


def learned_ids(item: Item) -> tuple[list[int], list[int]]:
    """Ids and labels of a sequence (of a preference: of the better answer; of a text: nothing learned)."""
    if isinstance(item, Encoded):
        return item.input_ids, item.labels
    if isinstance(item, EncodedPair):
        ids = item.prompt_ids + item.chosen_ids
        return ids, [IGNORED] * len(item.prompt_ids) + item.chosen_ids
    assert isinstance(item, EncodedText), "of texts that are embedded no token is learned"
    return item.input_ids, [IGNORED] * len(item.input_ids)


@torch.no_grad()
def learned_logits(
    model: Any, rows: Sequence[tuple[list[int], list[int]]], pad_id: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each row of (ids, labels): logits that predict its learned tokens, and those tokens.

    Yields:
        float32 [learned, vocabulary] and int64 [learned], both on the CPU.
    """
    device = next(model.parameters()).device
    for start in range(0, len(rows), BATCH):
        group = rows[start : start + BATCH]
        ids, mask = pad_right([ids for ids, _ in group], pad_id)
        labels, _ = pad_right([labels for _, labels in group], IGNORED)
        targets = labels[:, 1:]
        columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
        output = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            use_cache=False,
            logits_to_keep=(columns + virtual_tokens(model)).to(device),
        )
        logits, chosen = output.logits.float().cpu(), targets[:, columns]
        for row_logits, row_targets in zip(logits, chosen, strict=True):
            kept = row_targets != IGNORED
            yield row_logits[kept], row_targets[kept]


def learned_scores(model: Any, items: Sequence[Item], pad_id: int) -> tuple[float, float]:
    """Loss and token accuracy over all learned tokens of ``items``."""
    rows = [(item.input_ids, item.labels) for item in items if isinstance(item, Encoded)]
    total, right, count = 0.0, 0, 0
    for logits, labels in learned_logits(model, rows, pad_id):
        total += float(functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return total / count, right / count


@torch.no_grad()
def class_logits(model: Any, rows: Sequence[list[int]], pad_id: int) -> Tensor:
    """Logits of a classifier, float32 [rows, classes] on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(rows), BATCH):
        ids, mask = pad_right(rows[start : start + BATCH], pad_id)
        parts.append(model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def greedy(
    model: Any, prompts: Sequence[list[int]], *, eos_ids: frozenset[int], pad_id: int, max_new_tokens: int
) -> list[Answered]:
    """The greedy answer to each prompt."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(eos_ids), pad_token_id=pad_id
    )
    answers: list[Answered] = []
    for start in range(0, len(prompts), BATCH):
        group = prompts[start : start + BATCH]
        longest = max(len(prompt) for prompt in group)
        ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in group])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in group])
        output = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
        answers += [until_end(row, eos_ids) for row in output[:, longest:].tolist()]
    model.train(was_training)
    return answers


def until_end(row: list[int], eos_ids: frozenset[int]) -> Answered:
    """What is before the first end token of ``row``."""
    for index, token in enumerate(row):
        if token in eos_ids:
            return Answered(row[:index], True)
    return Answered(row, False)


def pad_right(rows: Sequence[list[int]], fill: int) -> tuple[Tensor, Tensor]:
    """int64 [rows, longest], and the mask that is 1 where a row has an entry."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def sample_prompt_ids(template: Template, texts: Sequence[str]) -> list[list[int]]:
    """The ids of prompts: a user turn each, or plain text where there is no chat template."""
    if not template.chat.has_chat_template:
        return [template.chat.encode(text) for text in texts]
    return [template.prompt_ids([{"role": "user", "content": text}], ()) for text in texts]
