"""Calls of tools: of several that are offered the model calls what is asked for, or answers by itself."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.questions import DATA, Question, read_questions
from examples.recipe import Check, Conversation, HeldOut, Message, Recipe
from examples.tool_tasks import Request, Task, ToolTasks, renamed
from manylora.adapters.format.answers.events import Arguments, CallBegins
from manylora.adapters.format.answers.families import by_name
from manylora.adapters.format.answers.parser import AnswerParser

OFFERED = (2, 2, 3, 3, 4)  # tools at a time
EXCHANGES = (1, 1, 1, 2, 3)  # requests in a conversation, all with the tools that are offered
RENAMED = 0.2  # share of offered tools with another name, and other names for their parameters
NO_TOOL = 0.15  # share of requests that no tool is needed for
TWO_CALLS = 0.05  # share of requests for two things at once
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


def tools_recipe(rounds: int = 4) -> Recipe:
    """Every phrasing ``rounds`` times with other values, among tools of which some are offered.

    What is held out is drawn apart from that, so that it stays the same whatever is trained on.
    """
    tasks = ToolTasks(DATA / "tools.txt")
    writer = _Writer(tasks, random.Random(SEED))
    conversations = [
        writer.conversation(task, phrasing)
        for _ in range(rounds)
        for task in tasks.tasks
        for phrasing in task.phrasings
    ]
    held_out = _held_out(_Writer(tasks, random.Random(SEED + 1)))
    return Recipe(name="tools", conversations=conversations, held_out=held_out)


@dataclass(frozen=True, slots=True)
class _Offered:
    """A tool of a request, perhaps under other names than the task's own."""

    task: Task
    definition: Message
    names: Mapping[str, str]  # of the tool and its parameters, by the task's own

    def call(self, request: Request) -> Request:
        arguments = {self.names.get(key, key): value for key, value in request.arguments.items()}
        return Request(request.text, self.names.get(request.name, request.name), arguments)


class _Writer:
    """Writes conversations with tools."""

    def __init__(self, tasks: ToolTasks, rng: random.Random) -> None:
        self.tasks = tasks
        self.rng = rng
        self.trained = [task for task in tasks.tasks if task.trained]
        self._questions: list[Question] = []

    def conversation(self, task: Task, phrasing: str) -> Conversation:
        """A request for ``task`` and what follows: mostly its call, at times more than that."""
        offered = [self._perhaps_renamed(each) for each in self._choose(task)]
        asked = next(each for each in offered if each.task is task)
        messages: list[Message] = []
        for left in reversed(range(self.rng.choice(EXCHANGES))):
            if self.rng.random() < NO_TOOL:
                messages += self._question()
            elif self.rng.random() < TWO_CALLS:
                other = self.rng.choice([each for each in offered if each is not asked])
                messages += self._two_calls(asked, phrasing, other)
                break
            else:
                messages += self._call(asked, phrasing, with_result=left > 0 or self.rng.random() < 0.1)
                if messages[-1].get("tool_calls"):
                    break
            asked = self.rng.choice(offered)
            phrasing = self.rng.choice(asked.task.phrasings)
        return Conversation(messages, [each.definition for each in offered])

    def offer(self, *wanted: Task) -> list[Message]:
        """Some tools under their own names, ``wanted`` among them, in any order."""
        return [task.definition for task in self._choose(*wanted)]

    def _choose(self, *wanted: Task) -> list[Task]:
        others = [task for task in self.trained if task not in wanted]
        number = max(0, self.rng.choice(OFFERED) - len(wanted))
        chosen = [*wanted, *self.rng.sample(others, number)]
        self.rng.shuffle(chosen)
        return chosen

    def _perhaps_renamed(self, task: Task) -> _Offered:
        if self.rng.random() >= RENAMED:
            return _Offered(task, task.definition, {})
        return _Offered(task, *renamed(task.definition, self.rng))

    def _question(self) -> list[Message]:
        """One that no tool is needed for, answered; each comes once before any comes again."""
        if not self._questions:
            self._questions = read_questions(DATA / "questions.txt")
            self.rng.shuffle(self._questions)
        question = self._questions.pop()
        return _turn(question.text, question.answer)

    def _call(self, asked: _Offered, phrasing: str, *, with_result: bool) -> list[Message]:
        """The call that answers a request, and, of tools that answer something, what is said of it."""
        request = self.tasks.request(asked.task, phrasing, self.rng)
        messages = _turn(request.text, "", asked.call(request))
        if with_result and asked.task.results:
            result, told = self.tasks.result(asked.task, request, self.rng)
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": told}]
        return messages

    def _two_calls(self, first: _Offered, phrasing: str, second: _Offered) -> list[Message]:
        one = self.tasks.request(first.task, phrasing, self.rng)
        two = self.tasks.request(second.task, self.rng.choice(second.task.phrasings), self.rng)
        text = f"{one.text} {self.rng.choice(('And ', 'Also, ', ''))}{two.text}"
        return _turn(text, "", first.call(one), second.call(two))


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
