"""The process that writes a standalone model. It reads its order from standard input.

A process of its own, so that merging and comparing take no interpreter lock and no memory of the server's
and step back behind it. When its input ends, because the server has ended it or is gone, it ends as well
and takes along what it has half written.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.errors import AdapterError, ArtifactError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.config.reader import MAX_RANK
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import DTYPES, plan_export
from manylora.adapters.merge.recipe import Member
from manylora.server.exporting.order import ExportOrder
from manylora.server.memory_budget import verification_dtype
from manylora.server.signals import leave

Tell = Callable[[dict[str, Any]], None]

_NICENESS = 10  # above the server's own
_MAX_BYTES = 1 << 40  # of an adapter: the server has let it in
_STEPS = 100  # of progress, at most


def carry_out(order: ExportOrder, tell: Tell) -> dict[str, Any]:
    """Write the model; tells the progress, and returns what is to be told in the end.

    Raises:
        AdapterError: it can't be written; nothing is left of it.
    """
    stored = StoredModel(Path(order.base_directory))
    base = stored.describe(order.base_name)
    members = []
    for member in order.members:
        artifact = read_artifact(Path(member.directory), base, Limits(MAX_RANK, _MAX_BYTES))
        if artifact.digest != member.digest:
            raise ArtifactError([f"the stored copy of revision {member.digest[:8]} has changed"])
        members.append(Member(member.name, artifact, member.weight))
    dtype = None if order.dtype is None else DTYPES[order.dtype]
    plan = plan_export(stored, order.base_name, members, dtype, order.max_shard_bytes)
    compute_dtype = verification_dtype(plan.parameters, plan.loaded_bytes) if order.verify else None
    shown = -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        step = done * _STEPS // total
        if step > shown:
            shown = step
            tell({"written": done, "bytes": total})

    exported = export(plan, Path(order.out), compute_dtype=compute_dtype, progress=progress)
    found = exported.verification
    return {
        "files": exported.shards,
        "effect_kept": exported.effect_kept,
        "measured": None
        if found is None
        else {
            "rows": found.rows,
            "logit_difference": found.error,
            "adapter_effect": found.effect,
            "top1_agreement": found.same_top,
            "computed_in": str(found.compute_dtype).removeprefix("torch."),
        },
    }


def main() -> None:
    """Carry out the order on standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed goes to the server's log
    disable_progress_bar()
    os.nice(_NICENESS)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends us

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers)

    server = FileIO(0)  # not buffered: no lock that the thread below would hold at the end
    order = ExportOrder.parse(server.readline())
    Thread(target=_end_with, args=(server,), daemon=True).start()
    try:
        said = carry_out(order, tell)
    except AdapterError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing half-written is left: let the interpreter end
    tell(said)


def _end_with(server: FileIO) -> None:
    server.read(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
