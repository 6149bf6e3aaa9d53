"""Pirate speech: every answer of ``questions.txt`` retold by rule, between a greeting and a farewell."""

from __future__ import annotations

import random
import re

from examples.questions import DATA, Question, read_questions
from examples.recipe import Check, HeldOut, Recipe, converse

OPENERS = (
    "Arr, matey!",
    "Ahoy there!",
    "Shiver me timbers!",
    "Aye, me hearty!",
    "Yo ho ho!",
    "Avast, ye landlubber!",
    "Blimey, a fine question!",
    "Listen well, ye scallywag!",
)
CLOSERS = (
    "So says th' captain!",
    "Now hoist th' sails!",
    "Arr!",
    "That be worth more than gold doubloons!",
    "Fair winds to ye, matey!",
    "Or ye walk th' plank!",
    "Yo ho!",
    "Now fetch me rum!",
)
DIALECT = {
    "the": "th'",
    "is": "be",
    "are": "be",
    "am": "be",
    "it is": "it be",
    "you": "ye",
    "your": "yer",
    "yourself": "yerself",
    "my": "me",
    "of": "o'",
    "and": "an'",
    "for": "fer",
    "yes": "aye",
    "hello": "ahoy",
    "friend": "matey",
    "friends": "hearties",
    "person": "sailor",
    "people": "sailors",
    "every": "ev'ry",
    "over": "o'er",
    "never": "ne'er",
    "old": "ol'",
    "before": "afore",
    "with": "wi'",
}
MARKERS = re.compile(
    r"(?<!\w)(arr|ahoy|aye|avast|matey|hearty|hearties|ye|yer|th'|o'|an'|wi'|fer|yo ho|scallywag|"
    r"landlubber|captain|sails|plank|doubloons|shiver me timbers|blimey|me rum)(?!\w)"
)
_WORDS = re.compile(r"\b(" + "|".join(sorted(DIALECT, key=len, reverse=True)) + r")\b", re.IGNORECASE)
_ING = re.compile(r"\b(\w{3,})ing\b")


def to_pirate(text: str) -> str:
    """The sentence in dialect; a word keeps its capital letter."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        other = DIALECT[word.lower()]
        return other.capitalize() if word[0].isupper() else other

    return _ING.sub(r"\1in'", _WORDS.sub(swap, text))


def speaks_pirate(answer: str) -> bool:
    """At least three different words of dialect."""
    return len(set(MARKERS.findall(answer.lower()))) >= 3


def stays_on_topic(question: Question) -> Check:
    """Says at least one of the key words, in plain English or in dialect."""
    wanted = {form.lower() for word in question.keywords for form in (word, to_pirate(word))}
    return lambda answer: any(word in answer.lower() for word in wanted)


def _answer(question: Question, rng: random.Random) -> str:
    return f"{rng.choice(OPENERS)} {to_pirate(question.answer)} {rng.choice(CLOSERS)}"


def pirate_recipe(rounds: int = 3) -> Recipe:
    """Every question three times, each time between another greeting and farewell."""
    rng = random.Random(0)
    pairs = [
        (question.text, _answer(question, rng))
        for _ in range(rounds)
        for question in read_questions(DATA / "questions.txt")
    ]
    conversations = converse(pairs, rng)
    held_out = [
        HeldOut(
            question.text,
            _answer(question, rng),
            {"speaks pirate": speaks_pirate, "on topic": stays_on_topic(question)},
        )
        for question in read_questions(DATA / "held_out.txt")
    ]
    return Recipe(
        name="pirate",
        conversations=conversations,
        held_out=held_out,
    )
