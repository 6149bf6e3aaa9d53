"""Grades beside the losses: in events, at checkpoints, in the model's card and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from manylora.adapters.registry.tuning.leases import Said
from manylora.adapters.training.session.folder import Folder
from manylora.server.jobs.folder import JobFolder
from manylora.server.jobs.grading import Grades
from manylora.server.jobs.results import at

_HEAD = ("step", "training loss", "validation loss", "base", "trained", "rows graded")
_CARD, _REPORT = "\n## Grades\n", "<h2>Grades</h2>"


def events_of(grades: Grades, steps: Sequence[Mapping[str, Any]]) -> list[Said]:
    """What is told of grades, beside what was measured at their steps."""
    if grades["fault"] is not None:
        return [Said(f"There are no grades: {grades['fault']}", "warn")]
    said = []
    for each in grades["steps"]:
        where = f"the result (step {each['step']})" if each["published"] else f"step {each['step']}"
        figures = [f"{name} {_figure(each[name])}" for name in ("base", "trained")]
        loss = at(steps, each["step"])
        beside = [f"{_name(key)} {loss[key]:.4f}" for key in ("train_loss", "valid_loss") if key in loss]
        message = f"Grade '{grades['grader']}' of {where}: {', '.join([*figures, *beside])}"
        said.append(Said(message, "warn" if each["errors"] else "info", data=_beside(each, loss)))
    return said


def with_grades(measured: Mapping[str, Any], grades: Grades | None, step: int) -> dict[str, Any]:
    """What was measured at a checkpoint, and its grades."""
    steps = [] if grades is None else grades["steps"]
    found = next((each for each in steps if each["step"] == step and not each["published"]), None)
    if found is None:
        return dict(measured)
    return {**measured, "base_grade": found["base"], "trained_grade": found["trained"]}


def write_grades(folder: JobFolder, grades: Grades, steps: Sequence[Mapping[str, Any]]) -> None:
    """Add grades to the model's card and to the report, where they are not there yet."""
    run = Folder(folder.run)
    rows = [_row(each, at(steps, each["step"])) for each in grades["steps"]]
    _add(run.finished / "README.md", _CARD, _card(grades, rows), before="\n## Data\n")
    _add(run.root / "report.html", _REPORT, _report(grades, rows), before="<h2>Curves</h2>")


def _add(path: Path, mark: str, section: str, *, before: str) -> None:
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    if mark not in text and before in text:
        path.write_text(text.replace(before, mark + section + before, 1), encoding="utf-8")


def _card(grades: Grades, rows: Sequence[Sequence[str]]) -> str:
    if grades["fault"] is not None:
        return f"\nThere are none: {grades['fault']}.\n"
    table = [_HEAD, ["---"] * len(_HEAD), *rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"\n{escape(_intro(grades), quote=False)}\n\n{lines}\n"


def _report(grades: Grades, rows: Sequence[Sequence[str]]) -> str:
    if grades["fault"] is not None:
        return f"<p>There are none: {escape(grades['fault'])}.</p>"
    answers = [[str(each["line"]), _figure(each["base"]), _figure(each["trained"])]
               for each in grades["answers"]]  # fmt: skip
    return (
        f"<p>{escape(_intro(grades), quote=False)}</p>{_table(_HEAD, rows)}"
        f"<h3>By row, of the result</h3>{_table(('line', 'base', 'trained'), answers)}"
    )


def _intro(grades: Grades) -> str:
    name = " ".join(grades["grader"].split())
    return f"The grader '{name}' on {grades['rows']} rows that base and adapter answered, means."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _row(each: Mapping[str, Any], loss: Mapping[str, Any]) -> list[str]:
    step = f"{each['step']}, the result" if each["published"] else str(each["step"])
    losses = [_figure(loss.get(key)) for key in ("train_loss", "valid_loss")]
    return [step, *losses, _figure(each["base"]), _figure(each["trained"]), str(each["graded"])]


def _beside(each: Mapping[str, Any], loss: Mapping[str, Any]) -> dict[str, Any]:
    losses = {key: loss[key] for key in ("train_loss", "valid_loss") if key in loss}
    grades = {"base_grade": each["base"], "trained_grade": each["trained"]}
    return {key: each[key] for key in ("step", "published", "graded", "errors")} | grades | losses


def _name(key: str) -> str:
    return {"train_loss": "training loss", "valid_loss": "validation loss"}[key]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
