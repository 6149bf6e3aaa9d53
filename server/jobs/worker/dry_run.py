"""A process that says what a job would take. Its input and its output are JSON."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from manylora.adapters.errors import AdapterError
from manylora.adapters.training.quiet import quiet_libraries
from manylora.server.jobs.folder import JobFolder, revision_directory
from manylora.server.jobs.inspection import Fault, estimated, inspect, public, told
from manylora.server.jobs.training_config import place_of


def main() -> int:
    """Answer one question; the exit status."""
    asked = json.load(sys.stdin)
    with suppress(OSError):
        os.nice(19)
    quiet_libraries()
    answer = _answer(asked)
    print(json.dumps(answer))
    return 0


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    data_dir = Path(question["data_dir"])
    folder, asked = JobFolder.of(data_dir, question["job"]), question["asked"]
    place = place_of(question["model"], data_dir, question["dtype"], question["device"])
    try:
        found = inspect(asked, folder, place, revision_directory(data_dir, asked["init"]))
    except AdapterError as error:
        return {"faults": [told(Fault(public(str(error), folder, place), "invalid_request", "model"))]}
    if found.faults:
        return {"faults": [told(fault) for fault in found.faults]}
    return {"faults": [], "estimate": estimated(found, asked, folder, place)}


if __name__ == "__main__":
    sys.exit(main())
