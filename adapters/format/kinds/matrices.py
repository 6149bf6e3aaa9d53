"""Kinds whose change of a weight is dense, sparse, orthogonal or made of blocks."""

from __future__ import annotations

from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.kinds.beft import BEFT
from manylora.adapters.format.kinds.boft import BOFT
from manylora.adapters.format.kinds.c3a import C3A
from manylora.adapters.format.kinds.deft import DEFT
from manylora.adapters.format.kinds.fourierft import FOURIERFT
from manylora.adapters.format.kinds.frod import FROD
from manylora.adapters.format.kinds.glora import GLORA
from manylora.adapters.format.kinds.hira import HIRA
from manylora.adapters.format.kinds.oft import OFT
from manylora.adapters.format.kinds.osf import OSF
from manylora.adapters.format.kinds.peanut import PEANUT
from manylora.adapters.format.kinds.psoft import PSOFT
from manylora.adapters.format.kinds.randlora import RANDLORA
from manylora.adapters.format.kinds.road import ROAD
from manylora.adapters.format.kinds.shira import SHIRA
from manylora.adapters.format.kinds.supertuning import SUPERTUNING
from manylora.adapters.format.kinds.waveft import WAVEFT

MATRIX_KINDS: tuple[WeightKind, ...] = (
    OFT,
    BOFT,
    HIRA,
    RANDLORA,
    FOURIERFT,
    WAVEFT,
    C3A,
    ROAD,
    SHIRA,
    SUPERTUNING,
    DEFT,
    PEANUT,
    PSOFT,
    OSF,
    FROD,
    GLORA,
    BEFT,
)
