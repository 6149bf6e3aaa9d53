"""What a job's grader finds of its samples: asked by the server that publishes, which has the judges.

A worker may be anywhere and asks no server: it leaves what base and adapter answered in the job's directory.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from manylora.adapters.grading.grade import Ask, Grade, grade
from manylora.adapters.grading.graders import Grader, GraderFault, parse_grader
from manylora.adapters.registry.tuning.leases import TuningLeases
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import read_metrics
from manylora.server.jobs.folder import TRAINING, VALIDATION, JobFolder

logger = logging.getLogger(__name__)

SECONDS: Final = 600.0  # that grading one job may take; others wait to be published meanwhile
_AT_ONCE: Final = 4  # judges that are asked
_TRIES: Final = 4  # of a judge that can't answer for now
AGAIN: Final = 1.0  # seconds, at first
RENEW_EVERY: Final = 5.0  # seconds
_FULL: Final = "model_grader_server_error"

Grades = dict[str, Any]
"""JSON: grader (its name), rows (how many), steps (each with step, published, base, trained, graded, errors),
answers (of what is published: line, base, trained), fault (why there are no grades)."""


async def grades_of(
    job: JobRecord, folder: JobFolder, leases: TuningLeases, ask: Ask, base: str
) -> Grades | None:
    """What the job's grader finds, once: it is kept in the job's directory. None: the job names no grader.

    Args:
        job: that this server has the lease of, which is renewed.
        folder: with what was answered.
        leases: of this server.
        ask: asks the server's routes as the job's owner.
        base: the model whose embeddings are compared.

    Raises:
        LeaseLost: the job is not this server's any more.
        StoreError: the registry can't be reached.
    """
    described = job.asked.get("grader")
    if described is None:
        return None
    kept = folder.run / "grades.json"
    if kept.is_file():
        known: Grades = json.loads(kept.read_text(encoding="utf-8"))
        return known
    grader = parse_grader(described)
    work = asyncio.create_task(_graded(grader, folder, ask, base))
    try:
        while not (await asyncio.wait([work], timeout=RENEW_EVERY))[0]:
            await asyncio.to_thread(leases.renew, job.id)
        found = _found(work, grader)
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    await asyncio.to_thread(_keep, kept, found)
    return found


def _found(work: asyncio.Task[Grades], grader: Grader) -> Grades:
    try:
        return work.result()
    except Exception:  # what was trained is published all the same
        logger.exception("a job's grader met an unexpected fault")
        return {**_none(grader), "fault": "the grader met an unexpected fault"}


def _none(grader: Grader) -> Grades:
    return {"grader": grader.name, "rows": 0, "steps": [], "answers": [], "fault": None}


async def _graded(grader: Grader, folder: JobFolder, ask: Ask, base: str) -> Grades:
    found = _none(grader)
    lines, rows = await asyncio.to_thread(_answered, folder)
    if not lines:
        return {**found, "fault": "no row asks anything, or leaves room for an answer"}
    try:
        async with asyncio.timeout(SECONDS):
            grades = await _grades(grader, lines, rows, ask, base)
    except GraderFault as fault:
        return {**found, "fault": f"the grader can't be used: {fault}"}
    except TimeoutError:
        return {**found, "fault": f"grading took more than {SECONDS:.0f} seconds"}
    for step, published in dict.fromkeys((line["step"], _published(line)) for line in lines):
        own = [line for line in lines if (line["step"], _published(line)) == (step, published)]
        sides = {
            name: [grades[line["line"], line[key]] for line in own]
            for name, key in (("base", "base"), ("trained", "adapter"))
        }
        found["steps"].append({"step": step, "published": published, **_means(sides)})
        if published:
            found["rows"] = len(own)
            found["answers"] = [
                {"line": line["line"], "base": _reward(first), "trained": _reward(second)}
                for line, first, second in zip(own, sides["base"], sides["trained"], strict=True)
            ]
    return found


async def _grades(
    grader: Grader,
    lines: Iterable[Mapping[str, Any]],
    rows: Mapping[int, Mapping[str, Any]],
    ask: Ask,
    base: str,
) -> dict[tuple[int, str], Grade]:
    """By row and answer: the same answer to the same row is graded once."""
    items = {line["line"]: {"reference_answer": line["expected"], **rows[line["line"]]} for line in lines}
    wanted = dict.fromkeys((line["line"], line[key]) for line in lines for key in ("base", "adapter"))
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(row: int, text: str) -> Grade:
        async with limit:
            return await _patient(grader, text, items[row], ask, base)

    tasks = [asyncio.create_task(one(*each)) for each in wanted]
    try:
        return dict(zip(wanted, await asyncio.gather(*tasks), strict=True))
    finally:
        for task in tasks:
            task.cancel()


async def _patient(grader: Grader, text: str, item: Any, ask: Ask, base: str) -> Grade:
    """A grade; of a judge that is busy after some waiting."""
    found = await grade(grader, text, item, ask, base=base)
    for attempt in range(_TRIES - 1):
        if _FULL not in _errors(found):
            break
        await asyncio.sleep(AGAIN * 2**attempt)
        found = await grade(grader, text, item, ask, base=base)
    return found


def _means(sides: Mapping[str, Sequence[Grade]]) -> dict[str, Any]:
    """Means over the rows of which both answers have a grade, and what went wrong with the others."""
    both = zip(*sides.values(), strict=True)
    whole = [pair for pair in both if not any(_errors(each) for each in pair)]
    means = {
        name: sum(pair[index].reward for pair in whole) / len(whole) if whole else None
        for index, name in enumerate(sides)
    }
    errors = Counter(error for side in sides.values() for each in side for error in set(_errors(each)))
    return {**means, "graded": len(whole), "errors": dict(errors)}


def _errors(found: Grade) -> list[str]:
    parts = [found, *found.parts.values()]
    return [part.error for part in parts if part.error is not None]


def _reward(found: Grade) -> float | None:
    return None if _errors(found) else found.reward


def _published(line: Mapping[str, Any]) -> bool:
    return bool(line.get("published"))


def _answered(folder: JobFolder) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """The samples of a job's run, and the rows that they are of, by line."""
    lines = [line for line in read_metrics(Folder(folder.run).metrics) if line["kind"] == "sample"]
    path = folder.data(VALIDATION) if folder.data(VALIDATION).exists() else folder.data(TRAINING)
    texts, wanted = path.read_bytes().split(b"\n"), {line["line"] for line in lines}
    return lines, {number: json.loads(texts[number - 1]) for number in wanted}


def _keep(path: Path, found: Grades) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.rename(path)
