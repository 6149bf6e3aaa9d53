"""Kinds whose change of a weight is dense, sparse, orthogonal or made of blocks."""

from __future__ import annotations

from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.kinds.dense.frod import FROD
from manylora.adapters.format.kinds.dense.glora import GLORA
from manylora.adapters.format.kinds.dense.hira import HIRA
from manylora.adapters.format.kinds.dense.osf import OSF
from manylora.adapters.format.kinds.dense.randlora import RANDLORA
from manylora.adapters.format.kinds.low_rank.beft import BEFT
from manylora.adapters.format.kinds.low_rank.deft import DEFT
from manylora.adapters.format.kinds.low_rank.peanut import PEANUT
from manylora.adapters.format.kinds.orthogonal.boft import BOFT
from manylora.adapters.format.kinds.orthogonal.oft import OFT
from manylora.adapters.format.kinds.orthogonal.psoft import PSOFT
from manylora.adapters.format.kinds.orthogonal.road import ROAD
from manylora.adapters.format.kinds.sparse.shira import SHIRA
from manylora.adapters.format.kinds.sparse.supertuning import SUPERTUNING
from manylora.adapters.format.kinds.spectral.c3a import C3A
from manylora.adapters.format.kinds.spectral.fourierft import FOURIERFT
from manylora.adapters.format.kinds.spectral.waveft import WAVEFT

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
