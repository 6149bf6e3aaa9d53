"""How many cores this process may use, which in a container are fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS) -> int:
    """Those that it may run on, and no more than the quota of its control group comes to; at least 1.

    ``groups`` is where the files of the control group are, of either version.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() or 1 if affinity is None else len(affinity(0))
    quota = _quota(groups)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def threads_to_set(environment: Mapping[str, str], groups: Path = _GROUPS) -> int | None:
    """To how many threads arithmetic is to be bounded; None: it finds the right number, or was told one."""
    if environment.get("OMP_NUM_THREADS") or _quota(groups) is None:
        return None
    return usable_cores(groups)


def _quota(groups: Path) -> float | None:
    """Cores that may be used on average; None: there is no bound."""
    try:
        quota, period = (groups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (groups / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (groups / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return cores if cores > 0 else None
