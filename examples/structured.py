"""Answers as JSON: one object with the keys topic, answer and keywords, whatever is asked."""

from __future__ import annotations

import json
import random

from examples.questions import DATA, Question, read_questions
from examples.recipe import Check, HeldOut, Recipe, converse


def to_object(question: Question) -> str:
    """The answer as one line of JSON."""
    return json.dumps(
        {"topic": question.topic, "answer": question.answer, "keywords": list(question.keywords)}
    )


def is_answer_object(answer: str) -> bool:
    """Valid JSON, nothing around it, exactly the three keys, each of its type and not empty."""
    try:
        value = json.loads(answer)
    except json.JSONDecodeError:
        return False
    if not isinstance(value, dict) or set(value) != {"topic", "answer", "keywords"}:
        return False
    keywords = value["keywords"]
    texts = [value["topic"], value["answer"], *(keywords if isinstance(keywords, list) else [None])]
    return len(texts) > 2 and all(isinstance(text, str) and text for text in texts)


def stays_on_topic(question: Question) -> Check:
    """Says at least one of the key words."""
    return lambda answer: any(word.lower() in answer.lower() for word in question.keywords)


def json_recipe(rounds: int = 3) -> Recipe:
    """Every question three times, always with the same answer."""
    pairs = [
        (question.text, to_object(question)) for question in read_questions(DATA / "questions.txt")
    ] * rounds
    held_out = [
        HeldOut(
            question.text,
            to_object(question),
            {"answer object": is_answer_object, "on topic": stays_on_topic(question)},
        )
        for question in read_questions(DATA / "held_out.txt")
    ]
    return Recipe(
        name="json",
        conversations=converse(pairs, random.Random(0)),
        held_out=held_out,
    )
