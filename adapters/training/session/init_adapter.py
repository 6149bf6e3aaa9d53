"""The adapter that a run goes on from: a directory, or a name in the registry of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from manylora.adapters.base_models.directory import default_data_dir
from manylora.adapters.errors import AdapterError
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME, FileFault, read_config
from manylora.adapters.format.provenance import read_provenance
from manylora.adapters.registry.registry import Registry
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.model.base import Base

DATA_DIR, REGISTRY_URL = "MANYLORA_DATA_DIR", "MANYLORA_REGISTRY_URL"  # as the server reads them


def find_init_adapter(config: TrainConfig, base: Base) -> Path:
    """The directory of the adapter that ``config`` goes on from.

    Raises:
        TrainingConfigError: there is none, or it can't be trained further on this base.
    """
    assert config.init_adapter is not None, "asked for only where there is one"
    given = config.init_adapter
    path = Path(given).expanduser()
    directory = path if path.is_dir() else _registered(given)
    fault = _fault(directory, config, base)
    if fault is not None:
        raise TrainingConfigError(f"--init-adapter {given}: {fault}")
    return directory


def _registered(name: str) -> Path:
    """The directory of the current revision of ``name``, or of ``name@DIGEST``."""
    data_dir = Path(os.environ.get(DATA_DIR) or default_data_dir()).expanduser()
    database = data_dir / "registry.db"
    url = os.environ.get(REGISTRY_URL)
    if not url and not database.is_file():
        raise TrainingConfigError(
            f"--init-adapter {name}: there is no such directory, and no registry at {database} "
            f"(${DATA_DIR} names another data directory)"
        )
    wanted, _, prefix = name.partition("@")
    try:
        with Registry(url or f"sqlite:///{database.resolve()}") as registry:
            record = registry.names.get(wanted)
    except AdapterError as error:
        raise TrainingConfigError(
            f"--init-adapter {name}: neither a directory nor a name in the registry: {error}"
        ) from error
    found = [digest for digest in record.history if digest.startswith(prefix)]
    if not found:
        raise TrainingConfigError(f"--init-adapter {name}: {wanted} has no such revision")
    return data_dir / "adapters" / found[0]


def _fault(directory: Path, config: TrainConfig, base: Base) -> str | None:
    """Why the adapter in ``directory`` can't be trained further, or None."""
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (directory / name).is_file():
            return f"there is no {name} in {directory}"
    try:
        written = read_config(directory / CONFIG_NAME)
    except FileFault as error:
        return str(error)
    if str(written.get("peft_type")).upper() != "LORA":
        return f"its peft_type is {written.get('peft_type')!r}: only LORA is trained here"
    # One that says nothing may be anything but an adapter that embeds, whose tensors have other names.
    known_tasks = {config.task_type} | (set() if config.task == "embedding" else {None})
    if written.get("task_type") not in known_tasks:
        return f"its task_type is {written.get('task_type')!r}, which task {config.task} does not train"
    known, own = read_provenance(directory).base_fingerprint, base.fingerprint
    if known is not None and own is not None and known != own:
        return f"it was trained on another base than {base.name}"
    return None
