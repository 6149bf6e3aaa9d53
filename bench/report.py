"""From exchanges to figures, a table for people and one JSON line for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.load import Observed


@dataclass(frozen=True, slots=True)
class Figures:
    """One system under one workload. Times are in seconds."""

    system: str
    workload: str
    output_tokens_per_second: float
    requests: int
    errors: int
    ttft_p50: float
    ttft_p99: float
    inter_token_p50: float
    inter_token_p99: float
    latency_p50: float
    latency_p99: float
    prompt_tokens: float  # mean a request
    output_tokens: float  # mean a request
    wall: float
    client_cores: float  # CPU seconds of the client for each second of the run


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed; 0.0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = -(-share * len(ordered) // 1)
    return ordered[max(0, int(rank) - 1)]


def figures(system: str, workload: str, observed: Observed) -> Figures:
    """What one run came to. Failed requests count as errors and enter no time."""
    good = [exchange for exchange in observed.exchanges if exchange.error is None]
    first = [seconds for exchange in good if (seconds := exchange.first_token) is not None]
    gaps = [gap for exchange in good for gap in exchange.gaps]
    latency = [exchange.latency for exchange in good]
    return Figures(
        system=system,
        workload=workload,
        output_tokens_per_second=sum(exchange.output_tokens for exchange in good) / observed.wall,
        requests=len(observed.exchanges),
        errors=len(observed.exchanges) - len(good),
        ttft_p50=percentile(first, 0.5),
        ttft_p99=percentile(first, 0.99),
        inter_token_p50=percentile(gaps, 0.5),
        inter_token_p99=percentile(gaps, 0.99),
        latency_p50=percentile(latency, 0.5),
        latency_p99=percentile(latency, 0.99),
        prompt_tokens=fmean([exchange.prompt_tokens for exchange in good] or [0]),
        output_tokens=fmean([exchange.output_tokens for exchange in good] or [0]),
        wall=observed.wall,
        client_cores=observed.client_cpu / observed.wall,
    )


def medians(repetitions: Sequence[Figures]) -> Figures:
    """Field by field the median of runs of the same system and workload; errors and requests are summed."""
    first = asdict(repetitions[0])
    merged: dict[str, Any] = {}
    for name, value in first.items():
        values = [getattr(figures, name) for figures in repetitions]
        if isinstance(value, str):
            merged[name] = value
        else:
            merged[name] = sum(values) if name in ("errors", "requests") else median(values)
    return Figures(**merged)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


_COLUMNS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("workload", lambda f: f.workload),
    ("system", lambda f: f.system),
    ("output tok/s", lambda f: f"{f.output_tokens_per_second:.1f}"),
    ("TTFT p50/p99 ms", lambda f: f"{_ms(f.ttft_p50)} / {_ms(f.ttft_p99)}"),
    ("inter-token p50/p99 ms", lambda f: f"{_ms(f.inter_token_p50)} / {_ms(f.inter_token_p99)}"),
    ("latency p50/p99 s", lambda f: f"{f.latency_p50:.2f} / {f.latency_p99:.2f}"),
    ("errors", lambda f: str(f.errors)),
)


def console() -> Console:
    """Where progress and tables go: standard error, wide enough for the table even into a file."""
    out = Console(stderr=True)
    return out if out.is_terminal else Console(stderr=True, width=120)


def table(rows: Sequence[Figures], out: Console) -> None:
    """Print the rows, workload by workload."""
    grid = Table()
    for number, (title, _) in enumerate(_COLUMNS):
        grid.add_column(title, justify="left" if number < 2 else "right", no_wrap=True)
    previous: str | None = None
    for row in rows:
        if previous not in (None, row.workload):
            grid.add_section()
        previous = row.workload
        grid.add_row(*(cell(row) for _, cell in _COLUMNS))
    out.print(grid)


def json_line(bench: str, setting: dict[str, Any], rows: Sequence[Figures]) -> str:
    """The whole result as one line."""
    rounded = ({key: _rounded(value) for key, value in asdict(row).items()} for row in rows)
    return json.dumps({"bench": bench, **setting, "rows": list(rounded)}, separators=(",", ":"))


def _rounded(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value


def save(line: str, directory: Path, name: str) -> Path:
    """Keep the result as ``directory/name.json``, indented."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(json.loads(line), indent=1) + "\n")
    return path
