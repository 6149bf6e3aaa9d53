"""Jobs ask for a GPU's memory before they begin, and wait for it. The device's figures are made up here."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from manylora.adapters.registry.tuning.states import JobState
from manylora.server.jobs.memory import memory_of
from manylora.server.jobs.training_config import train_config
from manylora.server.jobs.worker import device_memory
from manylora.server.jobs.worker.device_memory import Claim, DeviceMemory, Figures
from manylora.server.jobs.worker.worker import Worker, WorkerOptions
from tests.support.tuning_workers import STEPS, Setup
from tests.support.waiting import PATIENCE, wait_until

TOTAL = 1000


@dataclass
class Device:
    """One of which ``others`` have so many bytes, and this process none that are told."""

    others: int = 0
    total: int = TOTAL

    def figures(self) -> Figures:
        return Figures(self.total - self.others, 0, self.total)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "LOOK_SECONDS", 0.01)


class Job:
    """A thread that has memory until it is let go."""

    def __init__(self, memory: DeviceMemory, claim: Claim) -> None:
        self.told: list[tuple[int, int]] = []
        self.over, self._has, self._end = False, threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._run, memory, claim)

    def _run(self, memory: DeviceMemory, claim: Claim) -> bool:
        tell: Any = lambda *told: self.told.append(told)  # noqa: E731
        with memory.claimed(str(id(self)), claim, tell, lambda: self.over) as has_it:
            if has_it:
                self._has.set()
                assert self._end.wait(PATIENCE)
            return has_it

    @property
    def has_it(self) -> bool:
        return self._has.is_set()

    def end(self) -> bool:
        self._end.set()
        return self._done.result(PATIENCE)


def own(count: int) -> Claim:
    return Claim(count, 0, shares=False)


def test_one_waits_until_others_are_gone() -> None:
    device = Device(others=700)
    memory = DeviceMemory(device.figures)
    job = Job(memory, own(400))
    wait_until(lambda: job.told)
    assert job.told == [(400, 300)]
    assert not job.has_it
    device.others = 600
    wait_until(lambda: job.has_it)
    assert job.end()
    assert len(job.told) == 1


def test_what_jobs_here_claim_is_not_there_twice() -> None:
    """Though they have not taken it yet; and the base that they share is claimed once."""
    memory = DeviceMemory(Device().figures)
    first = Job(memory, Claim(100, 500, shares=True))
    wait_until(lambda: first.has_it)
    second = Job(memory, Claim(200, 500, shares=True))
    wait_until(lambda: second.has_it)
    third = Job(memory, Claim(100, 500, shares=False))
    wait_until(lambda: third.told)
    assert third.told == [(600, 200)]
    first.end()  # the base is still the second's
    fourth = Job(memory, Claim(250, 500, shares=True))
    wait_until(lambda: fourth.has_it)
    for job in (second, fourth):
        job.end()
    wait_until(lambda: third.has_it)
    third.end()


def test_it_stops_waiting_when_it_is_told() -> None:
    memory = DeviceMemory(Device(others=TOTAL).figures)
    job = Job(memory, own(1))
    wait_until(lambda: job.told)
    job.over = True
    assert job.end() is False
    assert not job.has_it


def test_one_that_asks_for_more_than_there_is_gets_all_there_is() -> None:
    """What a job needs is an estimate: it begins when nearly all of the device is free."""
    device = Device(others=200)
    memory = DeviceMemory(device.figures)
    job = Job(memory, own(5 * TOTAL))
    wait_until(lambda: job.told)
    assert job.told == [(900, 800)]
    device.others = 100
    wait_until(lambda: job.has_it)
    job.end()


def test_where_nothing_has_to_be_asked_for_nobody_waits() -> None:
    job = Job(DeviceMemory(lambda: None), own(10**18))
    wait_until(lambda: job.has_it)
    job.end()


@pytest.fixture
def on_device(setup: Setup) -> tuple[Setup, Device, Worker]:
    """A worker that believes in a GPU, with memory for one job, which another process has."""
    setup.place = type(setup.place)(setup.place.model, setup.place.data_dir, setup.place.max_length, "fp32")
    device = Device(total=10**9, others=10**9)
    worker = Worker(setup.registry, WorkerOptions("one", "b", setup.place, None, 1.0, 2), device.figures)
    return setup, device, worker


def _waits(setup: Setup, job: str) -> bool:
    return setup.messages(job)[-1].startswith("Waiting for GPU memory")


@pytest.mark.sweep
@pytest.mark.slow
def test_a_job_says_what_it_waits_for(on_device: tuple[Setup, Device, Worker]) -> None:
    """And is trained once it is there; one that is paused meanwhile does not begin."""
    setup, device, worker = on_device
    waits, paused = setup.add(), setup.add()
    with ThreadPoolExecutor() as pool:
        done = pool.submit(worker.run)
        for job in (waits, paused):
            wait_until(partial(_waits, setup, job))
            assert setup.messages(job)[-1].endswith("GB, and 0.0 GB are free")
            assert setup.job(job).status is JobState.QUEUED
        setup.registry.tuning.pause(paused)
        wait_until(lambda: setup.job(paused).worker is None)
        device.others = 0
        done.result()
    assert setup.is_trained(waits), setup.messages(waits)
    assert [step for step, _ in setup.losses(waits)] == list(range(1, STEPS + 1))
    found = setup.job(paused)
    assert (found.status, found.paused_from) == (JobState.PAUSED, JobState.QUEUED)
    assert setup.losses(paused) == []


@pytest.mark.slow
def test_what_a_job_needs_grows_with_its_rows_and_batch(setup: Setup) -> None:
    job = setup.job(setup.add())
    numbers = dict(job.asked["hyperparameters"])

    def peak(length: int, batch: int) -> int:
        asked = {**numbers, "batch_size": batch}
        folder = setup.folder(job.id)
        return memory_of(train_config(job.asked, asked, folder, setup.place, validation=False), length).peak

    assert peak(16, 4) < peak(64, 4) < peak(64, 16)
