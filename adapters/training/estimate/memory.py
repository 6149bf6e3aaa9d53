"""How much memory a run would need, from the shape of the model alone: no weights are read.

The model is built of fake tensors, which have shapes and dtypes but no data, with one layer and with two; a
forward pass over them records what autograd keeps for the backward pass. The second layer's share, times the
number of layers, gives the activations of any architecture without a formula for each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from manylora.adapters.training.model.loading import meta_model
from manylora.adapters.training.model.targets import block_layers, has_conv1d

Method = Literal["full", "lora", "lora-8bit", "qlora"]
METHODS: tuple[Method, ...] = ("full", "lora", "lora-8bit", "qlora")
TARGETS = ("all-linear", "attention", "mlp")
FP32 = 4
ADAM = 8  # bytes of state a parameter: two moments in fp32
# NF4: half a byte, an 8-bit scale for every 64 weights, and an fp32 one for every 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + FP32 / (64 * 256)
POOLED_BYTES = 8  # a number of a last hidden state that is pooled in fp32: itself and its gradient
LOSS_BYTES = 12  # a logit in the backward pass of cross-entropy: log-softmax, its gradient, the next one


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be trained, and how."""

    r: int = 16
    target: str = "all-linear"
    max_length: int = 1024
    batch_size: int = 8
    dtype: torch.dtype = torch.bfloat16
    gradient_checkpointing: bool = False
    texts: int | None = None  # of a row, where they are embedded; None: rows are sequences to learn

    @property
    def sequences(self) -> int:
        """Of a batch."""
        return self.batch_size * (self.texts or 1)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that training with one method needs, by what they hold."""

    method: Method
    weights: int
    gradients: int
    optimizer: int
    activations: int  # kept for the backward pass, with the logits
    update: int  # temporaries of the optimizer's step
    is_checkpointed: bool  # activations are computed again

    @property
    def peak(self) -> int:
        """Kept activations are freed while gradients come to be; none are left when the optimizer steps.

        Activations that are computed again are there beside the gradients of all later layers.
        """
        backward = self.activations + (self.gradients if self.is_checkpointed else 0)
        return self.weights + self.optimizer + max(backward, self.gradients + self.update)


@dataclass(frozen=True, slots=True)
class Targets:
    """Size of the adapter for one choice of target modules."""

    target: str
    trainable: int  # parameters
    share: float  # of all parameters
    file_bytes: int  # adapter_model.safetensors in 16 bits


def estimate(config: Any, plan: Plan, methods: Sequence[Method] = METHODS) -> list[Memory]:
    """The memory of each method for a causal LM with this transformers ``config``.

    Where texts are embedded there is no head and there are no logits.
    """
    sizes = _Sizes.of(config)
    if plan.texts is not None:
        sizes = replace(sizes, total=sizes.total - sizes.head)
    trainable = lora_parameters(config, plan.r, plan.target)
    rows = []
    for method in methods:
        is_full = method == "full"
        learned = sizes.total if is_full else trainable
        rows.append(
            Memory(
                method,
                weights=_weights(sizes, method, plan.dtype) + (0 if is_full else FP32 * trainable),
                gradients=FP32 * learned,
                optimizer=ADAM * learned,
                activations=_activations(config, plan, sizes, is_full=is_full),
                update=2 * FP32 * (sizes.embedding if is_full else 0),
                is_checkpointed=plan.gradient_checkpointing,
            )
        )
    return rows


def target_table(config: Any, r: int) -> list[Targets]:
    """The adapter's size for each choice of target modules."""
    total = _Sizes.of(config).total
    counts = [(target, lora_parameters(config, r, target)) for target in TARGETS]
    return [Targets(target, count, count / total, 2 * count) for target, count in counts]


def lora_parameters(config: Any, r: int, target: str) -> int:
    """Parameters of a rank-``r`` adapter on the modules of ``target``."""
    model = meta_model(config)
    wanted = _wanted(model, target)
    return sum(r * (i + o) for name, (i, o) in _linear_layers(model).items() if name in wanted)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Parameters of a model; tied weights count once."""

    total: int
    linear: int  # of the linear layers that bitsandbytes quantizes: all but the head
    largest: int  # of one of them
    embedding: int  # the largest of all: of the input embeddings
    head: int  # of the output head, 0 where it is the embeddings
    vocabulary: int
    hidden: int
    layers: int

    @classmethod
    def of(cls, config: Any) -> _Sizes:
        model = meta_model(config)
        head = model.get_output_embeddings()
        linear = [
            i * o for name, (i, o) in _linear_layers(model).items() if model.get_submodule(name) is not head
        ]
        text = config.get_text_config()
        return cls(
            total=sum(p.numel() for p in model.parameters()),
            linear=sum(linear),
            largest=max(linear),
            embedding=model.get_input_embeddings().weight.numel(),
            head=0 if head is None or _is_tied(model) else head.weight.numel(),
            vocabulary=text.vocab_size,
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
        )


def _is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _weights(sizes: _Sizes, method: Method, dtype: torch.dtype) -> int:
    """Full fine-tuning keeps fp32 weights; quantized bases keep embeddings, norms and head in ``dtype``."""
    rest = (sizes.total - sizes.linear) * dtype.itemsize
    if method == "full":
        return sizes.total * FP32
    if method == "lora":
        return sizes.total * dtype.itemsize
    # A layer at a time is unpacked to compute with.
    return round(
        rest + sizes.linear * (1 if method == "lora-8bit" else NF4_BYTES) + sizes.largest * dtype.itemsize
    )


def _activations(config: Any, plan: Plan, sizes: _Sizes, *, is_full: bool) -> int:
    one, two = (_kept(config, plan, layers, is_full=is_full) for layers in (1, 2))
    layer = two - one
    tokens = plan.sequences * plan.max_length
    embeds = plan.texts is not None
    loss = tokens * (sizes.hidden * POOLED_BYTES if embeds else sizes.vocabulary * LOSS_BYTES)
    if plan.gradient_checkpointing:  # the input of every layer, and all of the one that is computed again
        kept = sizes.layers * tokens * sizes.hidden * plan.dtype.itemsize + layer
        return one - layer + max(kept, kept - layer + loss)
    return one + (sizes.layers - 1) * layer + loss


def _kept(config: Any, plan: Plan, layers: int, *, is_full: bool) -> int:
    """Bytes that autograd keeps of a forward pass through ``layers`` layers up to the head."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(shallow, dtype=torch.float32 if is_full else plan.dtype)
    backbone = model.base_model
    if not is_full:
        model.requires_grad_(False)
        adapter = LoraConfig(
            r=plan.r,
            target_modules=sorted(_wanted(model, plan.target)),
            fan_in_fan_out=has_conv1d(model),
            task_type="CAUSAL_LM",
        )
        get_peft_model(model, adapter, low_cpu_mem_usage=True)
    with FakeTensorMode():
        ids = torch.zeros(plan.sequences, plan.max_length, dtype=torch.long)
        weights = {name: torch.empty(p.shape, dtype=p.dtype) for name, p in backbone.named_parameters()}
        for name, parameter in backbone.named_parameters():
            weights[name].requires_grad_(parameter.requires_grad)
        weights |= {name: torch.empty(b.shape, dtype=b.dtype) for name, b in backbone.named_buffers()}
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with _counting(weights.values()) as kept:
            torch.func.functional_call(backbone, weights, (), inputs)
    return sum(kept.values())


@contextmanager
def _counting(weights: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps within the block; ``weights`` are not counted."""
    own = {_storage(tensor) for tensor in weights}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage is freed and its address taken by another

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in own:
            kept[key] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of every linear layer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif type(module).__name__ == "Conv1D":
            found[name] = (module.weight.shape[0], module.weight.shape[1])
    return found


def _wanted(model: Any, target: str) -> set[str]:
    """The modules that ``target`` stands for, by name."""
    head = model.get_output_embeddings()
    linear = [name for name in _linear_layers(model) if model.get_submodule(name) is not head]
    if target == "all-linear":
        return set(linear)
    ends = block_layers(linear, attention=target == "attention")
    return {name for name in linear if any(name.endswith(f".{end}") for end in ends)}
