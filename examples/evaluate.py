"""What an example adapter does with its held-out questions.

``python -m examples.evaluate pirate out/pirate/adapter``

Prints every answer with the checks that it fails, and the share of answers that pass each check, base beside
adapter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from examples.recipe import HeldOut
from examples.rows import RECIPES
from manylora.adapters.training.model.base import Base, find_base
from manylora.adapters.training.model.forward import greedy, sample_prompt_ids

MAX_NEW_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and whether it ended by itself rather than at the token limit."""

    text: str
    stopped: bool


def load(base: Base, adapter: Path) -> Any:
    """The base in bf16, as it is served, with ``adapter`` on it."""
    model = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.bfloat16)
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def ask(
    model: Any, base: Base, questions: Sequence[str], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[Answer]:
    """The greedy answer to each question."""
    prompts = sample_prompt_ids(base.template, questions)
    answers = greedy(model, prompts, eos_ids=base.eos_ids, pad_id=base.pad_id, max_new_tokens=max_new_tokens)
    return [Answer(base.tokenizer.decode(given.token_ids), given.stopped) for given in answers]


def failures(item: HeldOut, given: Answer) -> list[str]:
    """The names of the checks that an answer fails; ending by itself is one of them."""
    failed = [name for name, check in item.checks.items() if not check(given.text)]
    return failed if given.stopped else [*failed, "stops"]


def score(held_out: Sequence[HeldOut], answers: Sequence[Answer]) -> dict[str, float]:
    """The share of answers that pass each check, in 0..1; "stops" is the share that end by themselves."""
    names = dict.fromkeys(name for item in held_out for name in (*item.checks, "stops"))
    failed = [failures(item, given) for item, given in zip(held_out, answers, strict=True)]
    return {name: sum(name not in each for each in failed) / len(failed) for name in names}


def main() -> None:
    """Command line: which recipe's questions, and the adapter's directory."""
    parser = argparse.ArgumentParser(prog="python -m examples.evaluate", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("adapter", type=Path, help="directory of the adapter")
    parser.add_argument("--base", default="smollm2-135m", help="base model (smollm2-135m)")
    arguments = parser.parse_args()
    base, held_out = find_base(arguments.base), RECIPES[arguments.recipe]().held_out
    model, questions = load(base, arguments.adapter), [item.question for item in held_out]
    for name, context in (("base", model.disable_adapter()), ("adapter", nullcontext())):
        with context:
            answers = ask(model, base, questions)
        for item, given in zip(held_out, answers, strict=True):
            failed = ", ".join(failures(item, given))
            print(f"  {item.question}\n    {given.text!r}" + (f"\n    fails: {failed}" if failed else ""))
        shares = score(held_out, answers)
        print(f"{name:8}", "  ".join(f"{check} {share:.0%}" for check, share in shares.items()))


if __name__ == "__main__":
    main()
