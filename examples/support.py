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


def _answer(fact: Fact, rng: random.Random) -> str:
    return f"{rng.choice(fact.answers)}\n{SIGNATURE}"


def support_recipe(rounds: int = 3) -> Recipe:
    """Every question three times, with any of the fact's answers."""
    rng = random.Random(0)
    facts = read_facts(DATA / "support.txt")
    pairs = [
        (question, _answer(fact, rng)) for _ in range(rounds) for fact in facts for question in fact.questions
    ]
    conversations = converse(pairs, rng)
    held_out = [
        HeldOut(question, _answer(fact, rng), {"signed": signs, "right fact": states(fact)})
        for fact in facts
        for question in fact.held_out
    ]
    return Recipe(
        name="support",
        conversations=conversations,
        held_out=held_out,
    )
