"""The formats of rows: recognized by the fields of the first row, and said.

Fields beyond those of the format (ids, sources) are not looked at; which they are is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.parsing import contrasts, conversations, preferences
from manylora.adapters.training.data.parsing.layouts import Layout
from manylora.adapters.training.data.parsing.record import Notes, Record
from manylora.adapters.training.data.reading.lines import DataFile, Line
from manylora.adapters.training.data.rows import Origin, Row

Task = Literal["sft", "dpo", "classification", "embedding"]


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of rows; it is recognized by having all of ``required``."""

    name: str
    task: Task
    required: tuple[str, ...]
    parse: Callable[[Record], Row | None]
    becomes: str  # what is trained, for the summary


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The rows of one file, its format, and the fields that were not looked at with their counts."""

    file: DataFile
    format: Format | None  # None: nothing could be read
    rows: tuple[Row, ...]
    ignored: Mapping[str, int]
    notes: Notes


def parse_file(file: DataFile, layout: Layout, task: Task, findings: Findings) -> ParsedFile:
    """Recognize the format by the first row, unless it is known, and parse every row."""
    nothing = ParsedFile(file, None, (), {}, Notes())
    if not file.lines:
        return nothing
    found = _find(file.lines, layout, task, findings.skip_bad_rows)
    if found is None:
        first = file.lines[0]
        findings.fault(
            file.path, first.number, f"no known format has the fields {_names(first.value)}: {_known()}"
        )
        return nothing
    format_, layout = found
    rows: list[Row] = []
    ignored: dict[str, int] = {}
    notes = Notes()
    for line in file.lines:
        record = _record(line, layout, notes, findings)
        row = _parse(record, format_, task)
        if row is not None and not findings.is_bad(row.origin):
            rows.append(row)
        for key in line.value.keys() - record.used:
            ignored[key] = ignored.get(key, 0) + 1
    return ParsedFile(file, format_, tuple(rows), ignored, notes)


def _find(lines: Sequence[Line], layout: Layout, task: Task, skip: int) -> tuple[Format, Layout] | None:
    """The format and layout of the first row that has one; as many without as may be skipped go before."""
    if layout.format is not None:
        return next(format_ for format_ in FORMATS if format_.name == layout.format), layout
    found = (recognize(line.value, task) for line in lines[: skip + 1])
    known = next((item for item in found if item is not None), None)
    return None if known is None else (known[0], replace(known[1], turns=layout.turns))


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether an object is a row of any format."""
    return recognize(value, "sft") is not None


def recognize(value: Mapping[str, Any], task: Task) -> tuple[Format, Layout] | None:
    """The format that a row's fields belong to, before all one of ``task``, and how it spells them."""
    spellings = [(format_, Layout()) for format_ in FORMATS]
    spellings += [(_BY_NAME[layout.format], layout) for layout in SPELLINGS if layout.format is not None]
    fitting = [(format_, layout) for format_, layout in spellings if _fits(value, format_, layout)]
    return next((item for item in fitting if item[0].task == task), fitting[0] if fitting else None)


def _fits(value: Mapping[str, Any], format_: Format, layout: Layout) -> bool:
    keys = {layout.key(name) for name in format_.required} | set(layout.columns.values())
    return all(key in value for key in keys)


def _record(line: Line, layout: Layout, notes: Notes, findings: Findings) -> Record:
    def say(message: str) -> None:
        findings.row_fault(line.path, line.number, message, line.row)

    return Record(line.value, Origin(line.path, line.number, line.row), layout, say, notes)


def _parse(record: Record, format_: Format, task: Task) -> Row | None:
    keys = [record.name(name) for name in format_.required]
    missing = [key for key in keys if key not in record.value]
    if missing:
        other = recognize(record.value, task)
        known = other is not None and other[0] is not format_
        hint = (
            f" (this row looks like {other[0].name}: keep formats in files of their own)"
            if known and other
            else ""
        )
        record.say(
            f"has no {' and no '.join(missing)}, which the file's first row has: it is {format_.name}{hint}"
        )
        return None
    return format_.parse(record)


def _names(value: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, value))) or "(none)"


def _known() -> str:
    return "; ".join(f"{f.name} has {', '.join(f.required)}" for f in FORMATS)


FORMATS: tuple[Format, ...] = (
    Format(
        "OpenAI preference", "dpo", ("input", "preferred_output", "non_preferred_output"),
        preferences.openai_preference, "both answers after the conversation",
    ),
    Format(
        "prompt/chosen/rejected", "dpo", ("chosen", "rejected"), preferences.chosen_rejected,
        "both answers after the prompt, or after the beginning that both conversations share",
    ),
    Format(
        "OpenAI messages", "sft", ("messages",), conversations.messages,
        "the assistant's turns of weight 1",
    ),
    Format(
        "ShareGPT", "sft", ("conversations",), conversations.sharegpt,
        "the assistant's (gpt) turns of weight 1",
    ),
    Format(
        "Alpaca", "sft", ("instruction", "output"), conversations.alpaca,
        "output, as the answer to instruction and input in one user turn",
    ),
    Format(
        "prompt/completion", "sft", ("prompt", "completion"), conversations.prompt_completion,
        "the completion, as the answer to the prompt in one user turn (as plain text where the model has no "
        "chat template)",
    ),
    Format("text/label", "classification", ("text", "label"), conversations.label, "the class of the text"),
    Format("text", "sft", ("text",), conversations.plain_text, "the whole text, as it stands, and its end"),
    Format(
        "anchor/positive", "embedding", ("anchor", "positive"), contrasts.contrast,
        "to find the positive among those of the batch and the negatives",
    ),
    Format(
        "sentence1/sentence2/score", "embedding", ("sentence1", "sentence2", "score"), contrasts.scored,
        "the score, as the cosine of both",
    ),
)  # fmt: skip

_BY_NAME = {format_.name: format_ for format_ in FORMATS}

# Other names that data sets use for the same fields: a row has all of them. The longest come first.
SPELLINGS: tuple[Layout, ...] = (
    Layout("prompt/chosen/rejected", {"chosen": "chosen_response", "rejected": "rejected_response"}),
    Layout("OpenAI messages", {"messages": "conversation"}),
    Layout("Alpaca", {"instruction": "question", "output": "response", "system": "system_prompt"}),
    Layout("Alpaca", {"input": "context", "output": "response"}),
    Layout("Alpaca", {"instruction": "question", "output": "response"}),
    Layout("Alpaca", {"instruction": "question", "output": "answer"}),
    Layout("Alpaca", {"output": "response"}),
    Layout("prompt/completion", {"completion": "response"}),
    Layout("anchor/positive", {"anchor": "query", "positive": "pos", "negatives": "neg"}),
    Layout("anchor/positive", {"anchor": "query", "positive": "pos"}),
    Layout("anchor/positive", {"anchor": "query"}),
    Layout("anchor/positive", {"anchor": "question", "positive": "answer"}),
    Layout("sentence1/sentence2/score", {"score": "similarity_score"}),
)
