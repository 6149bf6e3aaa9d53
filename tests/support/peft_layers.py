"""One linear layer under PEFT, and what its saved tensors come to here: any options, in milliseconds."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import get_peft_model_state_dict
from torch import nn

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES
from manylora.adapters.format.update import InputBlocks, Paired, WeightUpdate
from manylora.adapters.format.weights.delta import ModuleDelta


@dataclass(frozen=True)
class Layer:
    """A layer whose adapter PEFT trained, one input, and the output under PEFT."""

    config: peft.PeftConfig
    base: nn.Linear
    tensors: Mapping[str, torch.Tensor]  # as saved
    x: torch.Tensor  # [5, in]
    y: torch.Tensor  # [5, out]

    def delta(self) -> ModuleDelta:
        """What the saved tensors and the config mean, with their shapes checked."""
        faults = Faults()
        kind = KINDS_OF_UPDATES[str(self.config.peft_type.value)]
        settings = kind.parse(ConfigReader(self.config.to_dict(), faults))
        bias = self.base.bias is not None
        module = TargetModule("0", self.base.in_features, self.base.out_features, bias)
        layout = settings.lay_out([module], faults)
        faults.raise_any()
        plan = layout.modules["0"]
        slots = {**layout.shared, **plan.slots}
        assert {slot.key for slot in slots.values()} == set(self.tensors)
        for slot in slots.values():
            assert self.tensors[slot.key].shape in (slot.shape, *slot.others), slot.key
        parts = {part: self.tensors[slot.key] for part, slot in slots.items()}
        b_bias = parts.pop("b_bias", None)
        empty = torch.empty(0, module.in_features), torch.empty(module.out_features, 0)
        return ModuleDelta(
            *empty, update=plan.build(parts), b_bias=None if b_bias is None else b_bias.flatten()
        )

    @torch.no_grad()
    def output(self, delta: ModuleDelta) -> torch.Tensor:
        """The layer's output with ``delta`` as rank pages and a constant would add it."""
        a, b = delta.factors(self.base.weight)
        assert a.shape == (delta.rank, self.base.in_features)
        assert b.shape == (self.base.out_features, delta.rank)
        assert delta.update is not None
        change = delta.update.change(self.base.weight)
        torch.testing.assert_close(change, b @ a)
        other_form = _other_form(delta.update, self.base.weight)
        if other_form is not None:
            torch.testing.assert_close(other_form, change, atol=1e-5, rtol=1e-4)
        result: torch.Tensor = self.base(self.x) + (self.x @ a.T) @ b.T
        if delta.shifts:
            result = result + delta.shift(self.base.weight, self.base.bias)
        return result if delta.b_bias is None else result + delta.b_bias


def _other_form(update: WeightUpdate, weight: torch.Tensor) -> torch.Tensor | None:
    """The change of the weight [out, in] as what the update says it comes to, if anything."""
    if isinstance(update, InputBlocks):
        total: torch.Tensor = torch.block_diag(*update.make())
        return weight @ total.T
    if isinstance(update, Paired):
        own, other = update.make()
        partners: torch.Tensor = weight.unflatten(0, (-1, 2, update.distance)).flip(1).flatten(0, 2)
        return (own - 1)[:, None] * weight + other[:, None] * partners
    return None


def trained_layer(config: peft.PeftConfig, width_in: int, width_out: int, *, bias: bool, seed: int) -> Layer:
    """A random layer, with an adapter that is moved away from its start."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on sizes that it adjusts
        torch.manual_seed(seed)
        base = nn.Linear(width_in, width_out, bias=bias)
        kept = nn.Linear(width_in, width_out, bias=bias)
        kept.load_state_dict(base.state_dict())
        model: Any = peft.get_peft_model(nn.Sequential(base), config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
            x = torch.randn(5, width_in)
            tensors = get_peft_model_state_dict(model)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            return Layer(config, kept, tensors, x, model(x))


Draw = Callable[[random.Random], peft.PeftConfig]
_WAVELETS = ("db1", "db2", "db5", "db10", "sym2", "sym4", "sym7", "sym10", "coif1", "coif4")

# Of layers with 48 inputs or outputs, and 32 of the other: any options that PEFT takes.
_DRAWS: Mapping[str, Draw] = {
    "OFT": lambda rng: peft.OFTConfig(
        **rng.choice(
            ({"oft_block_size": rng.randint(2, 99)}, {"oft_block_size": 0, "r": rng.randint(1, 20)})
        ),
        coft=rng.random() < 0.4,
        eps=rng.uniform(0.05, 2),
        block_share=rng.random() < 0.3,
        use_cayley_neumann=rng.random() < 0.7,
        num_cayley_neumann_terms=rng.randint(2, 12),
        target_modules=["0"],
    ),
    "BOFT": lambda rng: peft.BOFTConfig(
        **rng.choice(
            ({"boft_block_size": rng.choice((2, 4, 8))}, {"boft_block_size": 0, "boft_block_num": 4})
        ),
        target_modules=["0"],
    ),
    "FOURIERFT": lambda rng: peft.FourierFTConfig(
        n_frequency=rng.choice((1, 3, 9, 30, 500, 1536)),
        scaling=rng.uniform(-50, 50),
        random_loc_seed=rng.randint(0, 10**9),
        target_modules=["0"],
    ),
    "WAVEFT": lambda rng: peft.WaveFTConfig(
        n_frequency=rng.choice((1, 3, 9, 30, 500, 1536)),
        scaling=rng.uniform(-9, 9),
        random_loc_seed=rng.randint(0, 10**9),
        wavelet_family=rng.choice(_WAVELETS),
        use_idwt=rng.random() < 0.8,
        target_modules=["0"],
    ),
    "RANDLORA": lambda rng: peft.RandLoraConfig(
        r=rng.randint(1, 40),
        randlora_alpha=rng.randint(1, 20),
        save_projection=rng.random() < 0.4,
        projection_prng_key=rng.randint(0, 10**9),
        sparse=rng.random() < 0.4,
        very_sparse=rng.random() < 0.3,
        target_modules=["0"],
    ),
    "C3A": lambda rng: peft.C3AConfig(block_size=rng.choice((1, 2, 4, 8, 16)), target_modules=["0"]),
    "ROAD": lambda rng: peft.RoadConfig(
        variant=rng.choice(("road_1", "road_2", "road_4")),
        group_size=rng.choice((2, 4, 8, 16)),
        target_modules=["0"],
    ),
    "HIRA": lambda rng: peft.HiraConfig(r=rng.randint(1, 40), target_modules=["0"]),
    "DEFT": lambda rng: peft.DeftConfig(
        r=rng.randint(1, 60),
        alpha=rng.choice((None, 3, 16)),
        decomposition_method=rng.choice(("relu", "qr")),
        para=rng.random() < 0.3,
        target_modules=["0"],
    ),
    "PEANUT": lambda rng: peft.PeanutConfig(
        r=rng.randint(1, 40),
        depth=rng.randint(0, 3),
        act_fn=rng.choice(("relu", "gelu", "gelu_new", "silu", "tanh", "mish", "quick_gelu", "leaky_relu")),
        scaling=rng.uniform(-2, 2),
        target_modules=["0"],
    ),
    "PSOFT": lambda rng: peft.PsoftConfig(
        r=rng.randint(2, 20),
        psoft_alpha=rng.randint(1, 40),
        psoft_orth=rng.random() < 0.7,
        psoft_mag_a=rng.random() < 0.5,
        psoft_mag_b=rng.random() < 0.5,
        ab_svd_init=rng.choice(("psoft_init", "pissa_init")),
        psoft_svd=rng.choice(("full", "lowrank")),
        psoft_svd_lowrank_niter=rng.randint(0, 5),
        random_seed=rng.randint(0, 10**6),
        use_cayley_neumann=rng.random() < 0.5,
        num_cayley_neumann_terms=rng.randint(1, 9),
        cayley_neumann_eps=rng.choice((None, 0.3, 0.9)),
        target_modules=["0"],
    ),
    "OSF": lambda rng: peft.OSFConfig(
        effective_rank=rng.choice((None, 1, 20, 31, 99, 0.25, 0.9, 1.0)), target_modules=["0"]
    ),
    "FROD": lambda rng: peft.FrodConfig(
        sparse_rate=rng.choice((0.001, 0.02, 0.3, 1.0)), progressbar=False, target_modules=["0"]
    ),
    "GLORA": lambda rng: peft.GloraConfig(
        r=rng.randint(1, 9),
        config_A_B=rng.choice(("lora", "vector", "constant", "none")),
        config_C=rng.choice(("lora", "vector", "none")),
        config_D_E=rng.choice(("vector", "constant", "none")),
        target_modules=["0"],
    ),
    "SHIRA": lambda rng: peft.ShiraConfig(r=rng.randint(1, 19), target_modules=["0"]),
    "SUPERTUNING": lambda rng: peft.SupertuningConfig(
        sparsity=rng.choice((0.0, 0.5, 0.99, 0.999)),
        r=rng.choice((None, 1, 4, 30)),
        select_top=rng.random() < 0.5,
        target_modules=["0"],
    ),
    "BEFT": lambda rng: peft.BeftConfig(target_modules=["0"]),  # noqa: ARG005 - it has no options
}
KINDS = tuple(_DRAWS)


def random_config(kind: str, rng: random.Random) -> peft.PeftConfig:
    """A config of that kind with options drawn from those that PEFT takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on options that others switch off
        return _DRAWS[kind](rng)
