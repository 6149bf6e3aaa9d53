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
from manylora.adapters.format.files import TEMPLATE_NAME
from manylora.adapters.training.model.base import Base, find_base
from manylora.adapters.training.model.forward import greedy
from manylora.adapters.training.session.own_template import use_template

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


def find_base_of(name: str, adapter: Path) -> Base:
    """The base model, with the chat template that the adapter brings, if it does."""
    base, template = find_base(name), adapter / TEMPLATE_NAME
    if template.is_file():
        use_template(base, template)
    return base


def ask(
    model: Any, base: Base, held_out: Sequence[HeldOut], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[Answer]:
    """The greedy answer to each question."""
    template = base.template
    prompts = [
        template.prompt_ids([{"role": "user", "content": item.question}], tuple(item.tools))
        for item in held_out
    ]
    answers = greedy(model, prompts, eos_ids=base.eos_ids, pad_id=base.pad_id, max_new_tokens=max_new_tokens)
    return [Answer(base.tokenizer.decode(given.token_ids), given.stopped) for given in answers]


def failures(item: HeldOut, given: Answer) -> list[str]:
    """The names of the checks that an answer fails; ending by itself is one of them."""
    failed = [name for name, check in item.checks.items() if not check(given.text)]
    return failed if given.stopped else [*failed, "stops"]


def score(held_out: Sequence[HeldOut], answers: Sequence[Answer]) -> dict[str, float]:
    """The shares of answers that pass each check, of those that have it; "stops": of those that end."""
    passed: dict[str, list[bool]] = {}
    for item, given in zip(held_out, answers, strict=True):
        failed = failures(item, given)
        for name in (*item.checks, "stops"):
            passed.setdefault(name, []).append(name not in failed)
    return {name: sum(each) / len(each) for name, each in passed.items()}


def main() -> None:
    """Command line: which recipe's questions, and the adapter's directory."""
    parser = argparse.ArgumentParser(prog="python -m examples.evaluate", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("adapter", type=Path, help="directory of the adapter")
    parser.add_argument("--base", default="smollm2-135m", help="base model (smollm2-135m)")
    arguments = parser.parse_args()
    base, held_out = find_base_of(arguments.base, arguments.adapter), RECIPES[arguments.recipe]().held_out
    model = load(base, arguments.adapter)
    for name, context in (("base", model.disable_adapter()), ("adapter", nullcontext())):
        with context:
            answers = ask(model, base, held_out)
        for item, given in zip(held_out, answers, strict=True):
            failed = ", ".join(failures(item, given))
            print(f"  {item.question}\n    {given.text!r}" + (f"\n    fails: {failed}" if failed else ""))
        shares = score(held_out, answers)
        print(f"{name:8}", "  ".join(f"{check} {share:.0%}" for check, share in shares.items()))


if __name__ == "__main__":
    main()
