"""What an adapter changes about one linear layer of the base."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manylora.adapters.format.update import Paired, Shifted, WeightUpdate


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """The change to one module ``y = W x + b``; parts that the adapter does not have are None.

    Alone, the adapter computes

        y = l_out ⊙ (g ⊙ (W (l_in ⊙ x) + B' A x) + b') + s b_B

    with B' = :meth:`scaled_b`, g = magnitude / ‖W + B' A‖ per output (1 without a magnitude) and
    b' = ``bias`` (b without one). With an ``update`` its change takes the place of B' A, and there is no
    other A and B; :meth:`shift` is then added as well. If the module is a norm, w ⊙ n(x) + b, it computes
    w' ⊙ n(x) + b' with w' = ``scale``. Tensors are as stored, float32, float16 or bfloat16; modules may
    share them.
    """

    a: torch.Tensor  # [r, in]; r may be 0
    b: torch.Tensor  # [out, r]
    scaling: float = 1.0  # s: alpha / r, or alpha / √r under rsLoRA, with the patterns applied
    a_scale: torch.Tensor | None = None  # [r], of the rows of A: VeRA (https://arxiv.org/abs/2310.11454)
    b_scale: torch.Tensor | None = None  # [out], of the rows of B: VeRA
    magnitude: torch.Tensor | None = None  # [out], DoRA (https://arxiv.org/abs/2402.09353)
    b_bias: torch.Tensor | None = None  # [out], b_B: lora_bias
    bias: torch.Tensor | None = None  # [out], takes the place of b: bias="lora_only" or "all"
    output_scale: torch.Tensor | None = None  # [out], l_out: IA3 (https://arxiv.org/abs/2205.05638)
    input_scale: torch.Tensor | None = None  # [in], l_in: IA3 on feed-forward modules
    scale: torch.Tensor | None = None  # [D], w': LN tuning (https://arxiv.org/abs/2312.11420)
    update: WeightUpdate | None = None  # of kinds whose files hold something else than A and B

    @property
    def rank(self) -> int:
        """The rank of the change: rows of the A that :meth:`factors` gives."""
        return self.a.shape[0] if self.update is None else self.update.rank

    @property
    def stated_rank(self) -> int:
        """The rank that ``--max-lora-rank`` limits."""
        return self.a.shape[0] if self.update is None else self.update.stated_rank

    @property
    def needs_weight(self) -> bool:
        """Whether :meth:`factors` needs the module's weight."""
        return self.update is not None and self.update.needs_weight

    def factors(self, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A [r, in] and B' [out, r], the latter float32. ``weight`` is W, where :attr:`needs_weight`.

        Raises:
            NoUpdate: there is no such change.
        """
        return (self.a, self.scaled_b()) if self.update is None else self.update.factors(weight)

    @property
    def shifts(self) -> bool:
        """Whether the update comes with a vector that is added to the outputs."""
        return self._shifted is not None

    @property
    def _shifted(self) -> Shifted | None:
        update = self.update.update if isinstance(self.update, Paired) else self.update
        return update if isinstance(update, Shifted) else None

    def shift(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """What the update adds to the outputs beside its change of W, [out] float32; only if :attr:`shifts`.

        ``weight`` and ``bias`` are the base's; the adapter's own bias takes the place of that.
        """
        shifted = self._shifted
        assert shifted is not None, "there is no such vector"
        own = bias if self.bias is None else self.bias
        return shifted.shift(
            None if weight is None else weight.to("cpu", torch.float32),
            None if own is None else own.to("cpu", torch.float32),
        )

    def scaled_b(self) -> torch.Tensor:
        """B with all scales folded in, [out, r] float32."""
        b = self.b.float() * self.scaling
        if self.a_scale is not None:
            b = b * self.a_scale.float()
        return b if self.b_scale is None else b * self.b_scale.float()[:, None]
