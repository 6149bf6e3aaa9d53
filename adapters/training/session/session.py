"""Everything that a run is made of, found and checked before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging as transformers_logging

from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.adapters.format.pooling import PoolingConfig
from manylora.adapters.format.provenance import Provenance
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.prepare import Prepared
from manylora.adapters.training.data.summary import show_data
from manylora.adapters.training.model.base import Base
from manylora.adapters.training.model.embedding import pooling_of
from manylora.adapters.training.model.loading import BaseLoader
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.init_adapter import find_init_adapter
from manylora.adapters.training.session.own_template import base_of
from manylora.adapters.training.session.prepare_data import prepare_data


@dataclass(frozen=True)
class Session:
    """Everything a run is made of before it starts."""

    config: TrainConfig
    base: Base
    prepared: Prepared
    folder: Folder
    loader: BaseLoader
    init_adapter: Path | None = None  # the directory of the adapter to go on from
    lineage: Mapping[str, Any] = field(default_factory=dict)  # recorded in the adapter too

    @property
    def digests(self) -> dict[str, str]:
        """Of what a run is made of beside its configuration: its data, and what it goes on from."""
        digests = {"data": self.prepared.digest}
        if self.config.chat_template is not None:
            text = self.config.chat_template.read_bytes()
            digests["the text of chat_template"] = hashlib.sha256(text).hexdigest()
        if self.init_adapter is not None:
            weights = (self.init_adapter / WEIGHTS_NAME).read_bytes()
            digests["init_adapter"] = hashlib.sha256(weights).hexdigest()
        return digests

    @property
    def pooling(self) -> PoolingConfig:
        """How an adapter that embeds pools hidden states."""
        return pooling_of(self.config, self.base.directory, self.init_adapter)

    @property
    def provenance(self) -> Provenance:
        """What the adapter's file says of its base."""
        return Provenance(self.config.quantization, self.base.fingerprint, self.lineage)


def open_session(config: TrainConfig, console: Console) -> Session:
    """Find the base, check the data and show what is in it."""
    transformers_logging.disable_progress_bar()
    base = base_of(config)
    init_adapter = None if config.init_adapter is None else find_init_adapter(config, base)
    prepared = prepare_data(config, base)
    show_data(prepared, console)
    return Session(
        config,
        base,
        prepared,
        Folder(config.output_dir, config.product),
        BaseLoader(config, base, prepared.classes),
        init_adapter,
    )
