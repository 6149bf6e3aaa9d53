"""Reads the hand-written questions and answers in ``examples/data``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Question:
    """A general question with a short answer and the words that carry the answer."""

    topic: str
    text: str
    answer: str
    keywords: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing the shop's assistant knows; ``pattern`` matches every right answer."""

    pattern: str
    answers: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


def _content_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def read_questions(path: Path) -> list[Question]:
    """Lines of ``topic | question | answer``; asterisks in the answer mark its key words."""
    return [_parse_question(line) for line in _content_lines(path) if line]


def _parse_question(line: str) -> Question:
    topic, text, answer = (part.strip() for part in line.split("|"))
    keywords = tuple(re.findall(r"\*(.+?)\*", answer))
    return Question(topic, text, answer.replace("*", ""), keywords)


def read_facts(path: Path) -> list[Fact]:
    """Blocks parted by blank lines: ``=`` pattern, ``>`` answers, ``?`` questions, ``!`` held out."""
    blocks = "\n".join(_content_lines(path)).strip().split("\n\n")
    return [_parse_fact(block.splitlines()) for block in blocks]


def _parse_fact(lines: Iterable[str]) -> Fact:
    parts: dict[str, list[str]] = {"=": [], ">": [], "?": [], "!": []}
    for line in lines:
        mark, text = line.split(" ", 1)
        parts[mark].append(text)
    (pattern,) = parts["="]
    return Fact(pattern, tuple(parts[">"]), tuple(parts["?"]), tuple(parts["!"]))
