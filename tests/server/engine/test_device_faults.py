"""What an accelerator's faults do to a server: errors that stay, steps that hang, and the process's end."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
import torch

from manylora.server.cli import serve as cli_serve
from manylora.server.engine.async_engine import AsyncEngine
from manylora.server.engine.faults import Supervision, device_works, is_lost, is_out_of_memory
from manylora.server.engine.sequence import FinishReason
from manylora.server.errors import EngineDead
from tests.support.engine_harness import EngineHarness
from tests.support.running_engine import RunningEngine, collect
from tests.support.waiting import until

ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered")
TRITON = RuntimeError("Triton Error [CUDA]: device-side assert triggered")
PLAIN = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("error", "works", "lost"),
    [
        (ILLEGAL, True, True),
        (TRITON, True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), True, False),
        (PLAIN, True, False),
        (PLAIN, False, True),
        (AssertionError("ours"), True, False),
        (MEMORY, False, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), False, False),
    ],
)
def test_which_errors_mean_that_the_device_is_lost(error: Exception, works: bool, lost: bool) -> None:
    assert is_lost(error, lambda: works) is lost
    assert not is_lost(error, None), "a CPU is never lost"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MEMORY, True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (ILLEGAL, False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_of_memory(error: BaseException, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


def test_a_device_is_asked_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_works(torch.device("cpu"))

    def fails(error: Exception) -> Any:
        def ones(*_: object, **__: object) -> torch.Tensor:
            raise error

        return ones

    monkeypatch.setattr(torch, "ones", fails(ILLEGAL))
    assert not device_works(torch.device("cpu"))
    monkeypatch.setattr(torch, "ones", fails(MEMORY))
    assert device_works(torch.device("cpu")), "short of memory, but alive"


def engine_of(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch, supervision: Supervision
) -> RunningEngine:
    core = harness.new_engine()
    engine = AsyncEngine(core, max_model_len=512, max_open=10, supervision=supervision)
    made = RunningEngine(core, engine, monkeypatch)
    engine.start()
    return made


async def all_end_with_an_error(running: RunningEngine, streams: list[Any]) -> None:
    """Each request hears of one end, what it held is free, and no further ones are taken."""
    for stream in streams:
        deltas = await asyncio.wait_for(collect(stream), 10)
        assert [d.finish_reason for d in deltas if d.finish_reason] == [FinishReason.ERROR]
    assert running.engine.died.is_set()
    assert not running.engine.alive
    assert running.engine.num_open == 0
    assert [held.released for held in running.held] == [1] * len(running.held)
    with pytest.raises(EngineDead):
        running.ask()


async def test_a_lost_device_ends_the_engine(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = engine_of(harness, monkeypatch, Supervision(works=lambda: True))
    await running.engine.warmed()
    streams = [running.ask(max_tokens=400) for _ in range(3)]
    await anext(streams[0])

    def lost(_: object) -> torch.Tensor:
        raise ILLEGAL

    monkeypatch.setattr(running.core.decoder, "step", lost)
    await all_end_with_an_error(running, streams)
    assert "illegal memory access" in caplog.text
    await asyncio.wait_for(running.engine.stop(), 5)


async def test_a_step_that_hangs_ends_the_engine(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = set(threading.enumerate())  # of whoever else serves in this process
    running = engine_of(harness, monkeypatch, Supervision(step_timeout=0.2))
    shown: list[bool] = []
    monkeypatch.setattr("manylora.server.engine.async_engine.show_threads", lambda: shown.append(True))
    streams = [running.ask(max_tokens=400) for _ in range(3)]
    await anext(streams[0])
    answers, proceed = running.core.decoder.step, threading.Event()

    def hangs(inputs: Any) -> torch.Tensor:
        assert proceed.wait(30)
        return answers(inputs)

    monkeypatch.setattr(running.core.decoder, "step", hangs)
    await all_end_with_an_error(running, streams)
    assert shown == [True]
    assert "--step-timeout" in caplog.text
    await asyncio.wait_for(running.engine.stop(), 5)  # without waiting for the thread
    proceed.set()  # it comes back after all: nobody is told twice
    await until(lambda: not any(t.name == "engine" for t in set(threading.enumerate()) - others))
    await asyncio.sleep(0)


async def test_what_is_lost_beside_the_steps_ends_the_engine(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process that steps need is gone: also while none runs."""
    gone, reasons = threading.Event(), ["rank 1 has ended"]
    others = set(threading.enumerate())  # of whoever else serves in this process

    def until_lost() -> str | None:
        gone.wait(30)
        return reasons[0] if reasons else None

    running = engine_of(harness, monkeypatch, Supervision(until_lost=until_lost))
    streams = [running.ask(max_tokens=400) for _ in range(3)]
    await anext(streams[0])
    gone.set()
    await all_end_with_an_error(running, streams)
    assert "rank 1 has ended" in caplog.text
    await until(lambda: not any(t.name == "engine" for t in set(threading.enumerate()) - others))
    await asyncio.wait_for(running.engine.stop(), 5)
    reasons.clear()  # where the server ends by itself nothing is lost
    idle = engine_of(harness, monkeypatch, Supervision(until_lost=until_lost))
    await idle.engine.warmed()
    await asyncio.sleep(0.05)
    assert idle.engine.alive
    await idle.engine.stop()


async def test_steps_within_the_time_are_left_alone(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = engine_of(harness, monkeypatch, Supervision(step_timeout=5.0))
    deltas = await collect(running.ask(max_tokens=8))
    await asyncio.sleep(0.05)  # idle is no step
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert running.engine.alive
    await running.engine.stop()


async def test_warming_up_happens_on_the_engines_thread_and_is_waited_for(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: list[str] = []
    warm = Supervision(warm_up=lambda: where.append(threading.current_thread().name))
    running = engine_of(harness, monkeypatch, warm)
    await running.engine.warmed()
    assert where == ["engine"]
    await running.engine.stop()

    def fails() -> None:
        raise ValueError("too small")

    broken = engine_of(harness, monkeypatch, Supervision(warm_up=fails))
    with pytest.raises(ValueError, match="too small"):
        await broken.engine.warmed()
    await until(broken.engine.died.is_set)
    await broken.engine.stop()


async def test_the_process_ends_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that run get their time; then it ends, even if a thread waits for the device for ever."""
    timers: list[Any] = []

    class Timer:
        def __init__(self, seconds: float, function: Any, args: tuple[int]) -> None:
            self.seconds, self.function, self.args, self.daemon, self.started = (
                seconds,
                function,
                args,
                False,
                False,
            )
            timers.append(self)

        def start(self) -> None:
            self.started = True

    class Server:
        should_exit = False

    monkeypatch.setattr(threading, "Timer", Timer)
    died, server = asyncio.Event(), Server()
    ending = asyncio.create_task(cli_serve.end_with_engine(died, server, 10.0))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not server.should_exit
    died.set()
    await ending
    assert server.should_exit
    (timer,) = timers
    assert (timer.started, timer.daemon, timer.function, timer.args) == (True, True, os._exit, (70,))
    assert timer.seconds > 10.0
