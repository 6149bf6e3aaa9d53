"""A worker in this process: pauses, ends and deaths in the middle of a job's steps."""

from __future__ import annotations

from typing import Any

import pytest

from manylora.adapters.registry.tuning.states import JobState, Need
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import read_metrics
from tests.support.training_data import chat
from tests.support.training_runs import PAIRS
from tests.support.tuning import ROWS
from tests.support.tuning_workers import STEPS, Setup

pytestmark = pytest.mark.slow


@pytest.mark.sweep
def test_a_paused_job_goes_on_to_the_same_end(setup: Setup, at_step: Any) -> None:
    """Status, checkpoint, and bit by bit the losses of a job that was never paused."""
    whole, paused = setup.add(), setup.add()
    calm = setup.worker()
    calm.leases.take([Need.VALIDATION], "b")  # the first alone
    calm.leases.release(whole)
    setup.registry.tuning.pause(paused)
    calm.run()
    assert setup.is_trained(whole)
    assert [step for step, _ in setup.losses(whole)] == list(range(1, STEPS + 1))
    setup.registry.tuning.resume(paused)
    at_step(5, lambda: setup.registry.tuning.pause(paused))
    setup.worker("two").run()
    job = setup.job(paused)
    assert (job.status, job.paused_from, job.worker) == (JobState.PAUSED, JobState.RUNNING, None)
    assert [step for step, _ in setup.losses(paused)] == [1, 2, 3, 4, 5]
    assert Folder(setup.folder(paused).run).last_checkpoint() is not None
    assert setup.registry.tuning.resume(paused).status is JobState.RUNNING
    setup.worker("three").run()
    assert setup.is_trained(paused)
    assert setup.losses(paused) == setup.losses(whole)
    assert setup.folder(paused).exported() == [6, 12]
    assert job.found["progress"]["step"] == 5
    assert setup.job(paused).found["trained_tokens"] == setup.job(whole).found["trained_tokens"]


@pytest.mark.sweep
def test_a_worker_that_is_to_end_leaves_the_job_to_others(setup: Setup, at_step: Any) -> None:
    job_id, first = setup.add(), setup.worker()
    at_step(3, first.end)
    first.run()
    job = setup.job(job_id)
    assert (job.status, job.needs, job.worker, job.takes) == (JobState.RUNNING, Need.TRAINING, None, 0)
    setup.worker("two").run()
    assert setup.is_trained(job_id)
    assert [step for step, _ in setup.losses(job_id)] == list(range(1, STEPS + 1))


def test_a_cancelled_job_is_left_at_once(setup: Setup, at_step: Any) -> None:
    job_id, other = setup.add(), setup.add()
    at_step(3, lambda: setup.registry.tuning.cancel(job_id))
    setup.worker().run()
    assert setup.job(job_id).status is JobState.CANCELLED
    assert len(setup.losses(job_id)) == 3
    assert setup.messages(job_id)[-1] == "The job has been cancelled"
    assert setup.is_trained(other)


@pytest.mark.sweep
def test_one_that_was_given_up_changes_nothing(setup: Setup, at_step: Any) -> None:
    """Its lease is another's while it is still at it."""
    job_id = setup.add()

    def taken() -> None:
        setup.registry.tuning_leases("one").release_dead()
        assert setup.registry.tuning_leases("other").take([Need.TRAINING], "b") is not None

    at_step(3, taken)
    setup.worker().run()
    job = setup.job(job_id)
    assert (job.worker, job.status) == ("other", JobState.RUNNING)
    assert not any(message.startswith("Step 3/") for message in setup.messages(job_id))


@pytest.mark.sweep
def test_what_fails_says_so_without_paths(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = setup.add(lora={"r": 4, "target_modules": ["no_such_module"]})
    setup.worker().run()
    job = setup.job(job_id)
    assert job.status is JobState.FAILED
    told = " ".join(setup.messages(job_id))
    assert "no_such_module" in told
    assert str(setup.place.data_dir) not in told + str(job.found)


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        (ROWS[:5], 0, "Training file has 5 example(s), but must have at least 10 examples"),
        ([*ROWS[:9], "{"], 10, "line 10: is not JSON"),
        ([b"\x1f\x8b\x08\x00" + b"x" * 99], 0, "The file is not text: upload JSON Lines"),
        ([b"PAR1" + b"x" * 99], 0, "The file is not text: upload JSON Lines"),
        ([chat("a", "b" * 10_000)] * 12, 0, "every answer is cut before its end"),
        (PAIRS, 1, "dpo"),
    ],
)
def test_faults_of_files_are_told_by_line(setup: Setup, rows: Any, line: int, message: str) -> None:
    job_id = setup.add(rows)
    worker = setup.worker()
    job = worker.leases.take([Need.VALIDATION], "b")
    assert job is not None
    worker.work_on(job, worker.validate)
    failed = setup.job(job_id)
    assert failed.status is JobState.FAILED
    errors = [e for e in setup.registry.tuning_events.since(job_id, 0, 99) if e.level == "error"]
    assert message in errors[0].message
    assert errors[0].data.get("line", 0) == line
    assert failed.found["error"]["param"] == "training_file"
    assert str(setup.place.data_dir) not in str([e.message for e in errors])
    assert not setup.folder(job_id).root.exists()


@pytest.mark.sweep
def test_with_a_validation_file_the_best_step_is_kept(setup: Setup) -> None:
    held_out = [chat(f"say {n}", f"{n}!") for n in range(100, 106)]
    job_id = setup.add(validation=held_out)
    setup.worker().run()
    assert setup.is_trained(job_id)
    job = setup.job(job_id)
    assert job.found["validation"]
    lines = read_metrics(Folder(setup.folder(job_id).run).metrics)
    assert sum("eval_loss" in line for line in lines) > 2
