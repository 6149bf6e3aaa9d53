"""The fused decoder: Llama-family weights taken from a Hugging Face model, run as one step call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from manylora.adapters.base_models.layers import target_of
from manylora.adapters.format.base import CacheShape, TargetModule
from manylora.server.errors import ConfigError
from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.quantized import Quantized
from manylora.server.kernels.reference.soft_prompts import embed_prompts
from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.reference.vocabulary import plan_vocabulary
from manylora.server.kernels.weights import (
    DecoderWeights,
    LayerWeights,
    Matrix,
    MergedWeights,
    QuantizedMatrix,
    stack_biases,
)
from manylora.server.model.decoders.quantize import is_quantized
from manylora.server.model.pages.tables import BaseTables

if TYPE_CHECKING:
    from manylora.server.kernels.cuda.backend import TritonStep

logger = logging.getLogger(__name__)

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})

_PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_NORMS = ("input_layernorm", "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm")


class FusedDecoder:
    """The lean decoder of the Llama family."""

    name = "fused"

    def __init__(self, model: Any, max_len: int, kernels: str = "auto", *, coded_cache: bool = False) -> None:
        """Take the weights of ``model``, a Hugging Face causal LM of one of :data:`FAMILIES`.

        ``kernels`` is "auto" (native where they run, else PyTorch), "native" or "pytorch". ``coded_cache``:
        keys and values are kept in 8 bits.

        Raises:
            ConfigError: native kernels were asked for and can't run here, or not on a cache in 8 bits.
        """
        self.weights = extract_weights(model, max_len)
        self.modules = _target_modules(model)
        self._backend: type[NativeStep | ReferenceStep | TritonStep]
        self._backend, self.kernels_note = _choose_backend(self.weights, kernels)
        self._coded_cache = coded_cache
        if coded_cache and not issubclass(self._backend, NativeStep | ReferenceStep):
            raise ConfigError(
                "--kv-cache-dtype int8: the Triton kernels read keys and values of 16 or 32 bits only; "
                "--kernels pytorch has a cache in 8 bits on a GPU as well"
            )
        self._step: NativeStep | ReferenceStep | TritonStep | None = None
        self.tables = BaseTables(self.weights.embedding, self.weights.lm_head)
        self.vocab_size = self.weights.lm_head.shape[0]

    @staticmethod
    def unsupported(model: Any) -> str | None:
        """Why this decoder can't run ``model``, or None if it can."""
        config = model.config
        if config.model_type not in FAMILIES:
            return f"model type {config.model_type!r} is not of the Llama family"
        if config.hidden_act != "silu":
            return f"activation {config.hidden_act!r}"
        linear = all(
            type(module) is nn.Linear or is_quantized(module) for module in _projections(model).values()
        )
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
        plan = plan_vocabulary(self._pool, self.weights.embedding, inputs, self.vocab_size)
        width = self.weights.embedding.shape[1]
        if plan is None:
            return self._step.step(embed_prompts(self._pool, width, inputs))
        inputs = embed_prompts(self._pool, width, plan.prepare(inputs))
        return plan.finish(self._step.step(inputs), inputs.hidden)

    @property
    def draw(self) -> Draw:
        assert self._step is not None, "allocate() comes first"
        return self._step.draw

    def take_over(self, model: Any) -> None:
        """The step has its own form of the matrices: let go of the model's, and of the stacked ones."""
        assert self._step is not None, "allocate() comes first"
        self.tables.drop_head()
        self.weights = self.weights.without_matrices()
        for module in _projections(model).values():
            if not is_quantized(module):
                module.weight = nn.Parameter(module.weight.to("meta"), requires_grad=False)

    @property
    def weight_bytes(self) -> int:
        assert self._step is not None, "allocate() comes first"
        return self._step.weight_bytes


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
    logger.info("PyTorch kernels: %s", reason)
    return ReferenceStep, reason


def native_backend(device: torch.device) -> type[NativeStep | TritonStep] | str:
    """The backend with kernels of our own for ``device``, or why there is none."""
    if device.type != "cuda":
        return NativeStep
    try:
        from manylora.server.kernels.cuda.backend import TritonStep  # noqa: PLC0415 - only CUDA builds bring Triton
    except ImportError as error:
        return f"Triton can't be imported: {error}"
    return TritonStep


def extract_weights(model: Any, max_len: int) -> DecoderWeights:
    """Fused weights of a Llama-family model; rotary tables cover ``max_len`` positions."""
    config, inner = model.config, model.model
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    positions = torch.arange(max_len, device=inner.embed_tokens.weight.device)[None]
    cos, sin = inner.rotary_emb(torch.zeros(1, dtype=torch.float32, device=positions.device), positions)
    return DecoderWeights(
        embedding=inner.embed_tokens.weight.detach(),
        layers=tuple(_layer_weights(layer) for layer in inner.layers),
        final_norm=inner.norm.weight.detach(),
        lm_head=model.lm_head.weight.detach(),
        cos=cos[0, :, : head_dim // 2].contiguous(),
        sin=sin[0, :, : head_dim // 2].contiguous(),
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        intermediate=config.intermediate_size,
        eps=config.rms_norm_eps,
        scale=inner.layers[0].self_attn.scaling,
    )


def _layer_weights(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_stack_weights(qkv),
        qkv_bias=_stack_biases(qkv),
        q_norm=_weight_of(attention, "q_norm"),
        k_norm=_weight_of(attention, "k_norm"),
        o=_stack_weights((attention.o_proj,)),
        o_bias=_stack_biases((attention.o_proj,)),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_stack_weights((mlp.gate_proj, mlp.up_proj)),
        gate_up_bias=_stack_biases((mlp.gate_proj, mlp.up_proj)),
        down=_stack_weights((mlp.down_proj,)),
        down_bias=_stack_biases((mlp.down_proj,)),
        window=_window_of(attention),
    )


def _stack_weights(linears: Sequence[nn.Linear]) -> Matrix:
    if _any_quantized(linears):
        return QuantizedMatrix(tuple(Quantized(linear) for linear in linears))
    weights = [linear.weight.detach() for linear in linears]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def _stack_biases(linears: Sequence[nn.Linear]) -> torch.Tensor | None:
    """Biases along out; None if there are none, or if the layers are quantized: they add it themselves."""
    if _any_quantized(linears):
        return None
    biases = [None if linear.bias is None else linear.bias.detach() for linear in linears]
    return stack_biases([linear.weight.detach() for linear in linears], biases)


def _any_quantized(linears: Sequence[nn.Module]) -> bool:
    return any(is_quantized(linear) for linear in linears)


def _weight_of(attention: Any, name: str) -> torch.Tensor | None:
    module = getattr(attention, name, None)
    return None if module is None else module.weight.detach()


def _window_of(attention: Any) -> int | None:
    """Mistral keeps the window in its config, the Qwen models on each attention layer."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # type: ignore[no-any-return]
    return (
        getattr(attention.config, "sliding_window", None)
        if attention.config.model_type == "mistral"
        else None
    )


def _projections(model: Any) -> dict[str, Any]:
    """The linear layers of the blocks by name, in the order of the page tables."""
    return {
        f"model.layers.{index}.{name}": layer.get_submodule(name)
        for index, layer in enumerate(model.model.layers)
        for name in _PROJECTIONS
    }


def _target_modules(model: Any) -> tuple[TargetModule, ...]:
    """The projections, then the norms, in the numbering of :class:`DecoderWeights`."""
    return tuple(target_of(name, module) for name, module in (_projections(model) | _norms(model)).items())


def _norms(model: Any) -> dict[str, Any]:
    """The norms by name, in the order of the page tables."""
    norms = {
        f"model.layers.{index}.{name}": layer.get_submodule(name)
        for index, layer in enumerate(model.model.layers)
        for name in _NORMS
        if hasattr(layer.self_attn, "q_norm") or not name.startswith("self_attn.")
    }
    return norms | {"model.norm": model.model.norm}
