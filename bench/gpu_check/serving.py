"""A stage: a server under load, as its clients see it.

python -m bench.gpu_check.serving BASE SIZE DEVICE
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from safetensors.torch import load_file, save_file

from bench.adapters import write_adapter
from bench.gpu_check.plan import SIZES, Size
from bench.gpu_check.results import Part, Row, tell
from bench.systems import RunningSystem, manylora, start
from manylora.server.cli.loadgen.figures import Figures, percentile, summarize
from manylora.server.cli.loadgen.generated_prompts import PromptShape, english
from manylora.server.cli.loadgen.load import Load, apply
from manylora.server.cli.loadgen.workload import parse_workload

STAGE = "server"
_STREAMS = 4
_WORDS = 40  # of a prompt, whose letters are a token each


def adapters_of(base: Path, size: Size, out: Path) -> list[Path]:
    """Adapters that differ in the size of B, which takes no time to draw."""
    first = write_adapter(base, out / f"a0-r{size.rank}", rank=size.rank, dtype=torch.bfloat16, seed=0)
    tensors = load_file(first / "adapter_model.safetensors")
    made = [first]
    for number in range(1, size.adapter_files):
        path = out / f"a{number}-r{size.rank}"
        path.mkdir()
        scaled = {n: t * (1 + number / 64) if "lora_B" in n else t for n, t in tensors.items()}
        save_file(scaled, path / "adapter_model.safetensors", metadata={"format": "pt"})
        (path / "adapter_config.json").write_text((first / "adapter_config.json").read_text())
        made.append(path)
    return made


async def measure(server: RunningSystem, size: Size) -> None:
    """Every load once, after a warm-up with one request a client."""
    shape, rows = PromptShape(_WORDS, 0), list[Row]()
    found: list[Figures] = []
    for text in size.loads:
        load = Load(parse_workload(text), shape, size.output_tokens, rounds=2)
        await apply(replace(load, rounds=1), server.send, f"{text}/warm-up")
        found.append(summarize("manylora", text, await apply(load, server.send, text)))
        rows = [_row(figures) for figures in found]
    ok = all(figures.errors == 0 for figures in found)
    tell(Part(STAGE, "loads", ok, f"Over HTTP, {size.output_tokens} tokens an answer, streamed.", rows))


def _row(figures: Figures) -> Row:
    return {
        "load": figures.workload,
        "tokens/s": figures.output_tokens_per_second,
        "first token ms, median": 1000 * figures.ttft_p50,
        "first token ms, p99": 1000 * figures.ttft_p99,
        "between tokens ms, median": 1000 * figures.inter_token_p50,
        "between tokens ms, p99": 1000 * figures.inter_token_p99,
        "prompt tokens": figures.prompt_tokens,
        "errors": figures.errors,
    }


async def cold(server: RunningSystem, size: Size) -> None:
    """Gaps between the tokens of streams while adapters are loaded, one after the other."""
    members = range(min(_STREAMS, size.adapter_files))
    alone = await beside(server, members, size, asyncio.sleep(size.pause))
    times: list[float] = []

    async def load_all() -> None:
        for number in range(size.adapter_files):
            began = perf_counter()
            await asyncio.to_thread(_reload, f"{server.url}/v1/adapters/a{number}")
            times.append(perf_counter() - began)

    loading = await beside(server, members, size, load_all())
    rows: list[Row] = [
        {
            "streams": name,
            "tokens": len(gaps),
            "median ms": 1000 * median(gaps),
            "p99 ms": 1000 * percentile(gaps, 0.99),
        }
        for name, gaps in (("alone", alone), ("beside loads", loading))
    ]
    note = f"{len(times)} loads took {1000 * sum(times) / len(times):.0f} ms on average."
    tell(Part(STAGE, "adapters that are loaded", None, note, rows))


async def beside(
    server: RunningSystem, members: Sequence[int], size: Size, work: Coroutine[Any, Any, None]
) -> list[float]:
    """Seconds between the tokens of a stream for each of ``members``, for as long as ``work`` takes."""
    ended, gaps = asyncio.Event(), list[float]()

    async def stream(member: int) -> None:
        number = 0
        while not ended.is_set():
            exchange = await server.send(english(_WORDS, f"{member} {number}"), (member,), size.output_tokens)
            gaps.extend(exchange.gaps)
            number += 1

    streams = [asyncio.create_task(stream(member)) for member in members]
    await work
    ended.set()
    await asyncio.gather(*streams)
    return gaps


def _reload(url: str) -> None:
    """Take an adapter off the device once nobody uses it, and load it again."""
    for action in ("evict", "prefetch"):
        with suppress(HTTPError), urlopen(Request(f"{url}/{action}", method="POST"), timeout=60):
            pass


def merge(server: RunningSystem) -> None:
    """A merged copy: how long it takes and how far it is from the adapter."""
    began = perf_counter()
    with urlopen(Request(f"{server.url}/v1/adapters/a0/merge", method="POST"), timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    note = f"In {perf_counter() - began:.2f} s. {json.dumps(found)[:400]}"
    tell(Part(STAGE, "a merged copy", found.get("state") == "ready", note))


def health(server: RunningSystem) -> None:
    """What the server says of itself in the end."""
    with urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    names = ("manylora_kernels_fallback", "manylora_uncaptured_graphs", "manylora_steps_out_of_memory_total")
    rows: list[Row] = [
        {"metric": line.split()[0], "value": float(line.split()[1])}
        for line in lines
        if line.startswith(names)
    ]
    with urlopen(f"{server.url}/version", timeout=30) as answer:
        version = json.load(answer)
    note = "{decoder}, {kernels} ({kernels_note}), probe error {probe_error}".format_map(version)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        note += f"; {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    tell(Part(STAGE, "its metrics", all(row["value"] == 0 for row in rows), note, rows))


async def run(base: Path, size: Size, device: str) -> None:
    """Start a server with its adapters, and do all of it."""
    with tempfile.TemporaryDirectory(dir=base.parent) as scratch:
        directory, began = Path(scratch), perf_counter()
        adapters = adapters_of(base, size, directory)
        clients = max(parse_workload(text).clients for text in size.loads)
        system = manylora(base, adapters, directory / "data", clients, device=device)
        wrote, log = perf_counter(), directory / "log"
        server = await start(system, log)
        try:
            times = f"written in {wrote - began:.1f} s; ready {perf_counter() - wrote:.1f} s later."
            note = f"{len(adapters)} adapters {times}"
            division = [line for line in log.read_text().splitlines() if "free beside the base" in line]
            tell(Part(STAGE, "start", None, " ".join([note, *division])))
            await measure(server, size)
            await cold(server, size)
            await asyncio.to_thread(merge, server)
            await asyncio.to_thread(health, server)
        finally:
            server.stop()


def main(base: Path, size: str, device: str) -> None:
    """Run all parts."""
    asyncio.run(run(base, SIZES[size], device))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
