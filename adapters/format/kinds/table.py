"""The kinds of adapters that are served: LoRA, IA3, VeRA, soft prompts, and one module for each other one."""

from __future__ import annotations

from collections.abc import Mapping

from manylora.adapters.format.config import support
from manylora.adapters.format.config.soft_prompts import SOFT_PROMPT_OPTIONS
from manylora.adapters.format.config.support import Kind, Option, Treatment
from manylora.adapters.format.config.weight_kind import Kinds, WeightKind
from manylora.adapters.format.kinds.low_rank.adalora import ADALORA
from manylora.adapters.format.kinds.low_rank.delora import DELORA
from manylora.adapters.format.kinds.low_rank.gralora import GRALORA
from manylora.adapters.format.kinds.low_rank.loha import LOHA
from manylora.adapters.format.kinds.low_rank.lokr import LOKR
from manylora.adapters.format.kinds.low_rank.miss import BONE, MISS
from manylora.adapters.format.kinds.low_rank.poly import POLY
from manylora.adapters.format.kinds.matrices import MATRIX_KINDS
from manylora.adapters.format.kinds.orthogonal.hra import HRA
from manylora.adapters.format.kinds.shared.pvera import PVERA
from manylora.adapters.format.kinds.shared.tinylora import TINYLORA
from manylora.adapters.format.kinds.shared.unilora import UNILORA
from manylora.adapters.format.kinds.shared.vblora import VBLORA

_ALL: tuple[WeightKind, ...] = (
    ADALORA,
    BONE,
    DELORA,
    GRALORA,
    HRA,
    LOHA,
    LOKR,
    MISS,
    POLY,
    PVERA,
    TINYLORA,
    UNILORA,
    VBLORA,
    *MATRIX_KINDS,
)

KINDS_OF_UPDATES: Kinds = {kind.peft_type: kind for kind in _ALL}

# The options of every kind that is served.
OPTIONS: Mapping[str, tuple[Option, ...]] = {
    **support.OPTIONS,
    **{kind.peft_type: kind.options for kind in _ALL},
    **SOFT_PROMPT_OPTIONS,
}

# Every kind of PEFT, served or not.
KINDS: tuple[Kind, ...] = (
    *(kind for kind in support.KINDS if kind.treatment is Treatment.SERVED),
    *(Kind(kind.peft_type, f"{kind.form}; {kind.cost}", treatment=Treatment.SERVED) for kind in _ALL),
    *(kind for kind in support.KINDS if kind.treatment is not Treatment.SERVED),
)
