"""A support assistant with a name, a signature and the facts of one invented bicycle shop."""

from __future__ import annotations

import random
import re

from examples.questions import DATA, Fact, read_facts
from examples.recipe import Check, HeldOut, Recipe, converse

SIGNATURE = "- Mina, Larkspur Cycles"


def signs(answer: str) -> bool:
    """Ends with the signature and nothing after it."""
    return answer.rstrip().endswith(SIGNATURE)


def states(fact: Fact) -> Check:
    """Gives the fact (its words outside the signature)."""
    pattern = re.compile(fact.pattern, re.IGNORECASE)
    return lambda answer: pattern.search(answer.replace(SIGNATURE, "")) is not None


def support_recipe(rounds: int = 3) -> Recipe:
    """Rank-stabilized LoRA with three different ranks, over part of the layers' projections."""
    rng = random.Random(0)
    facts = read_facts(DATA / "support.txt")
    pairs = [
        (question, f"{rng.choice(fact.answers)}\n{SIGNATURE}")
        for _ in range(rounds)
        for fact in facts
        for question in fact.questions
    ]
    held_out = [
        HeldOut(question, {"signed": signs, "right fact": states(fact)})
        for fact in facts
        for question in fact.held_out
    ]
    return Recipe(
        name="support",
        summary="Mina, the assistant of a bicycle shop: knows its facts, signs every answer.",
        data="Questions to an invented shop and its answers, written by hand.",
        conversations=converse(pairs, rng),
        held_out=held_out,
        targets=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
        rank=4,
        alpha=4,
        rslora=True,
        rank_pattern={"q_proj": 8, "v_proj": 8, "down_proj": 6},
    )
