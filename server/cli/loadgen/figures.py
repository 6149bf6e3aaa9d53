"""Figures of a run under load: throughput, times and errors from the exchanges that were seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from manylora.server.cli.loadgen.load import Observed


@dataclass(frozen=True, slots=True)
class Figures:
    """What one system came to under one workload. Times are in seconds."""

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


def summarize(system: str, workload: str, observed: Observed) -> Figures:
    """The figures of one run. Failed requests count as errors and enter no time."""
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
    """The median of runs of one system and workload, field by field; errors and requests are summed."""
    first = asdict(repetitions[0])
    merged: dict[str, Any] = {}
    for name, value in first.items():
        values = [getattr(figures, name) for figures in repetitions]
        if isinstance(value, str):
            merged[name] = value
        else:
            merged[name] = sum(values) if name in ("errors", "requests") else median(values)
    return Figures(**merged)
