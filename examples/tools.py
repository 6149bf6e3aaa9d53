"""Calls of tools: of several that are offered the model calls what is asked for, or answers by itself."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from examples.questions import DATA, read_questions
from examples.recipe import Check, Conversation, HeldOut, Message, Recipe
from examples.tool_tasks import Request, Task, ToolTasks, renamed
from manylora.adapters.format.answers.events import Arguments, CallBegins
from manylora.adapters.format.answers.families import by_name
from manylora.adapters.format.answers.parser import AnswerParser

OFFERED = (2, 2, 3, 3, 4)  # tools at a time
RENAMED = 0.3  # share of conversations with other names for tools and parameters
CASES, UNSEEN, PLAIN = 50, 24, 12  # held-out requests: of trained tools, of others, of none
SEED = 0


def calls_of(answer: str) -> list[tuple[str, Any]]:
    """The calls in an answer: names, and arguments or the text that was to be some."""
    parser = AnswerParser(by_name("hermes"), _AnyTool())
    names: list[str] = []
    arguments: list[str] = []
    for event in [*parser.feed(answer), *parser.finish()]:
        if isinstance(event, CallBegins):
            names.append(event.name)
            arguments.append("")
        elif isinstance(event, Arguments):
            arguments[event.index] += event.text
    return list(zip(names, map(_parsed, arguments), strict=True))


class _AnyTool(dict[str, dict[str, Any]]):
    """Whatever is called counts as a tool: the name is looked at later."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> dict[str, Any]:
        return {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def calls(*requests: Request) -> Check:
    """Calls these tools with these arguments, and nothing else."""
    wanted = [(request.name, dict(request.arguments)) for request in requests]
    return lambda answer: calls_of(answer) == wanted


def tools_recipe(rounds: int = 5) -> Recipe:
    """Every phrasing ``rounds`` times with other values, among tools of which some are offered."""
    tasks, rng = ToolTasks(DATA / "tools.txt"), random.Random(SEED)
    writer = _Writer(tasks, rng)
    conversations = [
        writer.conversation(task, phrasing)
        for _ in range(rounds)
        for task in tasks.tasks
        for phrasing in task.phrasings
    ]
    return Recipe(name="tools", conversations=conversations, held_out=_held_out(writer))


class _Writer:
    """Writes conversations with tools."""

    def __init__(self, tasks: ToolTasks, rng: random.Random) -> None:
        self.tasks = tasks
        self.rng = rng
        self.trained = [task for task in tasks.tasks if task.trained]
        self._questions = read_questions(DATA / "questions.txt")
        self.rng.shuffle(self._questions)

    def conversation(self, task: Task, phrasing: str) -> Conversation:
        """A request for ``task`` and what follows: mostly its call, at times more than that."""
        request = self.tasks.request(task, phrasing, self.rng)
        kind = self.rng.random()
        if kind < 0.12:
            question = self._questions.pop()
            return Conversation(_turn(question.text, question.answer), self.offer())
        if kind < 0.12 + RENAMED:
            definition, names = renamed(task.definition, self.rng)
            arguments = {names[key]: value for key, value in request.arguments.items()}
            request = Request(request.text, names[request.name], arguments)
            tools = [definition if each is task.definition else each for each in self.offer(task)]
            return Conversation(_turn(request.text, "", request), tools)
        if kind < 0.18 + RENAMED:
            other = self.rng.choice([each for each in self.trained if each is not task])
            second = self.tasks.request(other, self.rng.choice(other.phrasings), self.rng)
            text = f"{request.text} {self.rng.choice(('And ', 'Also, ', ''))}{second.text}"
            return Conversation(_turn(text, "", request, second), self.offer(task, other))
        messages = _turn(request.text, "", request)
        if kind < 0.28 + RENAMED and task.results:
            result, told = self.tasks.result(task, request, self.rng)
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": told}]
        return Conversation(messages, self.offer(task))

    def offer(self, *wanted: Task) -> list[Message]:
        """Some tools, ``wanted`` among them, in any order."""
        others = [task for task in self.trained if task not in wanted]
        number = max(0, self.rng.choice(OFFERED) - len(wanted))
        offered = [*wanted, *self.rng.sample(others, number)]
        self.rng.shuffle(offered)
        return [task.definition for task in offered]


def _held_out(writer: _Writer) -> list[HeldOut]:
    """Requests with phrasings and values that are never trained on."""
    asked = [task for task in writer.trained if task.held_out]
    unseen = [task for task in writer.tasks.tasks if not task.trained]
    held_out = [_case(writer, task, phrasing, "right call") for task, phrasing in _cases(asked, CASES)]
    held_out += [
        _case(writer, task, phrasing, "right call, new tool") for task, phrasing in _cases(unseen, UNSEEN)
    ]
    questions = read_questions(DATA / "held_out.txt")[:PLAIN]
    return held_out + [
        HeldOut(question.text, question.answer, {"no call": calls()}, writer.offer())
        for question in questions
    ]


def _cases(tasks: Sequence[Task], number: int) -> list[tuple[Task, str]]:
    """``number`` phrasings: the first of each tool, then the second of each, and again from the first."""
    turns = [(task, i) for i in range(number) for task in tasks][:number]
    return [(task, task.held_out[i % len(task.held_out)]) for task, i in turns]


def _case(writer: _Writer, task: Task, phrasing: str, check: str) -> HeldOut:
    request = writer.tasks.request(task, phrasing, writer.rng, held_out=True)
    return HeldOut(request.text, "", {check: calls(request)}, writer.offer(task), [request.call])


def _turn(question: str, answer: str, *requests: Request) -> list[Message]:
    said: Message = {"role": "assistant", "content": answer}
    if requests:
        said["tool_calls"] = [request.call for request in requests]
    return [{"role": "user", "content": question}, said]
