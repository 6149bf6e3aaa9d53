"""Greedy answers and the share of them that pass a recipe's held-out checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from examples.chat import render
from examples.recipe import HeldOut


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and whether it ended by itself rather than at the token limit."""

    text: str
    stopped: bool


@torch.no_grad()
def answer(model: Any, tokenizer: Any, questions: Sequence[str], max_new_tokens: int = 96) -> list[Answer]:
    """The greedy answer to each question."""
    prompts = [render(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    tokenizer.padding_side = "left"  # so that every row goes on from its own last token
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [
        Answer(tokenizer.decode(row, skip_special_tokens=True), tokenizer.eos_token_id in row) for row in rows
    ]


def failures(item: HeldOut, given: Answer) -> list[str]:
    """The names of the checks that an answer fails; ending by itself is one of them."""
    failed = [name for name, check in item.checks.items() if not check(given.text)]
    return failed if given.stopped else [*failed, "stops"]


def score(held_out: Sequence[HeldOut], answers: Sequence[Answer]) -> dict[str, float]:
    """The share of answers that pass each check, in 0..1; "stops" is the share that end by themselves."""
    names = dict.fromkeys(name for item in held_out for name in (*item.checks, "stops"))
    failed = [failures(item, given) for item, given in zip(held_out, answers, strict=True)]
    return {name: sum(name not in each for each in failed) / len(failed) for name in names}
