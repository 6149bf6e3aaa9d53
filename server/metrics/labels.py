"""The values that labels of metrics take, besides the names of adapters."""

from __future__ import annotations

BASE, MIX, OTHER = OWN_LABELS = ("(base)", "(mix)", "(other)")  # no adapter can have such a name
OUTCOMES = ("stop", "length", "abort", "error")
REJECTIONS = (
    "invalid",
    "unauthorized",
    "forbidden",
    "not_found",
    "conflict",
    "unprocessable",
    "queue_full",
    "rate_limited",
    "unavailable",
    "internal",
    "other",
)
TIERS = ("device", "memory", "disk", "remote")  # where an adapter that is needed may be
LOADED_FROM = ("disk", "remote", "publish")  # from where one is brought in
