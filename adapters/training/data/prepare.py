"""From files to sequences that can be trained on, with everything found on the way.

The one entry is :func:`prepare`: read, recognize, parse, check, split, encode, cut, look for duplicates.
Faults of all files are raised together; warnings come back with the result.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.training.data.cut import MAX_TOLD, Cutter, Item
from manylora.adapters.training.data.descriptions.find import description_digest, find_sources
from manylora.adapters.training.data.descriptions.sources import Source
from manylora.adapters.training.data.encode import Encoder
from manylora.adapters.training.data.faults import Finding, Findings
from manylora.adapters.training.data.parsing.formats import ParsedFile, Task, is_row, parse_file
from manylora.adapters.training.data.reading.files import read_file
from manylora.adapters.training.data.rows import (
    ChatRow,
    ContrastRow,
    LabelRow,
    Origin,
    PreferenceRow,
    Row,
    content_digest,
)
from manylora.adapters.training.data.split import hold_out
from manylora.adapters.training.data.template import Encoded, EncodedPair, Template

WRITING = ("sft", "dpo")  # tasks whose adapters answer, by the chat template


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What of the run's configuration decides its data."""

    task: Task
    train_path: Path
    eval_path: Path | None
    eval_split: float  # share of the rows held out; 0 for none
    max_length: int
    seed: int
    dataset: tuple[str, ...] = ()  # names in a LLaMA-Factory description
    skip_bad_rows: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one side (train or eval) and their sequences."""

    rows: tuple[Row, ...]
    sequences: tuple[Item, ...]
    cut_sequences: int  # longer than max_length
    cut_tokens: int  # lost by that
    dropped: int  # sequences with nothing left to learn


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything training needs of the data."""

    train: Part
    eval: Part | None
    files: tuple[ParsedFile, ...]
    classes: tuple[str, ...]  # of a classification, in the head's order
    warnings: tuple[Finding, ...]
    descriptions: tuple[str, ...] = ()  # digests of what describes the files

    @property
    def digest(self) -> str:
        """Digests of the files, in order."""
        return "+".join([*(parsed.file.digest for parsed in self.files), *self.descriptions])


def prepare(config: DataConfig, template: Template) -> Prepared:
    """Read and check the data of a run. Nothing else has been done when this fails.

    Raises:
        DataError: with every fault, each with file and line.
    """
    findings = Findings(config.skip_bad_rows)
    paths = [config.train_path, *([] if config.eval_path is None else [config.eval_path])]
    sides = [_read_side(path, config, findings, is_eval=index > 0) for index, path in enumerate(paths)]
    files = [parsed for side in sides for parsed in side]
    if config.task in WRITING:
        for parsed in files:
            _check_template(parsed, template, findings)
    train_rows = _rows(sides[0])
    eval_rows = _rows(sides[1]) if config.eval_path is not None else ()
    classes = _classes(train_rows, eval_rows, config, findings)
    _check_scores([*train_rows, *eval_rows], findings)
    _check_duplicates(train_rows, findings)
    _check_overlap(train_rows, eval_rows, findings)
    findings.raise_any()
    eval_rows = tuple(row for row in eval_rows if not findings.is_bad(row.origin))
    if config.eval_path is None and config.eval_split > 0:
        train_rows, eval_rows = hold_out(train_rows, config.eval_split, config.seed)
    train = _part(train_rows, template, classes, config.max_length, findings)
    held_out = _part(eval_rows, template, classes, config.max_length, findings) if eval_rows else None
    findings.raise_any()
    findings.tell_skipped()
    for part, path in ((train, paths[0]), (held_out, paths[-1])):
        if part is not None and not part.sequences:
            findings.fault(
                path, 0, f"no row is left to learn from within max_length {config.max_length}: raise it"
            )
    if config.task in WRITING:
        _check_ends(train, template, paths[0], findings)
    findings.raise_any()
    described = tuple(digest for path in paths if (digest := description_digest(path)) is not None)
    return Prepared(train, held_out, tuple(files), classes, tuple(findings.warnings), described)


def _read_side(path: Path, config: DataConfig, findings: Findings, *, is_eval: bool) -> list[ParsedFile]:
    """The files that ``path`` stands for, parsed; of each as many rows as its description takes."""
    read = []
    for source in find_sources(path, config.dataset, findings, is_eval=is_eval):
        parsed = _parsed(source, config.task, findings)
        if source.limit is not None and source.limit < len(parsed.rows):
            taken = sorted(random.Random(config.seed).sample(range(len(parsed.rows)), source.limit))
            parsed = replace(parsed, rows=tuple(parsed.rows[index] for index in taken))
        read.append(parsed)
    return read


def _rows(files: Iterable[ParsedFile]) -> tuple[Row, ...]:
    return tuple(row for parsed in files for row in parsed.rows)


def _parsed(source: Source, task: Task, findings: Findings) -> ParsedFile:
    path = source.path
    parsed = parse_file(read_file(path, findings, is_row), source.layout, task, findings)
    if parsed.format is not None and parsed.format.task != task:
        findings.fault(
            path,
            parsed.file.lines[0].number,
            f"these are {parsed.format.name} rows, which --task {parsed.format.task} trains on; this run's "
            f"task is {task}",
        )
        return replace(parsed, rows=())
    for field, count in parsed.ignored.items():
        findings.warn(
            path,
            0,
            f"{field}: not a field of this format, not looked at ({count} rows)",
        )
    for note, count in parsed.notes.counts.items():
        findings.warn(path, 0, f"{note} ({count} times, first on line {parsed.notes.first[note]})")
    return parsed


def _check_template(parsed: ParsedFile, template: Template, findings: Findings) -> None:
    """Tools, names and tool calls that the template drops would never be seen by the model."""
    told: set[str] = set()
    for row in parsed.rows:
        if not isinstance(row, ChatRow | PreferenceRow) or not _says_more(row):
            continue
        try:
            dropped = template.ignores(row)
        except ChatTemplateError:
            continue  # told with its line when the row is encoded
        if dropped is not None and dropped not in told:
            told.add(dropped)
            findings.fault(
                row.origin.path,
                row.origin.line,
                f"{dropped}: this model's chat template has no place for them, so the model would never see "
                f"them (first row of the file that has them)",
            )


def _says_more(row: ChatRow | PreferenceRow) -> bool:
    messages = row.messages if isinstance(row, ChatRow) else (*row.prompt, row.chosen, row.rejected)
    return bool(row.tools) or any("name" in m or "tool_calls" in m for m in messages)


def _classes(
    train: Sequence[Row], held_out: Sequence[Row], config: DataConfig, findings: Findings
) -> tuple[str, ...]:
    """The labels in the order of the head: by number if all are numbers, else by name."""
    labels = {row.label for row in train if isinstance(row, LabelRow)}
    if config.task != "classification" or not labels:
        return ()
    if len(labels) == 1:
        findings.fault(
            config.train_path, 0, f"every row has the label {min(labels)!r}: at least two are needed"
        )
    for row in held_out:
        if isinstance(row, LabelRow) and row.label not in labels:
            where = row.origin
            findings.row_fault(
                where.path, where.line, f"label: {row.label!r} does not occur in the training data", where.row
            )
    numeric = all(label.lstrip("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=int) if numeric else sorted(labels))


def _check_scores(rows: Sequence[Row], findings: Findings) -> None:
    """Cosines to learn and texts to find are two losses, of which a run has one."""
    pairs = [row for row in rows if isinstance(row, ContrastRow)]
    other = next((row for row in pairs if (row.score is None) != (pairs[0].score is None)), None)
    if other is not None:
        kinds = ("with a score", "without") if other.score is not None else ("without a score", "with one")
        findings.fault(
            other.origin.path,
            other.origin.line,
            f"is a pair {kinds[0]}, and the rows before are {kinds[1]}: train on one kind in a run",
        )


def _check_duplicates(rows: Iterable[Row], findings: Findings) -> None:
    first: dict[str, Origin] = {}
    again: list[tuple[Row, Origin]] = []
    for row in rows:
        origin = first.setdefault(content_digest(row), row.origin)
        if origin != row.origin:
            again.append((row, origin))
    for row, origin in again[:MAX_TOLD]:
        place = "" if origin.path == row.origin.path else f" of {origin.path}"
        findings.warn(
            row.origin.path,
            row.origin.line,
            f"is the same row as line {origin.line}{place}, so it counts twice",
        )
    if len(again) > MAX_TOLD:
        findings.warn(
            again[0][0].origin.path, 0, f"{len(again)} rows repeat an earlier one, so they count again"
        )


def _check_overlap(train: Iterable[Row], held_out: Iterable[Row], findings: Findings) -> None:
    seen = {content_digest(row): row.origin for row in train}
    for row in held_out:
        other = seen.get(content_digest(row))
        if other is not None:
            findings.row_fault(
                row.origin.path,
                row.origin.line,
                f"is also at {other.path}:{other.line}: an evaluation on training rows measures nothing; "
                f"remove it from one of the files",
                row.origin.row,
            )


def _part(
    rows: Sequence[Row], template: Template, classes: Sequence[str], max_length: int, findings: Findings
) -> Part:
    cutter = Cutter(max_length, findings)
    encoder = Encoder(template, classes, max_length)
    sequences: list[Item] = []
    kept_rows: list[Row] = []
    for row in rows:
        try:
            encoded = encoder.encode(row)
        except (ChatTemplateError, UnicodeError) as error:
            findings.row_fault(row.origin.path, row.origin.line, str(error), row.origin.row)
            continue
        kept_rows.append(row)
        sequences += [kept for item in encoded if (kept := cutter.cut(item)) is not None]
    cutter.tell_rest()
    if encoder.without_lead is not None:
        path, count = encoder.without_lead.path, encoder.leads_dropped
        findings.warn(
            path, 0, f"first turns of the assistant dropped, which the template refuses ({count} rows)"
        )
    return Part(tuple(kept_rows), tuple(sequences), cutter.count, cutter.tokens, cutter.dropped)


def _check_ends(train: Part, template: Template, path: Path, findings: Findings) -> None:
    """An adapter that never learns the end of a turn would never stop."""
    answers = [
        i.chosen_ids[-1:] if isinstance(i, EncodedPair) else i.labels
        for i in train.sequences
        if isinstance(i, Encoded | EncodedPair)
    ]
    if answers and not any(token in template.eos_ids for answer in answers for token in answer):
        findings.fault(path, 0, "every answer is cut before its end, so no end is learned: raise max_length")
