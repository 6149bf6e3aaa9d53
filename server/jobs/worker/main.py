"""The worker's process. It is told what to do as JSON on its input: secrets stand in no command line."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from manylora.adapters.errors import AdapterError
from manylora.adapters.registry.registry import Registry
from manylora.adapters.training.quiet import quiet_libraries
from manylora.server.jobs.training_config import place_of
from manylora.server.jobs.worker.worker import Worker, WorkerOptions

logger = logging.getLogger(__name__)

_PARENT_EVERY = 1.0  # seconds


def main() -> int:
    """Work as the JSON on the input says; the exit status."""
    told = json.load(sys.stdin)
    logging.basicConfig(
        level=told.get("log_level", "INFO").upper(), format="%(levelname)s worker: %(message)s"
    )
    try:
        run_worker(told)
    except AdapterError as error:
        logger.error("%s", error)
        return 2
    return 0


def run_worker(told: Mapping[str, Any]) -> None:
    """Work until a signal comes, the parent is gone, or there has been nothing to do for long.

    Args:
        told: registry_url, data_dir, model (a directory), base (its fingerprint), name, threads,
            per_tenant, at_once, idle_seconds, dtype, device, log_level, parent (a process id, or None).

    Raises:
        AdapterError: the base or the registry can't be used.
    """
    with suppress(OSError):
        os.nice(19)
    quiet_libraries()
    import torch  # noqa: PLC0415  (after the priority is set)

    torch.set_num_threads(told["threads"])
    data_dir = Path(told["data_dir"])
    place = place_of(told["model"], data_dir, told["dtype"], told["device"])
    limits = (told["per_tenant"], told["idle_seconds"], told["at_once"])
    options = WorkerOptions(told["name"], told["base"], place, *limits)
    with Registry(told["registry_url"], owner=told["name"]) as registry:
        worker = Worker(registry, options)

        def end(number: int, _frame: FrameType | None) -> None:
            worker.end()
            signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        if told["parent"] is not None:
            threading.Thread(target=_follow, args=(told["parent"], worker), daemon=True).start()
        worker.run()


def _follow(parent: int, worker: Worker) -> None:
    """End with the server that started this, however it ended."""
    while os.getppid() == parent:
        time.sleep(_PARENT_EVERY)
    worker.end()


if __name__ == "__main__":
    sys.exit(main())
