"""Fine-tuning jobs in the registry: states that only go forward, and leases."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tuning import leases as leases_module
from manylora.adapters.registry.tuning.leases import MAX_TAKES, LeaseLost, Said, TuningLeases
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import (
    ENDED,
    OPEN,
    TRANSITIONS,
    Actor,
    JobState,
    Need,
    NotAllowed,
    check,
)
from manylora.adapters.registry.whose import Whose

S = JobState
ORDER = [S.VALIDATING, S.QUEUED, S.RUNNING, S.SUCCEEDED]
NUMBERS = itertools.count(1)
WORK = (Need.VALIDATION, Need.TRAINING)


def add(registry: Registry, **changes: Any) -> str:
    values: dict[str, Any] = {
        "id": f"ftjob-{next(NUMBERS)}",
        "created": time.time(),
        "status": S.QUEUED,
        "needs": Need.TRAINING,
        "base": "b",
        "training_file": "file-1",
        "asked": {"metadata": {}},
    }
    record = JobRecord(**{**values, **changes})
    registry.tuning.add(record)
    return record.id


@pytest.fixture
def worker(registry: Registry) -> TuningLeases:
    return registry.tuning_leases("one")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASE_SECONDS", -1.0)


def test_states_only_go_forward() -> None:
    for before, after in TRANSITIONS:
        assert before in OPEN
        if S.PAUSED in (before, after) or after in (S.FAILED, S.CANCELLED):
            continue
        assert ORDER.index(after) == ORDER.index(before) + 1
    assert all(TRANSITIONS[(state, S.CANCELLED)] is Actor.OWNER for state in OPEN)
    for before, after, actor in itertools.product(S, S, Actor):
        allowed = TRANSITIONS.get((before, after)) is actor
        if not allowed:
            with pytest.raises(NotAllowed):
                check(before, after, actor)


@pytest.mark.parametrize("state", [S.VALIDATING, S.QUEUED, S.RUNNING])
def test_a_paused_job_goes_on_from_where_it_was(registry: Registry, state: S) -> None:
    job = add(registry, status=state)
    worker = registry.tuning_leases("one")
    assert registry.tuning.pause(job).status is S.PAUSED
    assert not worker.waiting(WORK, "b")
    with pytest.raises(NotAllowed, match="paused"):
        registry.tuning.pause(job)
    assert registry.tuning.resume(job).status is state
    with pytest.raises(NotAllowed):
        registry.tuning.resume(job)


def test_an_ended_job_is_not_changed(registry: Registry, worker: TuningLeases) -> None:
    job = add(registry)
    assert registry.tuning.cancel(job).status is S.CANCELLED
    for change in (registry.tuning.cancel, registry.tuning.pause, registry.tuning.resume):
        with pytest.raises(NotAllowed, match="cancelled"):
            change(job)
    assert worker.take(WORK, "b") is None


def test_two_workers_never_have_one_job(registry: Registry) -> None:
    ids = {add(registry) for _ in range(12)}
    taken: list[str] = []

    def take_all(name: str) -> None:
        leases = registry.tuning_leases(name)
        while (job := leases.take(WORK, "b")) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=take_all, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


def test_whoever_lost_a_job_changes_nothing(registry: Registry, worker: TuningLeases, hurried: None) -> None:
    job = add(registry)
    other = registry.tuning_leases("two")
    assert worker.take(WORK, "b") is not None
    assert other.take(WORK, "b") is not None  # the lease was over
    changes: list[Callable[[], object]] = [
        lambda: worker.renew(job),
        lambda: worker.tell(job, Said("still there")),
        lambda: worker.move(job, S.RUNNING),
    ]
    for change in changes:
        with pytest.raises(LeaseLost):
            change()
    worker.release(job)
    assert other.move(job, S.RUNNING, found=1).worker == "two"
    assert [event.message for event in registry.tuning_events.since(job, 0, 9)] == [
        f"Created fine-tuning job: {job}"
    ]


def test_a_cancelled_or_paused_job_is_seen_by_its_worker(registry: Registry, worker: TuningLeases) -> None:
    job = add(registry)
    worker.take(WORK, "b")
    worker.move(job, S.RUNNING)
    registry.tuning.pause(job)
    assert worker.renew(job).status is S.PAUSED
    with pytest.raises(NotAllowed):
        worker.move(job, S.RUNNING)
    registry.tuning.resume(job)
    assert worker.renew(job).status is S.RUNNING
    registry.tuning.cancel(job)
    with pytest.raises(LeaseLost):
        worker.renew(job)
    with pytest.raises(LeaseLost):
        worker.move(job, S.SUCCEEDED)


def test_a_job_that_kills_its_workers_fails(registry: Registry, worker: TuningLeases, hurried: None) -> None:
    job, next_one = add(registry), add(registry)
    for _ in range(MAX_TAKES):
        taken = worker.take((Need.TRAINING,), "b")
        assert taken is not None
        assert taken.id == job
        worker.release_dead()
    following = worker.take(WORK, "b")
    assert following is not None
    assert following.id == next_one
    failed = registry.tuning.get(job)
    assert failed is not None
    assert (failed.status, failed.found["error"]["code"]) == (S.FAILED, "worker_died")


def test_progress_forgives_deaths(registry: Registry, worker: TuningLeases) -> None:
    job = add(registry)
    for _ in range(2 * MAX_TAKES):
        assert worker.take(WORK, "b") is not None
        worker.tell(job, got_on=True)
        worker.release_dead()
    for _ in range(2 * MAX_TAKES):  # nor does what was given back count
        assert worker.take(WORK, "b") is not None
        worker.release(job)


def test_the_queue_is_fair_to_tenants(registry: Registry, worker: TuningLeases) -> None:
    """One with many jobs does not keep one with few waiting."""
    many = [add(registry, tenant="many") for _ in range(4)]
    few = add(registry, tenant="few")
    order = []
    while (job := worker.take(WORK, "b")) is not None:
        order.append(job.id)
        worker.move(job.id, S.RUNNING)
        worker.move(job.id, S.SUCCEEDED)
    assert order == [many[0], few, *many[1:]]


def test_a_tenant_has_so_many_jobs_at_once(registry: Registry, worker: TuningLeases) -> None:
    first, second = add(registry, tenant="a"), add(registry, tenant="a")
    assert getattr(worker.take(WORK, "b", per_tenant=1), "id", None) == first
    assert worker.take(WORK, "b", per_tenant=1) is None
    worker.move(first, S.RUNNING)
    worker.move(first, S.SUCCEEDED)
    assert getattr(worker.take(WORK, "b", per_tenant=1), "id", None) == second


def test_a_worker_takes_jobs_of_its_base_and_sort(registry: Registry, worker: TuningLeases) -> None:
    add(registry, base="other")
    add(registry, needs=Need.PUBLICATION, status=S.RUNNING)
    assert worker.take(WORK, "b") is None
    assert worker.take((Need.PUBLICATION,), "b") is not None


def test_pages(registry: Registry, worker: TuningLeases) -> None:
    ids = [
        add(registry, tenant="a" if n % 2 else "b", asked={"metadata": {"n": str(n % 3)}}) for n in range(9)
    ]
    jobs = registry.tuning
    newest = [job.id for job in jobs.page(after=None, limit=4) or ()]
    assert newest == ids[:4:-1][:4]
    assert [job.id for job in jobs.page(after=newest[-1], limit=99) or ()] == ids[4::-1]
    assert jobs.page(after="nothing", limit=4) is None
    assert [job.id for job in jobs.page(after=None, limit=9, whose=Whose("a")) or ()] == ids[7::-2]
    assert jobs.page(after=ids[0], limit=9, whose=Whose("a")) is None  # another's
    assert [job.id for job in jobs.page(after=None, limit=2, metadata={"n": "0"}) or ()] == [ids[6], ids[3]]
    assert [job.id for job in jobs.page(after=ids[3], limit=2, metadata={"n": "0"}) or ()] == [ids[0]]
    worker.take(WORK, "b")
    worker.tell(ids[0], *(Said(f"e{n}", metrics={"step": n}) for n in range(5)))
    events = registry.tuning_events
    found = events.page(ids[0], after=None, limit=3)
    assert found is not None
    assert [event.message for event in found] == ["e4", "e3", "e2"]
    rest = events.page(ids[0], after=found[-1].id, limit=9)
    assert rest is not None
    assert [event.message for event in rest][:2] == ["e1", "e0"]
    assert events.page(ids[1], after=found[0].id, limit=3) is None
    assert [event.data["step"] for event in events.since(ids[0], found[-1].number, 9)] == [3, 4]
    worker.move(ids[0], S.RUNNING)
    worker.move(ids[0], S.SUCCEEDED, checkpoints=[(4, "m:4", {"loss": 1.0}), (8, "m:8", {})])
    assert [c.name for c in events.checkpoints(ids[0], after=None, limit=9) or ()] == ["m:8", "m:4"]


def test_files_that_are_needed(registry: Registry) -> None:
    job = add(registry, validation_file="file-2")
    assert registry.tuning.reads("file-1")
    assert registry.tuning.reads("file-2")
    assert not registry.tuning.reads("file-3")
    assert registry.tuning.count_open(None) == 1
    registry.tuning.cancel(job)
    assert not registry.tuning.reads("file-1")
    assert registry.tuning.count_open(None) == 0
    assert not ENDED & OPEN
