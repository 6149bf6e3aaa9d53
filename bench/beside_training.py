"""What a fine-tuning job costs those who are served beside it: first tokens and the time between tokens.

    python -m bench.beside_training

Alone on the machine; it takes about eight minutes. One server with `--training local` and its other options
at their defaults. Four greedy streams, which begin anew when they end, are measured without a job and beside
one, in turn; between the turns the job is paused. Every answer is compared with the first to the same prompt.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from bench.tenants import ADMIN, client, p99, server

STREAMS = 4
ANSWER = 96  # tokens
_PATIENCE = 600.0  # seconds until a job takes steps
HALT_SECONDS = 10.0  # seconds without a step, after which a paused job has taken its last one
_LOOK_EVERY = 0.5  # seconds
_PROMPTS = [f"Explain in simple words how {thing} works." for thing in ("a clock", "rain", "bread", "a lens")]


@dataclass
class Seen:
    """What streams measured, in seconds."""

    first: list[float] = field(default_factory=list)  # until the first token
    between: list[float] = field(default_factory=list)  # tokens
    texts: list[tuple[int, str]] = field(default_factory=list)  # stream, whole answer


class Jobs:
    """Fine-tuning jobs of a server, that are paused and go on together."""

    def __init__(self, http: httpx.Client, base: str, count: int, rows: int) -> None:
        self._http = http
        data = "".join(json.dumps(_row(n)) + "\n" for n in range(rows))
        form = {"file": ("rows.jsonl", data)}
        file = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}).raise_for_status().json()
        numbers = {"n_epochs": 50, "batch_size": 8, "learning_rate_multiplier": 1.0}
        body = {"model": base, "training_file": file["id"], "hyperparameters": numbers, "lora": {"r": 16}}
        made = [http.post("/v1/fine_tuning/jobs", json={**body, "seed": seed}) for seed in range(count)]
        self.ids = [answer.raise_for_status().json()["id"] for answer in made]

    def steps(self) -> list[int]:
        """How many steps each has taken."""
        return [int((self._get(job)["progress"] or {}).get("step", 0)) for job in self.ids]

    def all(self, what: str) -> None:
        """Pause, resume or cancel them."""
        for job in self.ids:
            self._http.post(f"/v1/fine_tuning/jobs/{job}/{what}").raise_for_status()

    def wait_for_steps(self, more: int = 2) -> None:
        """Until each has taken so many steps more."""
        wanted, deadline = [step + more for step in self.steps()], time.monotonic() + _PATIENCE
        while any(now < then for now, then in zip(self.steps(), wanted, strict=True)):
            found = [self._get(job) for job in self.ids]
            if time.monotonic() > deadline or any(job["status"] == "failed" for job in found):
                raise SystemExit(f"the jobs do not get on: {found}")
            time.sleep(_LOOK_EVERY)

    def _get(self, job: str) -> Any:
        return self._http.get(f"/v1/fine_tuning/jobs/{job}").raise_for_status().json()


@contextmanager
def paused(jobs: Jobs) -> Iterator[None]:
    """Within the block the jobs take no steps."""
    jobs.all("pause")
    before: list[int] = []
    while before != (before := jobs.steps()):
        time.sleep(HALT_SECONDS)
    yield
    if jobs.steps() != before:
        raise SystemExit("a paused job has taken a step")
    jobs.all("resume")


def _row(number: int) -> dict[str, Any]:
    question = f"What do you know about the number {number}, its neighbours, and its parity?"
    parity = "even" if number % 2 == 0 else "odd"
    answer = f"{number} stands between {number - 1} and {number + 1}, and it is {parity}. " * 3
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


async def streams(url: str, base: str, seconds: float) -> Seen:
    """Four streams for so long; answers that have begun are read to their end."""
    seen, until = Seen(), time.perf_counter() + seconds

    async def one(index: int, http: httpx.AsyncClient) -> None:
        body = {
            "model": base,
            "messages": [{"role": "user", "content": _PROMPTS[index]}],
            "max_tokens": ANSWER,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
        }
        while time.perf_counter() < until:
            began, last, text = time.perf_counter(), 0.0, ""
            async with http.stream("POST", "/v1/chat/completions", json=body) as told:
                told.raise_for_status()
                async for line in told.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    piece = json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    if not piece:
                        continue
                    now = time.perf_counter()
                    (seen.between if last else seen.first).append(now - (last or began))
                    last, text = now, text + piece
            seen.texts.append((index, text))

    async with client(url) as http:
        http.headers["authorization"] = f"Bearer {ADMIN}"
        await asyncio.gather(*(one(index, http) for index in range(STREAMS)))
    return seen


def figures(alone: list[Seen], beside: list[Seen]) -> dict[str, Any]:
    """What is told of turns without and with a job."""
    expected = dict(reversed(alone[0].texts))  # the first answer of each stream
    changed = sum(text != expected[index] for seen in (*alone, *beside) for index, text in seen.texts)
    found: dict[str, Any] = {
        "answers": sum(len(seen.texts) for seen in (*alone, *beside)),
        "answers_that_differ": changed,
    }
    for name in ("first", "between"):
        sides = [[value for seen in side for value in getattr(seen, name)] for side in (alone, beside)]
        for what, of in (("p50", statistics.median), ("p99", p99)):
            one, other = (of(side) for side in sides)
            found[f"{name}_{what}_ms_alone"] = round(1e3 * one, 2)
            found[f"{name}_{what}_ms_beside"] = round(1e3 * other, 2)
            found[f"{name}_{what}_ratio"] = round(other / one, 3)
    return found


def measure(url: str, base: str, *, jobs: int, turns: int, seconds: float, rows: int) -> dict[str, Any]:
    """All figures of one server."""
    alone, beside, taken = [], [], 0
    asyncio.run(streams(url, base, 2.0))  # everything has run once
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {ADMIN}"}, timeout=60) as http:
        own = Jobs(http, base, jobs, rows)
        own.wait_for_steps()
        for _ in range(turns):
            with paused(own):
                alone.append(asyncio.run(streams(url, base, seconds)))
            own.wait_for_steps()
            before = sum(own.steps())
            beside.append(asyncio.run(streams(url, base, seconds)))
            taken += sum(own.steps()) - before
        own.all("cancel")
    return {**figures(alone, beside), "steps_beside": taken, "seconds_beside": turns * seconds}


def main(
    base: Annotated[str, typer.Option(help="The base model.")] = "smollm2-135m",
    jobs: Annotated[int, typer.Option(min=1, help="In training at once.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Without and beside the jobs, each.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Of a turn.")] = 40.0,
    rows: Annotated[int, typer.Option(min=10, help="Of a job.")] = 2000,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    options = ("--training", "local", "--training-jobs", str(jobs))
    with server(resolve_base(base), *options) as url:
        told = measure(url, "base", jobs=jobs, turns=turns, seconds=seconds, rows=rows)
    setting = {"base": base, "jobs": jobs, "streams": STREAMS, "turns": turns, "seconds": seconds}
    line = json.dumps({"bench": "beside_training", **machine.setting(), **setting, **told})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-beside-training")
    typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
