"""What is in a job's files, and what training on them would take."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Final

from manylora.adapters.errors import AdapterError
from manylora.adapters.training.errors import DataError, TrainingConfigError
from manylora.server.jobs.folder import TRAINING, VALIDATION, JobFolder
from manylora.server.jobs.hyperparameters import resolved
from manylora.server.jobs.memory import memory_of
from manylora.server.jobs.training_config import Place, train_config

MIN_ROWS: Final = 10
INVALID: Final = "invalid_training_file"
TOO_FEW: Final = "invalid_n_examples"
_MAX_TOLD = 30  # warnings
_MAX_EXAMPLE = 20_000  # characters of the row that is shown
# What unpacks, or is read by more than lines: a small file of those can be a large one.
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PAR1", b"ARROW1")
_MEASURED = 0.2  # seconds in which the machine's speed is measured


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a file; line 0: with all of it."""

    message: str
    code: str = INVALID
    param: str = TRAINING
    line: int = 0


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found; with ``faults`` nothing is trained."""

    rows: int = 0
    validation_rows: int = 0
    tokens: int = 0  # of the training rows, once
    longest: int = 0  # tokens of one
    steps: int = 0
    hyperparameters: Mapping[str, Any] | None = None
    digest: str = ""
    example: tuple[tuple[str, bool], ...] = ()  # a row as the model reads it: texts, and what is learned
    warnings: tuple[Fault, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def trained_tokens(self) -> int:
        """Tokens that all passes come to."""
        return 0 if self.hyperparameters is None else self.tokens * int(self.hyperparameters["n_epochs"])


def inspect(
    asked: Mapping[str, Any], folder: JobFolder, place: Place, init_adapter: Path | None = None
) -> Inspection:
    """Read and check a job's files."""
    from manylora.adapters.training.data.summary import example_parts, summarize  # noqa: PLC0415  (slow, like the next)
    from manylora.adapters.training.session.init_adapter import find_init_adapter  # noqa: PLC0415
    from manylora.adapters.training.session.own_template import base_of  # noqa: PLC0415
    from manylora.adapters.training.session.prepare_data import prepare_data  # noqa: PLC0415

    files = [name for name in (TRAINING, VALIDATION) if folder.data(name).exists()]
    packed = [Fault("The file is not text: upload JSON Lines", param=name) for name in files
              if folder.data(name).read_bytes()[:8].startswith(_PACKED)]  # fmt: skip
    if packed:
        return Inspection(faults=tuple(packed))
    dpo, validation = asked["method"] == "dpo", VALIDATION in files
    try:
        first = resolved(asked["hyperparameters"], MIN_ROWS, dpo=dpo)
        config = train_config(asked, first, folder, place, validation=validation, init_adapter=init_adapter)
        base = base_of(config)
        prepared = prepare_data(config, base)
        if init_adapter is not None:
            find_init_adapter(config, base)
    except DataError as error:
        return Inspection(faults=tuple(_fault(line, folder) for line in str(error).splitlines()))
    except (TrainingConfigError, AdapterError) as error:
        return Inspection(faults=(_config_fault(error, init_adapter, folder, place),))
    rows, summary = len(prepared.train.rows), summarize(prepared.train)
    found = Inspection(
        rows=rows,
        validation_rows=0 if prepared.eval is None else len(prepared.eval.rows),
        tokens=summary.tokens,
        longest=summary.longest,
        digest=prepared.digest,
        example=_shortened(itertools.chain(*example_parts(prepared, base.tokenizer))),
        warnings=tuple(_fault(str(each), folder) for each in prepared.warnings[:_MAX_TOLD]),
    )
    if rows < MIN_ROWS:
        message = f"Training file has {rows} example(s), but must have at least {MIN_ROWS} examples"
        return replace(found, faults=(Fault(message, TOO_FEW),))
    numbers = resolved(asked["hyperparameters"], rows, dpo=dpo)
    steps = math.ceil(len(prepared.train.sequences) / numbers["batch_size"]) * numbers["n_epochs"]
    return replace(found, hyperparameters=numbers, steps=steps)


def estimated(found: Inspection, asked: Mapping[str, Any], folder: JobFolder, place: Place) -> dict[str, Any]:
    """What training would take: an estimate from the model's shape and this machine's speed of now."""
    import torch  # noqa: PLC0415

    from manylora.adapters.training.model.base import find_shape, pick_device, pick_dtype  # noqa: PLC0415
    from manylora.adapters.training.model.loading import meta_model  # noqa: PLC0415

    assert found.hyperparameters is not None, "asked for only where there are no faults"
    config = train_config(asked, found.hyperparameters, folder, place, validation=found.validation_rows > 0)
    shape = find_shape(place.model)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, needs_fp32=config.converted)
    longest = max(1, min(config.max_length, place.max_length))
    mean = max(1, min(longest, math.ceil(found.tokens / max(1, found.rows))))
    memory = memory_of(config, mean).peak
    parameters = sum(p.numel() for p in meta_model(shape).parameters())
    # Forward and backward through frozen weights are two products each; a preference is read by both models.
    work = 4.0 * parameters * found.trained_tokens * (1.5 if config.task == "dpo" else 1.0)
    return {
        "rows": found.rows,
        "validation_rows": found.validation_rows,
        "tokens": found.tokens,
        "trained_tokens": found.trained_tokens,
        "steps": found.steps,
        "memory_bytes": memory,
        "seconds": float(f"{work / _speed(torch, device, dtype):.3g}"),
        "hyperparameters": dict(found.hyperparameters),
        "warnings": [
            {"line": each.line or None, "param": each.param, "message": each.message}
            for each in found.warnings
        ],
        "example": [{"text": text, "learned": learned} for text, learned in found.example],
    }


def told(fault: Fault) -> dict[str, Any]:
    """A fault as JSON."""
    return asdict(fault)


def public(message: str, folder: JobFolder, place: Place) -> str:
    """``message``, which may be HTML, without where things are on the machine."""
    for path, name in (
        (str(folder.data(TRAINING)), TRAINING),
        (str(folder.data(VALIDATION)), VALIDATION),
        (str(folder.root), "the job"),
        (str(place.data_dir), "the data directory"),
        (place.model, "the base model"),
    ):
        message = message.replace(path, name).replace(escape(path), name)
    return message


def _shortened(parts: Iterable[tuple[str, bool]]) -> tuple[tuple[str, bool], ...]:
    kept: list[tuple[str, bool]] = []
    left = _MAX_EXAMPLE
    for text, learned in parts:
        if len(text) > left:
            return (*kept, (f"{text[:left]}…", learned))
        kept.append((text, learned))
        left -= len(text)
    return tuple(kept)


def _config_fault(error: AdapterError, init_adapter: Path | None, folder: JobFolder, place: Place) -> Fault:
    """What can't be trained: the model, or its kind with these rows."""
    message, own = str(error), f"--init-adapter {init_adapter}: "
    if message.startswith(own):
        message = f"The model that the job goes on from: {message.removeprefix(own)}"
    elif isinstance(error, TrainingConfigError):
        return Fault(public(message, folder, place), "invalid_request")
    return Fault(public(message, folder, place), "invalid_request", "model")


def _fault(line: str, folder: JobFolder) -> Fault:
    for which in (VALIDATION, TRAINING):
        path = str(folder.data(which))
        if line.startswith(path):
            number, _, message = line.removeprefix(path).removeprefix(":").partition(": ")
            if number.isdecimal():
                return Fault(_named(message, folder), param=which, line=int(number))
            return Fault(_named(line.removeprefix(path).removeprefix(": "), folder), param=which)
    return Fault(_named(line, folder))


def _named(message: str, folder: JobFolder) -> str:
    for which in (TRAINING, VALIDATION):
        message = message.replace(str(folder.data(which)), f"the {which.replace('_', ' ')}")
    return message


def _speed(torch: Any, device: Any, dtype: Any) -> float:
    """Operations a second of products of the size that training has, measured for a moment."""
    size = 1024
    one = torch.randn(size, size, device=device).to(dtype)
    rounds, began = 0, time.monotonic()
    while time.monotonic() - began < _MEASURED:
        one = (one @ one).clamp(-1, 1)
        float(one[0, 0])  # waits for the device
        rounds += 1
    return 2.0 * size**3 * rounds / (time.monotonic() - began) * 0.5  # what is not products takes as long
