"""Several jobs in training at once in one worker: each is what it is alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from manylora.adapters.registry.tuning.states import JobState, Need
from manylora.server.jobs.worker.trainings import Trainings
from tests.support.joint_passes import joint_passes
from tests.support.training_data import chat
from tests.support.training_runs import PAIRS
from tests.support.tuning import ROWS
from tests.support.tuning_workers import STEPS, Setup
from tests.support.waiting import PATIENCE, wait_until

CLOSE = 1e-3  # of losses, as a share
OTHER = [chat(f"what about {n}?", f"no, not {n}") for n in range(24)]
KINDS: list[dict[str, Any]] = [{}, {"rows": OTHER, "seed": 8, "lora": {"r": 8}}]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return joint_passes(monkeypatch)


@pytest.fixture
def alone(setup: Setup) -> list[list[tuple[int, float]]]:
    """The losses of a job of each kind that was trained alone."""
    jobs = [setup.add(**kind) for kind in KINDS]
    setup.worker("calm").run()
    assert all(setup.is_trained(job) for job in jobs)
    return [setup.losses(job) for job in jobs]


def close(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=CLOSE)


def begun(setup: Setup, job_id: str) -> Callable[[], bool]:
    return lambda: setup.job(job_id).status is JobState.RUNNING


@pytest.mark.slow
@pytest.mark.sweep
def test_samples_and_early_ends_go_with_others(
    setup: Setup, passes: list[int], at_step: Any, alone: list[Any]
) -> None:
    """Each job's samples are its own; one that is stopped early leaves the other alone."""
    numbers = {"n_epochs": 40, "batch_size": 4, "learning_rate_multiplier": 100.0}
    first = setup.add(**KINDS[0], samples=2, sample_tokens=4)
    later: list[str] = []

    def another() -> None:
        stops = {"early_stopping_patience": 2, "hyperparameters": numbers, "seed": 8}
        later.append(setup.add(ROWS[:12], validation=ROWS[12:], samples=1, sample_tokens=4, **stops))
        wait_until(begun(setup, later[0]))

    at_step(2, another)
    setup.worker("one", at_once=2).run()
    assert setup.is_trained(first)
    assert setup.is_trained(later[0])
    assert passes.count(2) >= 4
    close(setup.losses(first), alone[0])
    assert len(setup.losses(later[0])) < 120
    for job, rows in ((first, 2), (later[0], 1)):
        told = setup.registry.tuning_events.since(job, 0, 999)
        samples = [event.data for event in told if event.kind == "sample"]
        assert {each["line"] for each in samples} == set(range(1, rows + 1))
        assert sum(each["published"] for each in samples) == rows
    assert [each["step"] for each in samples[-1:]] == [setup.job(later[0]).found["kept_step"]]


@pytest.mark.sweep
@pytest.mark.slow
def test_each_curve_is_that_of_the_job_alone(
    setup: Setup, at_step: Any, passes: list[int], alone: list[Any]
) -> None:
    """The second comes when the first is in training; it is paused, and goes on beside a third."""
    first = setup.add(**KINDS[0])
    later: list[str] = []

    def another() -> None:
        later.append(setup.add(**KINDS[1]))
        wait_until(begun(setup, later[0]))
        at_step(4, lambda: setup.registry.tuning.pause(later[0]), of=8)

    at_step(2, another)
    setup.worker("one", at_once=2).run()
    assert setup.is_trained(first)
    (second,) = later
    assert setup.job(second).status is JobState.PAUSED
    assert len(setup.losses(second)) == 4
    assert passes.count(2) >= 4
    close(setup.losses(first), alone[0])
    third = setup.add(**KINDS[0])
    setup.registry.tuning.resume(second)
    setup.worker("two", at_once=2).run()
    assert setup.is_trained(second)
    assert setup.is_trained(third)
    close(setup.losses(second), alone[1])
    close(setup.losses(third), alone[0])
    assert setup.folder(second).exported() == [6, 12]
    tokens = {setup.job(job).found["trained_tokens"] for job in (first, third)}
    assert len(tokens) == 1


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("end", ["cancelled", "failed", "given up"])
def test_one_that_ends_leaves_the_others_alone(
    setup: Setup, at_step: Any, alone: list[Any], end: str
) -> None:
    first = setup.add(**KINDS[0])
    lora = {"r": 8, **({"target_modules": ["no_such_module"]} if end == "failed" else {})}
    later: list[str] = []

    def gone() -> None:
        if end == "cancelled":
            setup.registry.tuning.cancel(later[0])
        else:  # another has its lease
            setup.registry.tuning_leases("one").release(later[0])
            assert setup.registry.tuning_leases("other").take([Need.TRAINING], "b") is not None

    def another() -> None:
        later.append(setup.add(**{**KINDS[1], "lora": lora}))
        wait_until(begun(setup, later[0]))
        if end != "failed":
            at_step(4, gone, of=8)

    at_step(2, another)
    setup.worker("one", at_once=2).run()
    assert setup.is_trained(first)
    close(setup.losses(first), alone[0])
    job = setup.job(later[0])
    states = {"cancelled": JobState.CANCELLED, "failed": JobState.FAILED, "given up": JobState.RUNNING}
    assert job.status is states[end]
    assert job.worker == ("other" if end == "given up" else None)


@pytest.mark.slow
@pytest.mark.sweep
def test_a_worker_that_is_to_end_leaves_all_of_them_to_others(
    setup: Setup, at_step: Any, alone: list[Any]
) -> None:
    jobs, worker = [setup.add(**kind) for kind in KINDS], setup.worker("one", at_once=2)

    def end() -> None:
        wait_until(begun(setup, jobs[1]))
        worker.end()

    at_step(2, end)
    worker.run()
    for job in map(setup.job, jobs):
        assert (job.status, job.needs, job.worker, job.takes) == (JobState.RUNNING, Need.TRAINING, None, 0)
    setup.worker("two", at_once=2).run()
    for job_id, expected in zip(jobs, alone, strict=True):
        assert setup.is_trained(job_id)
        close(setup.losses(job_id), expected)
        assert setup.messages(job_id).count("Fine-tuning job started") == 1


@pytest.mark.slow
@pytest.mark.sweep
def test_preferences_take_turns_with_the_others(setup: Setup, passes: list[int], alone: list[Any]) -> None:
    """They are bit by bit what they are alone; so is one that then has no company in the common pass."""
    numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 50.0, "beta": 0.1}
    kind = {"rows": PAIRS, "method": "dpo", "hyperparameters": numbers}
    pairs = setup.add(**kind)
    setup.worker("calm").run()
    again, answers = setup.add(**kind), setup.add(**KINDS[0])
    setup.worker("one", at_once=2).run()
    assert setup.losses(again) == setup.losses(pairs)
    assert setup.losses(answers) == alone[0]
    assert len(passes) > STEPS
    assert max(passes) == 0


def assert_ended(end: threading.Event) -> None:
    assert end.wait(PATIENCE)


class Held:
    """Trainings whose work lasts until it is let go."""

    def __init__(self, at_once: int, shares: Callable[[Any], bool]) -> None:
        self.trainings = Trainings(at_once, shares)
        self._ends: dict[str, threading.Event] = {}

    def begin(self, job: Any) -> None:
        end = self._ends[job.id] = threading.Event()
        self.trainings.begin(job, lambda: assert_ended(end))

    def end(self, job: Any) -> None:
        self._ends.pop(job.id).set()
        wait_until(lambda: f"training {job.id}" not in {thread.name for thread in threading.enumerate()})

    def close(self) -> None:
        for end in self._ends.values():
            end.set()
        self.trainings.join()


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held(2, lambda job: job.asked["init"] is None)
    yield made
    made.close()


@pytest.fixture
def waiting(setup: Setup) -> Callable[..., Any]:
    def add(*, takes: int = 0, **asked: Any) -> Any:
        job_id = setup.add(**asked)
        leases = setup.registry.tuning_leases("before")
        leases.take([Need.VALIDATION], "b")
        leases.move(job_id, JobState.QUEUED, needs=Need.TRAINING)
        for _ in range(takes):
            leases.take([Need.TRAINING], "b")
            leases.release_dead()
        return setup.job(job_id)

    return add


def test_what_can_not_share_waits_and_is_not_overtaken(setup: Setup, held: Held, waiting: Any) -> None:
    first, second, third = waiting(), waiting(init="some adapter"), waiting()
    leases = setup.registry.tuning_leases("one")

    def take() -> str | None:
        taken = leases.take([Need.TRAINING], "b", fits=held.trainings.fits)
        if taken is not None:
            held.begin(taken)
        return None if taken is None else taken.id

    assert take() == first.id
    assert held.trainings.has_room
    assert take() is None  # the second is next, and can't
    held.end(first)
    assert take() == second.id
    assert take() is None  # nor can anything join it
    held.end(second)
    assert take() == third.id


def test_no_more_than_there_is_room_for(held: Held, waiting: Any) -> None:
    jobs = [waiting() for _ in range(3)]
    for job in jobs[:2]:
        assert held.trainings.has_room
        held.begin(job)
    assert not held.trainings.has_room
    held.end(jobs[0])
    assert held.trainings.fits(jobs[2])
    assert not held.trainings.fits(jobs[1])  # it is being trained here


def test_what_may_have_killed_a_worker_is_trained_alone(setup: Setup, held: Held, waiting: Any) -> None:
    deadly, sound = waiting(takes=1), waiting()
    assert deadly.takes == 1
    held.begin(sound)
    assert not held.trainings.fits(deadly)
    held.end(sound)
    leases = setup.registry.tuning_leases("one")
    taken = leases.take([Need.TRAINING], "b", fits=held.trainings.fits)
    assert taken is not None
    assert taken.id == deadly.id
    held.begin(taken)
    assert not held.trainings.fits(sound)


def test_a_worker_for_one_job_takes_one(waiting: Any) -> None:
    held = Held(1, lambda _: True)
    held.begin(waiting())
    assert not held.trainings.has_room
    held.close()
