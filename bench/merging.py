"""What a merged copy gains, what building one costs the streams beside it, and whether it leaves anything.

Run as ``python -m bench.merging``: the server's parts in this process, without HTTP.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import typer

from bench import machine, peers, report
from bench.adapters import write_adapters
from bench.run import RESULTS, resolve_base
from manylora.adapters.mix import parse_mix
from manylora.server.assembly import build_service
from manylora.server.cli.loadgen.figures import percentile
from manylora.server.cli.loadgen.generated_prompts import english
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import SamplingParams
from manylora.server.engine.stream import Stream
from manylora.server.memory_budget import return_freed
from manylora.server.options.settings import Settings
from manylora.server.service import Service

_PROMPT_WORDS = 120
_STREAMS = 16  # beside which a copy is built
_ADAPTERS = 4  # that these use in turn
_LEADER = "a0"


@dataclass(frozen=True, slots=True)
class Gain:
    """Output tokens a second of ``streams`` answers, all but ``others`` of which are one adapter's."""

    streams: int
    others: int  # on the base
    unmerged: float
    merged: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Milliseconds between the tokens of streams."""

    streams: int
    median_gap: float  # before the copy is built
    p99_gap: float
    longest_gap: float
    median_gap_building: float  # until it has been built and measured
    p99_gap_building: float
    longest_gap_building: float
    seconds: float  # from the request for the copy until it is ready


@dataclass(frozen=True, slots=True)
class Cycles:
    """Copies built and freed one after the other."""

    count: int
    copy_bytes: int
    rss_before: int  # after the first of them
    rss_after: int
    base_unchanged: bool


class Bench:
    """A running service and questions to it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._number = 0

    def _ids(self) -> tuple[int, ...]:
        self._number += 1
        return tuple(self.service.tokenizer.encode(english(_PROMPT_WORDS, f"merging-{self._number}")))

    async def stream(self, model: str, tokens: int) -> Stream:
        """An answer of exactly ``tokens`` tokens has begun; "" is the base."""
        adapters = self.service.adapters
        async with adapters.resolve(parse_mix(model) if model else ()) as held:
            await held.admit()
            running = held.share()
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        return self.service.engine.submit(GenerateRequest(self._ids(), params), running)

    async def tokens_per_second(self, models: Sequence[str], tokens: int) -> float:
        """Of all streams together, once each has its first token."""
        streams = [await self.stream(model, tokens) for model in models]
        times = await asyncio.gather(*map(_arrivals, streams))
        began, ended = max(t[0] for t in times), min(t[-1] for t in times)
        count = sum(began < time <= ended for stream in times for time in stream)
        return count / (ended - began)

    async def gain(self, streams: int, others: int, tokens: int, repeat: int) -> Gain:
        """With and without a copy, in turn."""
        found: dict[str, list[float]] = {_LEADER: [], f"{_LEADER}@merged": []}
        for _ in range(repeat):
            for model, rates in found.items():
                models = [""] * others + [model] * (streams - others)
                rates.append(await self.tokens_per_second(models, tokens))
        unmerged, merged = map(median, found.values())
        return Gain(streams, others, unmerged, merged)

    async def stall(self, tokens: int) -> Stall:
        """A copy is built when the streams are a third through."""
        names = ["", *(f"a{i}" for i in range(_ADAPTERS))]
        streams = [await self.stream(names[i % len(names)], tokens) for i in range(_STREAMS)]
        reading = [asyncio.create_task(_arrivals(stream)) for stream in streams]
        prefilled = perf_counter() + 2.0
        while perf_counter() < prefilled + 3.0:
            await asyncio.sleep(0.1)
        began = perf_counter()
        variant = await self.service.adapters.merged.build(parse_mix(_LEADER))
        await self.service.adapters.merged.finished(variant)
        ended = perf_counter()
        if any(task.done() for task in reading):
            raise SystemExit("the streams ended before the copy was built: more --stall-tokens are needed")
        for stream in streams:
            stream.abort()
        times = await asyncio.gather(*reading)
        before = _gaps(times, prefilled, began)
        building = _gaps(times, began, ended)
        _tell_longest(times, began, ended)
        spread = [(median(gaps), percentile(gaps, 0.99), max(gaps)) for gaps in (before, building)]
        return Stall(_STREAMS, *spread[0], *spread[1], ended - began)

    async def cycles(self, count: int) -> Cycles:
        """Build and free a copy ``count`` times, of one adapter after the other."""
        terms = [parse_mix(f"a{i % _ADAPTERS}") for i in range(count + 1)]
        decoder = self.service.core.decoder
        before = [decoder.weight(m).clone() for m in range(len(decoder.modules))]
        adapters = self.service.adapters
        sizes, nbytes = [], 0
        for mix in terms:
            variant = await adapters.merged.build(mix)
            await adapters.merged.finished(variant)
            nbytes = variant.nbytes
            del variant
            await adapters.merged.free(mix, 10.0)
            return_freed()
            sizes.append(_resident_bytes())
        same = all((decoder.weight(m) == weight).all() for m, weight in enumerate(before))
        return Cycles(count, nbytes, sizes[0], sizes[-1], bool(same))


async def _arrivals(stream: Stream) -> list[float]:
    return [perf_counter() async for delta in stream if delta.token_ids]


def _gaps(times: Sequence[Sequence[float]], began: float, ended: float) -> list[float]:
    """Milliseconds between tokens of the same stream that both came within the time."""
    return [
        1000 * (after - before)
        for stream in times
        for before, after in pairwise(stream)
        if began <= before and after <= ended
    ]


def _tell_longest(times: Sequence[Sequence[float]], began: float, ended: float) -> None:
    """On stderr: when after the request for the copy the longest gaps were, to see what causes them."""
    gaps = [(1000 * (b - a), a - began) for t in times for a, b in pairwise(t) if began <= a and b <= ended]
    for gap, when in sorted(gaps, reverse=True)[:8]:
        typer.echo(f"a gap of {gap:.0f} ms {when:.2f} s after the copy was asked for", err=True)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def _run(
    service: Service, directories: Sequence[Path], *, tokens: int, repeat: int, count: int
) -> dict[str, object]:
    await service.start()
    try:
        for number, path in enumerate(directories):
            await service.adapters.admin.load(f"a{number}", path)
        bench = Bench(service)
        result: dict[str, object] = {}
        if repeat:
            result["stall"] = asdict(await bench.stall(1500))
            cases = [(8, 0), (8, 1), (32, 0), (32, 1)]
            result["gains"] = [asdict(await bench.gain(n, others, tokens, repeat)) for n, others in cases]
            await service.adapters.merged.free(parse_mix(_LEADER), 10.0)
        if count:
            result["cycles"] = asdict(await bench.cycles(count))
        return result
    finally:
        await service.stop()


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    output_tokens: Annotated[int, typer.Option(min=16)] = 64,
    repeat: Annotated[int, typer.Option(min=0, help="Medians are of so many runs; 0 leaves out speed.")] = 3,
    cycles: Annotated[int, typer.Option(min=0, help="Copies to build and free; 0 leaves this out.")] = 0,
) -> None:
    """Measure merged copies; prints one JSON line and keeps it in bench/results."""
    directory = resolve_base(base)
    adapters = write_adapters(
        directory, peers.cache() / "adapters", count=_ADAPTERS, ranks=[16], dtype="bf16"
    )
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        settings = Settings(
            model=str(directory),
            data_dir=Path(scratch),
            enable_prefix_cache=False,
            max_stretch=1e6,  # all streams are to decode at the same time
            adapter_memory=256 << 20,
            kv_cache_memory=2 << 30,
        )
        service = build_service(settings, directory)
        found = asyncio.run(_run(service, adapters, tokens=output_tokens, repeat=repeat, count=cycles))
    line = json.dumps({"bench": "merging", **machine.setting(), "base": base, **found})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-merging")
    print(line)


if __name__ == "__main__":
    typer.run(main)
