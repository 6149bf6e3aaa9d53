"""Changes of weights that are not stored as A and B, and what a kind of adapter that makes them has to say.

A kind (``format/kinds/``) parses its part of the config to :class:`KindSettings`. Those say which tensors
every target module needs, before any is read, and how its tensors become a :class:`WeightUpdate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.faults import Faults


class NoUpdate(ArtifactError):
    """No change can be computed from the tensors of a module; ``str()`` is the reason, without the module."""

    def __init__(self, reason: str) -> None:
        super().__init__([reason])


class WeightUpdate(Protocol):
    """A change ΔW of a module's weight W [out, in], to be added to it, as factors of low or of full rank.

    Nothing of the size of the factors is allocated before they are asked for.
    """

    @property
    def rank(self) -> int:
        """Rows of A that :meth:`factors` gives: what ΔW takes in rank pages."""

    @property
    def stated_rank(self) -> int:
        """The rank that the config states, which ``--max-lora-rank`` limits; 0 where it states none."""

    @property
    def needs_weight(self) -> bool:
        """Whether ΔW depends on W."""

    def factors(self, weight: torch.Tensor | None, /) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, in] and B [out, rank] with ΔW = B A, float32 on the CPU.

        ``weight`` is W [out, in] in the dtype and on the device where it is served; it may be None unless
        the update needs it.

        Raises:
            NoUpdate: see there.
        """

    def change(self, weight: torch.Tensor | None, /) -> torch.Tensor:
        """ΔW itself [out, in], float32 on the CPU; ``weight`` and errors as for :meth:`factors`."""


Shift = Callable[[torch.Tensor | None, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Shifted:
    """A change of a weight, and beside it a vector that is added to the module's outputs."""

    update: WeightUpdate
    shift: Shift  # c [out] float32, from W and b of the base, float32 on the CPU; W as ``update`` needs it

    @property
    def rank(self) -> int:
        return self.update.rank

    @property
    def stated_rank(self) -> int:
        return self.update.stated_rank

    @property
    def needs_weight(self) -> bool:
        return self.update.needs_weight

    def factors(self, weight: torch.Tensor | None, /) -> tuple[torch.Tensor, torch.Tensor]:
        return self.update.factors(weight)

    def change(self, weight: torch.Tensor | None, /) -> torch.Tensor:
        return self.update.change(weight)


@dataclass(frozen=True, slots=True)
class Paired:
    """A change of a weight that comes to y_i + (u_i - 1) y_i + v_i y_j, j being the partner of output i.

    Outputs lie in groups of 2 ``distance``, which divide them all; those of the first half of a group are
    the partners of those of the second, ``distance`` further. y has the base's bias.
    """

    update: WeightUpdate  # the same change; Shifted where there is a bias
    distance: int
    make: Callable[[], tuple[torch.Tensor, torch.Tensor]]  # u and v, [out] float32

    @property
    def rank(self) -> int:
        return self.update.rank

    @property
    def stated_rank(self) -> int:
        return self.update.stated_rank

    @property
    def needs_weight(self) -> bool:
        return self.update.needs_weight

    def factors(self, weight: torch.Tensor | None, /) -> tuple[torch.Tensor, torch.Tensor]:
        return self.update.factors(weight)

    def change(self, weight: torch.Tensor | None, /) -> torch.Tensor:
        return self.update.change(weight)


@dataclass(frozen=True, slots=True)
class InputBlocks:
    """A change of a weight that comes to W (Q x), with Q x made block by block of the inputs."""

    update: WeightUpdate  # the same change
    size: int  # inputs of a block; it divides all
    make: Callable[
        [], torch.Tensor
    ]  # [in / size, size, size] float32: what a block of inputs, a row, is times

    @property
    def rank(self) -> int:
        return self.update.rank

    @property
    def stated_rank(self) -> int:
        return self.update.stated_rank

    @property
    def needs_weight(self) -> bool:
        return self.update.needs_weight

    def factors(self, weight: torch.Tensor | None, /) -> tuple[torch.Tensor, torch.Tensor]:
        return self.update.factors(weight)

    def change(self, weight: torch.Tensor | None, /) -> torch.Tensor:
        return self.update.change(weight)


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor that an artifact must hold."""

    key: str
    shape: tuple[int, ...]
    integers: bool = False  # whether it holds indices rather than floats
    others: tuple[tuple[int, ...], ...] = ()  # shapes that will do as well
    as_floats: bool = False  # whether floats that are whole numbers will do for integers


Build = Callable[[Mapping[str, torch.Tensor]], WeightUpdate]


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """What one module needs of the file, and what becomes of that."""

    slots: Mapping[str, Slot]  # part -> its tensor; see also ModuleDelta.b_bias
    build: Build  # from the tensors of ``slots`` and of the shared ones, by part
    stated_rank: int = 0  # see WeightUpdate


@dataclass(frozen=True, slots=True)
class KindLayout:
    """Every tensor that an adapter of a kind must hold, but for replaced biases and tables."""

    modules: Mapping[str, ModulePlan]  # of every target module
    shared: Mapping[str, Slot] = field(default_factory=dict)  # part -> a tensor that modules share


class KindSettings(Protocol):
    """What the config of an adapter of one kind says, parsed."""

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults, /) -> KindLayout:
        """The tensors needed for ``targets``, in the base's forward order.

        What the config says may be impossible for the shape of a module: that is a fault, and the layout
        is then not used. Allocates nothing that depends on the config's numbers.
        """
