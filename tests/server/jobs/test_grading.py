"""Grading of a job's samples: once, as long as the job is the server's own, and not for ever."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.registry.tuning.leases import LeaseLost
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import JobState, Need
from manylora.adapters.training.session.folder import Folder
from manylora.server.jobs import grading
from manylora.server.jobs.folder import TRAINING, VALIDATION, JobFolder
from manylora.server.jobs.grades_shown import events_of, with_grades, write_grades
from manylora.server.jobs.grading import Grades, grades_of
from tests.support.training_data import chat, write

JUDGE = {
    "type": "score_model",
    "name": "judge | <i>\n",
    "model": "any",
    "input": [{"role": "user", "content": "{{sample.output_text}} for {{item.reference_answer}}"}],
}


@dataclass
class Told:
    """What a route answered."""

    status: int
    body: Any


@dataclass
class Judge:
    """Says how many characters it was shown, or what it is told to say."""

    status: int = 200
    says: str | None = None
    seconds: float = 0.0
    asked: list[str] = field(default_factory=list)

    async def __call__(self, path: str, body: Mapping[str, Any]) -> Told:
        assert path == "/v1/chat/completions"
        await asyncio.sleep(self.seconds)
        text = body["messages"][0]["content"]
        self.asked.append(text)
        if self.status != 200:
            return Told(self.status, {"error": {"message": "no", "param": "model"}})
        said = json.dumps({"result": len(text) / 100}) if self.says is None else self.says
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return Told(200, {"model": "any", "usage": usage, "choices": [{"message": {"content": said}}]})


@dataclass
class Leases:
    """Counts how often the lease was renewed; it is lost at ``until``."""

    until: int = 10**9
    renewed: int = 0

    def renew(self, _job: str) -> None:
        self.renewed += 1
        if self.renewed >= self.until:
            raise LeaseLost("it is another's")


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    found = JobFolder(tmp_path)
    found.run.mkdir()
    write(found.data(TRAINING), [chat("say 0", "0!"), {**chat("say 1", "1!"), "reference_answer": "own"}])
    lines = [
        {
            "kind": "sample",
            "step": step,
            "line": line,
            "expected": f"{line - 1}!",
            "base": "b",
            "adapter": "a" * step,
        }
        for step in (2, 4)
        for line in (1, 2)
    ]
    lines += [{**line, "published": True} for line in lines[2:]]
    Folder(found.run).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def grades(folder: JobFolder, ask: Judge, leases: Leases | None = None, grader: Any = JUDGE) -> Grades:
    job = JobRecord("ftjob-1", time.time(), JobState.RUNNING, Need.PUBLICATION, "b", "f", {"grader": grader})
    found = asyncio.run(grades_of(job, folder, leases or Leases(), ask, "base"))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_each_answer_is_judged_once(folder: JobFolder) -> None:
    """The same answer to the same row, also where publishing begins anew."""
    ask = Judge()
    found = grades(folder, ask)
    assert sorted(ask.asked) == [
        "aa for 0!",
        "aa for own",
        "aaaa for 0!",
        "aaaa for own",
        "b for 0!",
        "b for own",
    ]
    assert [(s["step"], s["published"], s["base"], s["trained"]) for s in found["steps"]] == [
        (2, False, pytest.approx(0.085), pytest.approx(0.095)),
        (4, False, pytest.approx(0.085), pytest.approx(0.115)),
        (4, True, pytest.approx(0.085), pytest.approx(0.115)),
    ]
    assert grades(folder, ask) == found
    assert len(ask.asked) == 6


def test_rows_are_of_the_validation_file_where_there_is_one(folder: JobFolder) -> None:
    write(folder.data(VALIDATION), [chat("say 5", "5!"), {"reference_answer": "other"}])
    ask = Judge()
    grades(folder, ask)
    assert "b for other" in ask.asked


def test_what_has_no_grade_is_left_out_and_counted(folder: JobFolder) -> None:
    found = grades(folder, Judge(says="lovely"))
    last = found["steps"][-1]
    assert (last["base"], last["trained"], last["graded"]) == (None, None, 0)
    assert last["errors"] == {"model_grader_parse_error": 4}
    said = events_of(found, [])
    assert [each.level for each in said] == ["warn"] * 3
    assert with_grades({"step": 2}, found, 2) == {"step": 2, "base_grade": None, "trained_grade": None}
    assert with_grades({"step": 3}, found, 3) == {"step": 3}


def test_a_busy_judge_is_asked_again(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "AGAIN", 0.0)
    ask = Judge(status=429)
    found = grades(folder, ask)
    assert len(ask.asked) == 6 * 4
    assert found["steps"][0]["errors"] == {"model_grader_server_error": 4}


@pytest.mark.parametrize(("judge", "fault"), [
    (Judge(status=404), "the grader can't be used: model: no"),
    (Judge(seconds=60), "grading took more than 0 seconds"),
])  # fmt: skip
def test_a_grader_that_fails_fails_no_job(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, judge: Judge, fault: str
) -> None:
    monkeypatch.setattr(grading, "SECONDS", 0.05)
    found = grades(folder, judge)
    assert found["fault"] == fault
    assert [(each.level, each.message) for each in events_of(found, [])] == [
        ("warn", f"There are no grades: {fault}")
    ]


def test_without_answers_there_is_nothing_to_grade(folder: JobFolder) -> None:
    Folder(folder.run).metrics.write_text("")
    assert grades(folder, Judge())["fault"] == "no row asks anything, or leaves room for an answer"


def test_nor_does_a_fault_of_ours(folder: JobFolder) -> None:
    folder.data(TRAINING).unlink()
    assert grades(folder, Judge())["fault"] == "the grader met an unexpected fault"


def test_the_lease_is_renewed_meanwhile(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "RENEW_EVERY", 0.01)
    leases = Leases()
    grades(folder, Judge(seconds=0.1), leases)
    assert leases.renewed >= 3
    (folder.run / "grades.json").unlink()
    with pytest.raises(LeaseLost):
        grades(folder, Judge(seconds=60), Leases(until=2))
    assert not (folder.run / "grades.json").exists()


def test_texts_of_strangers_are_shown_as_texts(folder: JobFolder) -> None:
    """And what is written twice stands there once."""
    found = grades(folder, Judge())
    card = Folder(folder.run).finished / "README.md"
    card.parent.mkdir()
    card.write_text("# It\n\n## Data\n")
    (folder.run / "report.html").write_text("<h2>Curves</h2>")
    for _ in range(2):
        write_grades(folder, found, [{"step": 2, "train_loss": 0.5}])
    report = (folder.run / "report.html").read_text()
    assert "<i>" not in report + card.read_text()
    assert report.count("<h2>Grades</h2>") == card.read_text().count("## Grades") == 1
    assert "The grader 'judge | &lt;i&gt;' on 2 rows" in card.read_text()
    assert "| 2 | 0.500 |  | 0.085 | 0.095 | 2 |" in card.read_text()
