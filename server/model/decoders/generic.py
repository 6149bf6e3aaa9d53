"""The generic decoder: any Hugging Face causal LM, with its attention paged and its linears adapted.

The module tree runs as it is, over one flat batch of rows. Attention goes through transformers'
attention interface to the paged cache; a forward hook on each linear layer adds the adapters' delta.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.layers import target_of
from manylora.adapters.base_models.norms import normalizer, norms_of
from manylora.adapters.format.base import CacheShape
from manylora.server.errors import ModelRefused
from manylora.server.kernels.buffers import total_bytes
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.inputs import BLOCK_SIZE, EmbeddedRows, ModuleShape, StepInputs
from manylora.server.kernels.reference import sampling
from manylora.server.kernels.reference.attention import AttentionPlan, PagedKV, Scoring
from manylora.server.kernels.reference.lora import LoraDelta, LoraPlanner
from manylora.server.kernels.reference.quantized import CodedLinear, layer_tensors
from manylora.server.kernels.reference.soft_prompts import fill_cache, prompt_rows
from manylora.server.kernels.reference.vocabulary import VocabularyPlan, plan_vocabulary
from manylora.server.kernels.weights import MergedWeights
from manylora.server.model.decoders.merged_modules import MergedModules
from manylora.server.model.decoders.paged import HeadSizes, planner_for
from manylora.server.model.decoders.quantize import weight_of
from manylora.server.model.pages.tables import BaseTables

ATTENTION_NAME = "manylora_paged"
# Attention arguments some models pass that change the result and that paged_attention does not implement.
_CHANGES_RESULT = frozenset({"s_aux", "position_bias", "head_mask", "alibi"})
_PROBE_ROWS = 61  # so many that no router sends all to one expert; a prime, which no other dimension is


@dataclass
class _Forward:
    """What attention and hooks need to know of the step that runs. Filled by :class:`GenericDecoder`."""

    rows: int
    plan: AttentionPlan | None = None  # None while the model is being surveyed
    kv: Mapping[int, PagedKV] | None = None
    lora: LoraDelta | None = None
    vocabulary: VocabularyPlan | None = None
    embedded: EmbeddedRows | None = None
    prompts: EmbeddedRows | None = None  # virtual tokens, whose embeddings no module scales
    keeps_hidden: bool = False  # whether ``hidden`` is wanted although no adapter has its own head
    hidden: torch.Tensor | None = None  # [R, D] what the head was applied to, if it is wanted
    logits_rows: torch.Tensor | None = None  # of the rows that the head sees; None: all of them
    survey: _Survey | None = None


class _Survey:
    """What one plain forward reveals: the K/V shapes of each layer and which modules see every row."""

    def __init__(self) -> None:
        self.kv_shapes: dict[int, tuple[int, int, int]] = {}  # layer -> (kv heads, key dim, value dim)
        self.sizes: set[HeadSizes] = set()  # of the layers' attention
        self.calls: dict[str, list[tuple[int, ...]]] = {}  # module -> dimensions before the last, by call

    def sees_every_row(self, name: str) -> bool:
        """Whether the module is called once, with all rows, each once."""
        return [math.prod(shape) for shape in self.calls.get(name, [])] == [_PROBE_ROWS]

    def row_dimension(self, name: str) -> int | None:
        """Which dimension of a norm's input counts the rows; None where it is not called once with all."""
        calls = self.calls.get(name, [])
        places = [place for place, size in enumerate(calls[0]) if size == _PROBE_ROWS] if calls else []
        return places[0] if len(calls) == len(places) == 1 else None


class GenericDecoder:
    """Runs ``model`` unchanged except for its attention function."""

    name = "generic"
    kernels = "pytorch"

    def __init__(self, model: Any, reason: str | None = None) -> None:
        """Find the adaptable layers of ``model``, and page its attention.

        ``reason`` says why the fused decoder does not run it, as far as that is known.

        Raises:
            ModelRefused: the model has no pluggable attention, or its forward fails with it.
        """
        self.kernels_note = reason or "native kernels run the fused decoder only"
        self._model = model
        self._forward: _Forward | None = None
        self._parameters = frozenset(inspect.signature(model.forward).parameters)
        if not getattr(model, "_supports_attention_backend", False):
            raise ModelRefused(f"{type(model).__name__} does not support a pluggable attention function")
        AttentionInterface.register(ATTENTION_NAME, paged_attention)
        linears, norms = _linears(model), norms_of(model)
        self._hook(linears | norms, self._record)
        self._survey = survey = self._run_survey()
        self._unhook(linears | norms)
        linears = {name: module for name, module in linears.items() if survey.sees_every_row(name)}
        self._norms = {name: _Norm.of(module, survey.row_dimension(name)) for name, module in norms.items()}
        norms = {name: module for name, module in norms.items() if self._norms[name] is not None}
        self.modules = tuple(target_of(name, module) for name, module in (linears | norms).items())
        self._layers = [*linears.values(), *norms.values()]
        self._hook(linears, self._add_delta)
        self._hook(norms, self._change_norm)
        self._index = {m.name: i for i, m in enumerate(self.modules)}
        self._kv: dict[int, PagedKV] = {}
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        self.tables = BaseTables(embedding.weight, head.weight)
        self.vocab_size = head.weight.shape[0]
        embedding.register_forward_hook(self._embed)
        head.register_forward_hook(self._correct_logits)

    @property
    def cache_shape(self) -> CacheShape | None:
        shapes = set(self._survey.kv_shapes.values())
        heads, key, value = next(iter(shapes))
        uniform = len(shapes) == 1 and key == value
        return CacheShape(len(self._survey.kv_shapes), heads, key) if uniform else None

    @property
    def kv_bytes_per_block(self) -> int:
        width = sum(heads * (k + v) for heads, k, v in self._survey.kv_shapes.values())
        return BLOCK_SIZE * width * self._like.element_size()

    @property
    def _like(self) -> torch.Tensor:
        return self._model.get_input_embeddings().weight  # type: ignore[no-any-return]

    def weight(self, module: int) -> torch.Tensor:
        return weight_of(self._layers[module]).to(self._like.dtype)

    def bias(self, module: int) -> torch.Tensor | None:
        return getattr(self._layers[module], "bias", None)

    def product(self, module: int, x: torch.Tensor) -> torch.Tensor:
        """``W x`` of rows ``x`` [T, in]; adapters have no part in it."""
        y: torch.Tensor = self._layers[module].forward(x)
        bias = self.bias(module)
        return y if bias is None else y - bias

    def allocate(self, pool: torch.Tensor, num_blocks: int, max_rows: int) -> None:  # noqa: ARG002
        self._pool = pool
        targets = [ModuleShape(m.in_features, m.out_features, m.linear) for m in self.modules]
        self._planner = LoraPlanner(pool, targets, self)
        shapes = self._survey.kv_shapes
        like = self._like.detach()
        self._kv = {layer: PagedKV(num_blocks, *shape, like=like) for layer, shape in shapes.items()}
        self._plan_attention = planner_for(self._survey.sizes, like)

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        device = self._like.device
        lora = self._planner.plan(inputs)
        plan = self._plan_attention(inputs, device)
        forward = _Forward(
            len(inputs.token_ids), plan, self._kv, lora, keeps_hidden=inputs.states is not None
        )
        vocabulary = plan_vocabulary(self._pool, self._like, inputs, self.vocab_size)
        if vocabulary is not None:
            inputs = vocabulary.prepare(inputs)
            forward.vocabulary, forward.embedded = vocabulary, inputs.embedded
        if inputs.prompts:
            forward.prompts = prompt_rows(self._pool, self._like.shape[1], inputs.prompts)
        fill_cache(self._pool, [self._kv[layer] for layer in sorted(self._kv)], inputs.cached)
        merged = inputs.merged
        assert merged is None or isinstance(merged, MergedModules)
        logits = self._run(
            forward,
            torch.from_numpy(inputs.token_ids).to(device),
            torch.from_numpy(inputs.positions).to(device),
            torch.from_numpy(inputs.logits_rows).to(device),
            merged,
        )
        if inputs.states is not None:
            inputs.states.values = forward.hidden
        return logits if vocabulary is None else vocabulary.conclude(logits, forward.hidden)

    @property
    def draw(self) -> Draw:
        return sampling.draw

    @property
    def capturing(self) -> None:
        """Nothing is captured: which modules run is the model's own affair."""

    def take_over(self, model: Any) -> None:
        """Nothing is held twice: the model itself runs."""
        assert model is self._model

    @property
    def weight_bytes(self) -> int:
        return total_bytes(layer_tensors(self._model))

    @property
    def merge_groups(self) -> Sequence[tuple[int, ...]]:
        return [(index,) for index in range(len(self.modules))]

    def merged(self) -> MergedWeights:
        return MergedModules(self._model, [module.name for module in self.modules])

    def _run(
        self,
        forward: _Forward,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        merged: MergedModules | None = None,
    ) -> torch.Tensor:
        """Forward the flat batch as one sequence; attention alone knows the sequences apart."""
        arguments: dict[str, Any] = {"use_cache": False, "position_ids": positions[None], "manylora": forward}
        narrowed = "logits_to_keep" in self._parameters
        if narrowed:
            arguments["logits_to_keep"] = rows
        else:
            forward.logits_rows = rows
        config = self._model.config
        before = config._attn_implementation
        config._attn_implementation = ATTENTION_NAME
        self._forward = forward
        try:
            with nullcontext() if merged is None else merged.in_place():
                logits: torch.Tensor = self._model(input_ids=token_ids[None], **arguments).logits[0]
        finally:
            config._attn_implementation = before
            self._forward = None
        return logits if narrowed else logits[rows]

    @torch.inference_mode()
    def _run_survey(self) -> _Survey:
        device = self._like.device
        survey = _Survey()
        rows = torch.arange(_PROBE_ROWS, device=device)
        try:
            self._run(_Forward(_PROBE_ROWS, survey=survey), rows, rows, rows[-1:])
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            name = type(self._model).__name__
            raise ModelRefused(f"{name} does not run with paged attention: {error}") from error
        if not survey.kv_shapes:
            raise ModelRefused(f"{type(self._model).__name__} never called the attention function")
        return survey

    def _hook(self, layers: Mapping[str, nn.Module], function: Callable[..., Any]) -> None:
        self._handles = [
            module.register_forward_hook(partial(function, name)) for name, module in layers.items()
        ]

    def _unhook(self, layers: Mapping[str, nn.Module]) -> None:
        assert len(self._handles) == len(layers)
        for handle in self._handles:
            handle.remove()

    def _record(
        self, name: str, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        del module, output
        assert self._forward is not None
        assert self._forward.survey is not None
        x = args[0]
        self._forward.survey.calls.setdefault(name, []).append(tuple(x.shape[:-1]))

    def _add_delta(
        self, name: str, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        del module
        if self._forward is None or self._forward.lora is None:
            return None
        y = output.reshape(-1, output.shape[-1])
        assert len(y) == self._forward.rows, f"{name} does not see every row"
        self._forward.lora.add(self._index[name], args[0].reshape(-1, args[0].shape[-1]), y)
        return y.view(output.shape)

    def _change_norm(
        self, name: str, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        """Add what adapters change about a norm to its output, in place."""
        del module
        if self._forward is None or self._forward.lora is None or self._forward.lora.plain:
            return
        change = self._forward.lora.norm_change(self._index[name])
        if change is None:
            return
        norm = self._norms[name]
        assert norm is not None
        x, y = args[0].movedim(norm.rows, 0), output.movedim(norm.rows, 0)
        normal = norm.normalize(x.index_select(0, change.rows)).float()
        y.index_copy_(
            0, change.rows, (y.index_select(0, change.rows).float() + change.of(normal)).to(y.dtype)
        )

    def _embed(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        """Put in the embeddings of rows that have their own, scaled as the module scales its own."""
        del args
        if self._forward is None:
            return None
        scale = getattr(module, "embed_scale", 1.0)
        given = [(self._forward.embedded, scale), (self._forward.prompts, 1.0)]
        if all(rows is None for rows, _ in given):
            return None
        y = output.clone()
        for embedded, factor in given:
            if embedded is not None:
                rows = torch.from_numpy(embedded.rows).to(y.device)
                y.view(-1, y.shape[-1])[rows] = (embedded.values.to(y.device) * factor).to(y.dtype)
        return y

    def _correct_logits(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        """Correct the logits of rows that have their own head, before the model scales or bends them."""
        del module
        if self._forward is None or (self._forward.vocabulary is None and not self._forward.keeps_hidden):
            return None
        x, y = args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1])
        rows = self._forward.logits_rows
        plan = self._forward.vocabulary
        self._forward.hidden = x if rows is None else x[rows]
        if plan is None:
            return None
        if rows is None:
            wide = plan.correct(y, x)
        else:
            corrected = plan.correct(y[rows], x[rows])
            wide = torch.nn.functional.pad(y, (0, corrected.shape[1] - y.shape[1]))
            wide[rows] = corrected
        return wide.view(*output.shape[:-1], -1)


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, nh, T, hd]
    key: torch.Tensor,  # [1, nkv, T, hd]
    value: torch.Tensor,  # [1, nkv, T, hdv]
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the interface passes None
    *,
    manylora: _Forward,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface on the paged cache. Returns ([1, T, nh, hdv], None)."""
    refused = sorted(name for name in _CHANGES_RESULT if others.get(name) is not None)
    if refused:
        raise ModelRefused(f"attention argument {refused[0]!r} of {type(module).__name__} is not supported")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if manylora.survey is not None:
        manylora.survey.kv_shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
        manylora.survey.sizes.add((query.shape[1], key.shape[1], key.shape[3], value.shape[3]))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    assert manylora.kv is not None
    assert manylora.plan is not None
    kv = manylora.kv[layer]
    kv.write(manylora.plan.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    rows = query[0].transpose(0, 1)
    return manylora.plan.attend(kv, rows, Scoring(scale, sliding_window, softcap))[None], None


@dataclass(frozen=True)
class _Norm:
    """A norm of the model that adapters can change."""

    rows: int  # the dimension of its input that counts the rows
    normalize: Callable[[torch.Tensor], torch.Tensor]  # what it does before it scales and shifts

    @classmethod
    def of(cls, module: nn.Module, rows: int | None) -> _Norm | None:
        """The norm whose input has its rows in that dimension; None if it can't be changed."""
        normalize = None if rows is None else normalizer(module)
        return None if rows is None or normalize is None else cls(rows, normalize)


def _linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer inside the decoder blocks, in module order; the output head is not one of them."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | CodedLinear) and module is not head
    }
