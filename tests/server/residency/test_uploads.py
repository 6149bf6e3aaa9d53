"""Adapters are copied beside the computation: on simulated streams, whose work is late by random amounts."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from manylora.adapters.format.base import TargetModule
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.model.pages.pool import PackedAdapter, PagePool
from manylora.server.model.pages.uploads import DirectUpload, StagedUpload, upload_for

PIECE = 64  # bytes of a staging buffer: adapters here take several


@dataclass
class Streams:
    """Two streams of a device: what is launched runs later, in the order of its stream."""

    rng: random.Random
    compute: deque[Callable[[], None]] = field(default_factory=deque)
    copies: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)  # and what they wait for
    launched: int = 0  # to compute, ever
    done: int = 0  # of those
    copied: int = 0
    begun: int = 0  # copies, ever

    def launch(self, work: Callable[[], None]) -> None:
        """Compute something, later."""
        self.compute.append(work)
        self.launched += 1

    def advance(self) -> None:
        """Let one of the streams do its next piece of work, if it may."""
        ready = bool(self.copies) and self.copies[0][0] <= self.done
        if ready and (not self.compute or self.rng.random() < 0.5):
            self.copies.popleft()[1]()
            self.copied += 1
        elif self.compute:
            self.compute.popleft()()
            self.done += 1

    def drain(self) -> None:
        """Let everything be done."""
        while self.compute or self.copies:
            self.advance()


class SimulatedLane:
    """The stream of copies; without ``follows`` or ``waits`` it is one that was forgotten to be ordered."""

    def __init__(self, streams: Streams, *, follows: bool = True, waits: bool = True) -> None:
        self._streams = streams
        self._follows = follows
        self._waits = waits
        self._after = 0

    def staging(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0x7F, dtype=torch.uint8)

    def follow(self) -> None:
        if self._follows:
            self._after = self._streams.launched

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        streams = self._streams

        def work() -> None:
            target.copy_(source)

        streams.copies.append((self._after, work))
        streams.begun += 1
        number = streams.begun

        def wait() -> None:
            while self._waits and streams.copied < number:
                streams.advance()

        return wait


def adapter(number: int, elements: int) -> PackedAdapter:
    data = torch.full((elements,), float(number))
    return PackedAdapter(f"{number}", data, np.zeros(1, np.int64), np.ones(1, np.int32))


def churn(seed: int, *, follows: bool = True, waits: bool = True) -> int:
    """Load, run and evict adapters at random; how many steps saw something else than what they ran with."""
    rng = random.Random(seed)
    streams = Streams(rng)
    upload = StagedUpload(SimulatedLane(streams, follows=follows, waits=waits), PIECE)
    modules = [TargetModule("m", 8, 8)]
    pool = PagePool(modules, 4 * 1024, torch.float32, torch.device("cpu"), upload=upload)
    resident: dict[int, tuple[AdapterPages, int]] = {}
    wrong: list[int] = []

    def step(number: int, pages: AdapterPages, elements: int) -> None:
        def look() -> None:
            if not bool((pool.data[pages.start : pages.start + elements] == number).all()):
                wrong.append(number)

        streams.launch(look)

    for number in range(1, 200):
        elements = 32 * rng.randint(1, 8)
        packed = adapter(number, elements)
        while (pages := pool.reserve(packed)) is None:
            victim = rng.choice(list(resident))
            step(victim, *resident[victim])  # still running when it is given up
            pool.release(resident.pop(victim)[0])
        pool.write(pages, packed)
        resident[number] = (pages, elements)
        for chosen in rng.sample(list(resident), min(3, len(resident))):
            step(chosen, *resident[chosen])
        for _ in range(rng.randint(0, 3)):
            streams.advance()
    streams.drain()
    pool.check()
    return len(wrong)


@pytest.mark.parametrize("seed", range(12))
def test_no_step_sees_anothers_pages(seed: int) -> None:
    assert churn(seed) == 0


@pytest.mark.parametrize("forgotten", ["follows", "waits"])
def test_the_race_is_there_without_the_order(forgotten: str) -> None:
    assert all(churn(seed, **{forgotten: False}) > 0 for seed in range(3))


@pytest.mark.parametrize("elements", [1, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_element_arrives(elements: int, dtype: torch.dtype) -> None:
    streams = Streams(random.Random(0))
    upload = StagedUpload(SimulatedLane(streams), PIECE)
    for number in range(3):
        source = torch.randn(elements, generator=torch.Generator().manual_seed(number)).to(dtype)
        target = torch.zeros(elements, dtype=dtype)
        upload.send(source, target)
        assert torch.equal(source, target)
    assert not streams.copies, "all of it is there when it returns"


def test_a_cpu_copies_at_once() -> None:
    assert isinstance(upload_for(torch.device("cpu")), DirectUpload)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    upload, source = upload_for(device), torch.randn(5_000_000)
    target = torch.zeros(5_000_000, device=device)
    upload.send(source, target)
    assert torch.equal(target.cpu(), source)
