"""Gauges that are read from what they measure whenever metrics are asked for.

A gauge that is set when something happens keeps its last value for as long as nothing does. So every number
of ours that says how something is now is asked for at the scrape. Scrapes run in a thread of their own: what
is asked must be safe to read from any thread.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge


def asked_gauge(registry: CollectorRegistry, name: str, text: str) -> Gauge:
    """A gauge that is 0 until ``set_function`` says what it is read from; nothing else may set it."""
    return Gauge(f"manylora_{name}", text, registry=registry)
