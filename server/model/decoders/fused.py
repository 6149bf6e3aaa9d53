"""The fused decoder: weights taken from a Hugging Face model of a known family, run as one step call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from manylora.adapters.format.base import CacheShape
from manylora.server.errors import ConfigError
from manylora.server.kernels.capturing import Capturing
from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.inputs import EmbeddedRows, KeptStates, StepInputs
from manylora.server.kernels.ranks import Ranks
from manylora.server.kernels.reference.linear import row_by_row
from manylora.server.kernels.reference.soft_prompts import embed_prompts
from manylora.server.kernels.reference.step import ReferenceStep, bend
from manylora.server.kernels.reference.vocabulary import Multiply, plan_vocabulary
from manylora.server.kernels.weights import DecoderWeights, MergedWeights
from manylora.server.model.decoders.extraction import (
    extract_weights,
    free_matrices,
    projections,
    target_modules,
)
from manylora.server.model.decoders.families import ACTIVATIONS, FAMILIES
from manylora.server.model.decoders.quantize import is_quantized
from manylora.server.model.decoders.taken import TakenAdapters
from manylora.server.model.pages.tables import BaseTables

if TYPE_CHECKING:
    from manylora.server.kernels.cuda.backend import TritonStep
    from manylora.server.kernels.cuda.fixed.step import FixedStep

logger = logging.getLogger(__name__)


class FusedDecoder:
    """The lean decoder of the families that :data:`FAMILIES` lists."""

    name = "fused"

    def __init__(
        self,
        model: Any,
        max_len: int,
        kernels: str = "auto",
        *,
        coded_cache: bool = False,
        deterministic: bool = False,
        ranks: Ranks | None = None,
        tell: Callable[[StepInputs], None] | None = None,
    ) -> None:
        """Take the weights of ``model``, a Hugging Face causal LM of one of :data:`FAMILIES`.

        ``kernels`` is "auto" (native where they run, else PyTorch), "native" or "pytorch". ``coded_cache``:
        keys and values are kept in 8 bits. ``deterministic``: rows have the same bits in any company. With
        ``ranks`` the model is one rank's part of a larger one, and before each of its own parts of a step
        this one calls ``tell``.

        Raises:
            ConfigError: native kernels were asked for and can't run here, or not on a cache in 8 bits; or
                nothing that runs here is deterministic.
        """
        self.weights = replace(extract_weights(model, max_len), ranks=ranks)
        self._tell = tell
        self._family = FAMILIES[model.config.model_type]
        self.modules = target_modules(model)
        self._backend: type[NativeStep | ReferenceStep | TritonStep | FixedStep]
        self._multiply: Multiply = F.linear
        self.taken: TakenAdapters | None = None  # None: all that can be served
        if deterministic:
            self._be_deterministic()
        else:
            self._backend, self.kernels_note = _choose_backend(self.weights, kernels)
        self._coded_cache = coded_cache
        if coded_cache and not issubclass(self._backend, NativeStep | ReferenceStep):
            raise ConfigError(
                "--kv-cache-dtype int8: the Triton kernels read keys and values of 16 or 32 bits only; "
                "--kernels pytorch has a cache in 8 bits on a GPU as well"
            )
        self._step: NativeStep | ReferenceStep | TritonStep | FixedStep | None = None
        self.tables = BaseTables(self.weights.embedding, self.weights.lm_head)
        self.vocab_size = self.weights.vocab_size

    def _be_deterministic(self) -> None:
        backend = deterministic_backend(self.weights)
        self._backend, self.kernels_note = backend, backend.origin()
        if issubclass(backend, NativeStep):
            self._multiply = row_by_row
            logger.info("--deterministic: the native kernels keep a row's bits in any company anyway")
        else:
            self._multiply, self.taken = backend.multiply, TakenAdapters(self.weights, self.modules)

    @staticmethod
    def unsupported(model: Any) -> str | None:
        """Why this decoder can't run ``model``, or None if it can."""
        config = model.config
        family = FAMILIES.get(config.model_type)
        if family is None:
            return f"model type {config.model_type!r} is not of a family that the fused decoder knows"
        activation = getattr(config, family.activation)
        if activation not in ACTIVATIONS:
            return f"activation {activation!r}"
        if getattr(config, "use_bidirectional_attention", False):
            return "attention in both directions"
        linear = all(
            type(module) is nn.Linear or is_quantized(module) for module in projections(model).values()
        )
        if family.experts is not None and any(is_quantized(m) for m in projections(model).values()):
            return "experts of a quantized base"
        return None if linear else "its linear layers are not plain ones"

    @property
    def native(self) -> bool:
        """Whether steps run in kernels of our own, for the device."""
        return self._backend is not ReferenceStep

    @property
    def kernels(self) -> str:
        return self._backend.name if self._step is None else self._step.name

    @property
    def cache_shape(self) -> CacheShape:
        weights = self.weights
        return CacheShape(len(weights.layers), weights.n_kv_heads, weights.head_dim)

    @property
    def kv_bytes_per_block(self) -> int:
        if issubclass(self._backend, NativeStep | ReferenceStep):
            return self._backend.kv_bytes_per_block(self.weights, coded_cache=self._coded_cache)
        return self._backend.kv_bytes_per_block(self.weights)

    def weight(self, module: int) -> torch.Tensor:
        return (self.weights if self._step is None else self._step).weight(module)

    def bias(self, module: int) -> torch.Tensor | None:
        return self.weights.bias(module)

    def allocate(self, pool: torch.Tensor, num_blocks: int, max_rows: int) -> None:
        self._pool = pool
        if issubclass(self._backend, NativeStep):
            threads, coded = torch.get_num_threads(), self._coded_cache
            self._step = self._backend(self.weights, pool, num_blocks, max_rows, threads, coded_cache=coded)
        elif issubclass(self._backend, ReferenceStep):
            self._step = self._backend(self.weights, pool, num_blocks, coded_cache=self._coded_cache)
        else:
            self._step = self._backend(self.weights, pool, num_blocks)

    @property
    def merge_groups(self) -> Sequence[tuple[int, ...]]:
        return self.weights.groups()

    def merged(self) -> MergedWeights:
        assert self._step is not None, "allocate() comes first"
        return self._step.merged()

    def step(self, inputs: StepInputs) -> torch.Tensor:
        assert self._step is not None, "allocate() comes before step()"
        plan = plan_vocabulary(self._pool, self.weights.embedding, inputs, self.vocab_size, self._multiply)
        if plan is not None:
            inputs = plan.prepare(inputs)
            inputs = replace(inputs, embedded=_scaled(inputs.embedded, self.weights.embedding_scale))
        if inputs.prompts:
            # What scales embeddings inside their module leaves virtual tokens as they are.
            scale = 1.0 if self._family.scaled_embeddings else self.weights.embedding_scale
            inputs = embed_prompts(self._pool, self.weights.embedding.shape[1], inputs, scale)
        if inputs.states is not None:
            inputs = self._keep_states(inputs, inputs.states)
        logits = self.run(inputs)
        if plan is None:
            return logits
        logits = plan.correct(logits, inputs.hidden)
        if inputs.raw_logits:
            logits = bend(logits, self.weights)
        return plan.conclude(logits, inputs.hidden)

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """What kernels run of a step: embeddings of adapters are given, their heads are not applied."""
        assert self._step is not None, "allocate() comes first"
        if self._tell is not None:
            self._tell(inputs)
        return self._step.step(inputs)

    def _keep_states(self, inputs: StepInputs, states: KeptStates) -> StepInputs:
        """The step with room for its final hidden states, which are those that ``states`` gets."""
        hidden, like = inputs.hidden, self.weights.embedding
        if hidden is None:
            shape = len(inputs.logits_rows), like.shape[1]
            hidden = torch.empty(shape, dtype=like.dtype, device=like.device)
        states.values = hidden
        return replace(inputs, hidden=hidden)

    @property
    def draw(self) -> Draw:
        assert self._step is not None, "allocate() comes first"
        return self._step.draw

    @property
    def capturing(self) -> Capturing | None:
        step = self._step
        return None if step is None or isinstance(step, NativeStep | ReferenceStep) else step.capturing

    def take_over(self, model: Any) -> None:
        """The step has its own form of the matrices: let go of the model's, and of the stacked ones."""
        assert self._step is not None, "allocate() comes first"
        self.tables.drop_head()
        self.weights = self.weights.without_matrices()
        free_matrices(model, codes=isinstance(self._step, NativeStep))

    @property
    def weight_bytes(self) -> int:
        assert self._step is not None, "allocate() comes first"
        return self._step.weight_bytes


def _scaled(rows: EmbeddedRows | None, scale: float) -> EmbeddedRows | None:
    return rows if rows is None or scale == 1.0 else replace(rows, values=rows.values * scale)


def _choose_backend(
    weights: DecoderWeights, kernels: str
) -> tuple[type[NativeStep | ReferenceStep | TritonStep], str]:
    """The step to run, and why in one phrase."""
    if kernels == "pytorch":
        return ReferenceStep, "chosen by --kernels pytorch"
    native = native_backend(weights.embedding.device)
    reason = native if isinstance(native, str) else native.unsupported(weights)
    if reason is None:
        assert not isinstance(native, str)
        return native, native.origin()
    if kernels == "native":
        raise ConfigError(f"--kernels native: {reason}")
    logger.log(
        logging.INFO if weights.embedding.device.type == "cpu" else logging.WARNING,
        "PyTorch kernels: %s",
        reason,
    )
    return ReferenceStep, reason


def accelerator_name(device: torch.device) -> str:
    """What people call that kind of device."""
    if device.type == "cuda":
        return "CUDA" if torch.version.hip is None else "ROCm"
    return device.type.upper()


def native_backend(device: torch.device) -> type[NativeStep | TritonStep] | str:
    """The backend with kernels of our own for ``device``, or why there is none."""
    if device.type == "cpu":
        return NativeStep
    if device.type != "cuda" or torch.version.hip is not None:
        return f"there are kernels of our own for NVIDIA GPUs and CPUs, not for {accelerator_name(device)}"
    try:
        from manylora.server.kernels.cuda.backend import TritonStep  # noqa: PLC0415 - only CUDA builds bring Triton
    except ImportError as error:
        return f"Triton can't be imported: {error}"
    return TritonStep


def deterministic_backend(weights: DecoderWeights) -> type[NativeStep | FixedStep]:
    """The step whose rows have the same bits in any company.

    Raises:
        ConfigError: there is none for these weights, or their device.
    """
    native = native_backend(weights.embedding.device)
    if isinstance(native, str):
        raise ConfigError(f"--deterministic: {native}")
    if issubclass(native, NativeStep):
        backend: type[NativeStep | FixedStep] = native
    else:
        from manylora.server.kernels.cuda.fixed.step import FixedStep  # noqa: PLC0415 - only CUDA builds bring Triton

        backend = FixedStep
    if (reason := backend.unsupported(weights)) is not None:
        raise ConfigError(f"--deterministic: {reason}")
    return backend
