"""Answers read as they arrive: what is reasoning, what is said, and which tools are called with what.

A whole answer is read by the same code, so streamed and whole answers can't differ. Nothing is lost: what
looks like a call and is none comes out as text.
"""

from __future__ import annotations

from collections.abc import Mapping

from manylora.adapters.format.answers.call_reader import CallReader, NoCall
from manylora.adapters.format.answers.events import AnswerEvent, Arguments, CallBegins, Text, Thought
from manylora.adapters.format.answers.incoming import SPACE, IncomingText, Reading, find_first, pending
from manylora.adapters.format.answers.json_reader import NotJson
from manylora.adapters.format.answers.syntax import AnswerFormat, CallSyntax, ReasoningSyntax, Shape
from manylora.adapters.format.answers.values import Properties


class AnswerParser:
    """Reads one answer."""

    def __init__(
        self,
        form: AnswerFormat,
        tools: Mapping[str, Properties] | None = None,
        *,
        in_reasoning: bool = False,
        max_calls: int | None = None,
    ) -> None:
        """
        Args:
            form: how the answer is written.
            tools: those that may be called, by name, with the schemas of their arguments; None: calls are
                text.
            in_reasoning: the prompt ends within reasoning.
            max_calls: calls after that many are left out; None: all count.
        """
        self._tools = tools
        self._calls = None if tools is None else form.calls
        self._reasoning = form.reasoning
        self.in_reasoning = in_reasoning and form.reasoning is not None
        self._max_calls = max_calls
        self._incoming = IncomingText()
        self._events: list[AnswerEvent] = []
        self._held = ""  # space that is told only if text follows
        self.num_calls = 0
        self._reading = self._read()

    def feed(self, text: str) -> list[AnswerEvent]:
        """What the next piece of the answer adds."""
        self._incoming.add(text)
        next(self._reading, None)
        return self._take()

    def finish(self) -> list[AnswerEvent]:
        """What the end of the answer adds."""
        self._incoming.end()
        next(self._reading, None)
        return self._take()

    def _take(self) -> list[AnswerEvent]:
        events, self._events = self._events, []
        return events

    def _read(self) -> Reading[None]:
        yield from self._read_reasoning()
        if self._calls is not None and not self._calls.trigger:
            yield from self._read_bare(self._calls)
        while (yield from self._incoming.more()):
            yield from self._read_text()
        if self._held and not self.num_calls:
            self._events.append(Text(self._held))

    # Reasoning.

    def _read_reasoning(self) -> Reading[None]:
        if self._reasoning is None:
            return
        if not self.in_reasoning:
            start = self._incoming.position
            if not (yield from self._incoming.marker(self._reasoning.open)):
                self._incoming.position = start
                return
            self.in_reasoning = True
        yield from self._read_thought(self._reasoning)

    def _read_thought(self, reasoning: ReasoningSyntax) -> Reading[None]:
        """Read reasoning and the marker that ends it, if that comes."""
        close = reasoning.close.strip()
        yield from self._incoming.skip_space()
        while True:
            rest = self._incoming.rest
            place = rest.find(close)
            certain = rest[:place] if place >= 0 else rest[: len(rest) - pending(rest, (close,))]
            said = certain.rstrip(SPACE)
            if said:
                self._events.append(Thought(said))
                self._incoming.take(len(said))
            if place >= 0:
                self._incoming.take(place - len(said) + len(close))
                self.in_reasoning = False
                yield from self._incoming.skip_space()
                self._incoming.forget()
                return
            if not (yield from self._incoming.at_least(len(rest) - len(said) + 1)):
                last = self._incoming.rest.rstrip(SPACE)
                if last:
                    self._events.append(Thought(last))
                self._incoming.take(len(self._incoming.rest))
                return

    # Text.

    def _read_text(self) -> Reading[None]:
        """Read text up to the next call, and that."""
        trigger = "" if self._calls is None else self._calls.trigger
        rest = self._incoming.rest
        if not trigger:
            self._say(self._incoming.take(len(rest)))
            return
        found = find_first(rest, (trigger,))
        ready = len(rest) - pending(rest, (trigger,)) if found is None else found[0]
        self._say(self._incoming.take(ready))
        self._incoming.forget()
        if found is not None:
            assert self._calls is not None, "there is a trigger"
            yield from self._read_calls(self._calls, trigger)
        elif not (yield from self._incoming.at_least(len(rest) - ready + 1)):
            self._say(self._incoming.take(len(self._incoming.rest)))

    def _say(self, text: str) -> None:
        """Tell of text; space at its end waits, because before a call it is not part of what is said."""
        if self._calls is None:
            if text:
                self._events.append(Text(text))
            return
        text = self._held + text
        said = text.rstrip(SPACE)
        self._held = text[len(said) :]
        if said:
            self._events.append(Text(said))

    # Calls.

    def _read_bare(self, syntax: CallSyntax) -> Reading[None]:
        """Read calls that begin with their own brace, which only an answer's beginning can be."""
        while True:
            start = self._incoming.position
            marked = bool(syntax.optional) and (yield from self._incoming.marker(syntax.optional))
            yield from self._incoming.skip_space()
            if (yield from self._incoming.peek()) != "{":
                break
            if not (yield from self._read_call(syntax, only_known=not marked)):
                break
            yield from self._incoming.marker(syntax.separator)
        self._incoming.position = start

    def _read_calls(self, syntax: CallSyntax, trigger: str) -> Reading[None]:
        """Read all calls from the trigger on; what is none of a call is text again."""
        held, self._held = self._held, ""
        begun = yield from self._incoming.marker(syntax.begin)
        if begun and (yield from self._read_sequence(syntax)):
            yield from self._incoming.marker(syntax.end)
        else:
            self._incoming.position = 0
            self._held = held
            self._say(self._incoming.take(len(trigger)))
        self._incoming.forget()

    def _read_sequence(self, syntax: CallSyntax) -> Reading[bool]:
        """Read calls as long as they follow one another; whether there was one."""
        if syntax.shape is not Shape.OBJECT:
            return (yield from self._read_run(syntax))
        if not (yield from self._incoming.marker(syntax.open)):
            return False
        yield from self._incoming.skip_space()
        if not (yield from self._incoming.literal("[")):
            return (yield from self._read_run(syntax, opened=True))
        yield from self._incoming.skip_space()
        if (yield from self._incoming.literal("]")):
            found = False
        else:
            found = yield from self._read_items(syntax)
        yield from self._incoming.marker(syntax.close)
        return found

    def _read_items(self, syntax: CallSyntax) -> Reading[bool]:
        """Read the calls of a list, and its end; whether there was one."""
        found = False
        while True:
            yield from self._incoming.skip_space()
            if not (yield from self._read_call(syntax)):
                return found
            found = True
            yield from self._incoming.skip_space()
            if not (yield from self._incoming.literal(",")):
                yield from self._incoming.literal("]")
                return True

    def _read_run(self, syntax: CallSyntax, *, opened: bool = False) -> Reading[bool]:
        """Read calls, each in its own markers; ``opened``: the first marker is read."""
        found = False
        while True:
            start = self._incoming.position
            if not opened and not (yield from self._incoming.marker(syntax.open)):
                break
            if not (yield from self._read_call(syntax)):
                break
            found, opened = True, False
            yield from self._incoming.marker(syntax.close)
            start = self._incoming.position
            if not syntax.open.strip():
                break
            yield from self._incoming.marker(syntax.separator)
        if found:
            self._incoming.position = start
        return found

    def _read_call(self, syntax: CallSyntax, *, only_known: bool = False) -> Reading[bool]:
        """Read one call; whether it was one. If it was not, nothing was told."""
        index, counts = self.num_calls, self._max_calls is None or self.num_calls < self._max_calls
        assert self._tools is not None, "calls are read where there are tools"

        def begins(name: str) -> None:
            self.num_calls += counts
            if counts:
                self._events.append(CallBegins(index, name))

        def arguments(text: str) -> None:
            if counts and text:
                self._events.append(Arguments(index, text))

        reader = CallReader(
            self._incoming, syntax, self._tools, begins=begins, arguments=arguments, only_known=only_known
        )
        try:
            yield from reader.read()
        except (NoCall, NotJson):
            return reader.begun
        return True
