"""A valid config of every kind whose change is a matrix, and the tensors that it needs."""

from __future__ import annotations

from typing import Any

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.config.targets import select_targets
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES
from manylora.adapters.format.weights.expected_tensors import lay_out
from tests.support.kind_cases import BASE

VALID: dict[str, dict[str, Any]] = {
    "OFT": {"r": 0, "oft_block_size": 4, "use_cayley_neumann": True},
    "BOFT": {"boft_block_size": 4},
    "FOURIERFT": {"n_frequency": 5},
    "WAVEFT": {"n_frequency": 5},
    "RANDLORA": {"r": 3},
    "C3A": {"block_size": 4},
    "ROAD": {"group_size": 4},
    "HIRA": {"r": 3},
    "DEFT": {"r": 3},
    "PEANUT": {"r": 3, "depth": 1},
    "PSOFT": {"r": 3},
    "OSF": {"effective_rank": 3},
    "FROD": {"sparse_rate": 0.1},
    "GLORA": {"r": 3},
    "SHIRA": {"r": 1},
    "SUPERTUNING": {"sparsity": 0.9, "r": 2},
    "BEFT": {},
}


def config_of(kind: str, **options: object) -> dict[str, Any]:
    return {"peft_type": kind, "target_modules": ["q_proj", "up_proj"], **VALID[kind], **options}


def tensors_of(config: dict[str, Any], base: BaseModel = BASE) -> dict[str, torch.Tensor]:
    """Random tensors that the valid config of the kind needs."""
    faults = Faults()
    parsed = parse_config(config, faults, KINDS_OF_UPDATES)
    assert parsed is not None
    targets = select_targets(parsed, base, faults)
    assert targets is not None
    layout = lay_out(parsed, targets, base, faults)
    faults.raise_any()
    assert layout is not None
    torch.manual_seed(3)
    made = {}
    for slot in layout.slots():
        made[slot.key] = (
            torch.zeros(slot.shape, dtype=torch.int64) if slot.integers else torch.rand(slot.shape)
        )
        if slot.key.endswith(("randlora_A", "randlora_B")):
            made[slot.key] = torch.ones(slot.shape)
        if ".frod_s_size." in slot.key:
            made[slot.key] = torch.tensor([8, 8])
    return made
