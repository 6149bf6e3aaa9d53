"""Bases with tables of a small vocabulary, and reading adapters of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, read_artifact
from manylora.adapters.format.base import BaseModel, BaseVocabulary
from tests.support.artifact_cases import BASE, LIMITS

V, D = 20, 8
EMBEDDING, HEAD = "base_model.model.model.embed_tokens.", "base_model.model.lm_head."
UNTIED, TIED, BIASED = (
    dataclasses.replace(
        BASE,
        vocabulary=BaseVocabulary("model.embed_tokens", "lm_head", V, D, D, tied=tied, head_bias=bias),
    )
    for tied, bias in ((False, False), (True, False), (False, True))
)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def load(path: Path, base: BaseModel = UNTIED) -> Artifact:
    return read_artifact(path, base, LIMITS)


def faults(path: Path, base: BaseModel = UNTIED) -> tuple[str, ...]:
    with pytest.raises(ArtifactError) as error:
        load(path, base)
    return error.value.faults
