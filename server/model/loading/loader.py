"""From a directory to a decoder that is known to agree with the original model."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.base_models.configuration import packed_format, plain_config
from manylora.adapters.base_models.generation import Generation, read_generation
from manylora.adapters.base_models.layers import (
    describe_cache,
    describe_heads,
    describe_vocabulary,
    experts_of,
)
from manylora.adapters.base_models.stored import StoredModel, fingerprint
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.base import BaseModel
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.buffers import total_bytes
from manylora.server.memory_budget import available_bytes
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.generic import GenericDecoder
from manylora.server.model.decoders.quantize import (
    NONE,
    check_available,
    check_widths,
    quantization_config,
    take_codes,
)
from manylora.server.model.loading.device import resolve_device, resolve_dtype, use_device
from manylora.server.model.loading.long_rope import LONG_ROPE, original_length, settle_factors
from manylora.server.model.loading.packed.loading import BuiltModel, load_packed
from manylora.server.model.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Positions scaled by the longest row of a batch: they can't be served beyond the original length.
_BY_LENGTH = "dynamic"


@dataclass(frozen=True)
class LoadedModel:
    """The Hugging Face model, quantized if asked for or stored so, with what serving derives from it."""

    hf: Any
    quantize: str  # "none", "nf4" or "int8"; of a checkpoint also "fp4", "gguf", "gptq" or "awq"
    tokenizer: Tokenizer
    dtype: torch.dtype
    device: torch.device
    fingerprint: str
    max_model_len: int

    @property
    def pad_id(self) -> int | None:
        """The padding token of the model's config, by which a classifier finds the end of a text."""
        pad: int | None = getattr(self.hf.config.get_text_config(), "pad_token_id", None)
        return pad


def load_model(
    directory: Path, *, dtype: str, device: str, max_model_len: int | None, quantize: str = NONE
) -> LoadedModel:
    """Load the causal LM in ``directory``; ``quantize`` is "none", "nf4" or "int8".

    A checkpoint that is quantized already keeps its codes, and takes no ``quantize``.

    Raises:
        ModelRefused: not a causal language model this process can load, or not in so few bits.
        ConfigError: the device is absent, ``max_model_len`` exceeds what the model can do, bitsandbytes
            is not installed, or the checkpoint is quantized already.
    """
    torch_device = resolve_device(device)
    use_device(torch_device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    if quantize != NONE:
        check_available(quantize)
    try:
        packed = packed_format(directory)
        if packed is not None and quantize != NONE:
            raise ConfigError(f"--quantize {quantize}: {directory} is quantized already ({packed.method})")
        config = plain_config(directory)
        generation = read_generation(directory, config)
        if packed is None:
            made = _load_plain(
                directory, config, generation, dtype=torch_dtype, device=torch_device, quantize=quantize
            )
        else:
            made = load_packed(directory, packed, generation, torch_dtype, torch_device)
        tokenizer = Tokenizer.load(directory, generation.eos_ids)
    except (ModelRefused, ConfigError):
        raise
    except BaseModelError as error:
        raise ModelRefused(str(error)) from error
    except Exception as error:  # the libraries raise whatever their parts do: there is no common base
        raise ModelRefused(f"{directory} can't be loaded as a causal language model: {error}") from error
    model = made.hf.eval().requires_grad_(False)
    max_len = context_length(config, max_model_len)
    settle_factors(model, max_len)
    return LoadedModel(
        hf=model,
        quantize=made.quantization,
        tokenizer=tokenizer,
        dtype=torch_dtype,
        device=torch_device,
        fingerprint=made.fingerprint,
        max_model_len=max_len,
    )


def _load_plain(
    directory: Path,
    config: Any,
    generation: Generation,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str,
) -> BuiltModel:
    """Load weights of 16 or 32 bits, and quantize them if asked for."""
    if quantize != NONE:
        check_widths(config, quantize, device)
    model, report = AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        dtype=dtype,
        generation_config=generation.hf(),
        output_loading_info=True,
        **_placement(quantize, device, dtype),
    )
    _check_complete(directory, report["missing_keys"])
    digest = _fingerprint(model, directory, quantize)
    if quantize == NONE:
        check_room(model, device)
        model = model.to(device)
    else:
        take_codes(model, dtype)
    return BuiltModel(model, digest, quantize)


def check_room(model: Any, device: torch.device) -> None:
    """Refuse a model whose weights alone exceed what the device has free: moving it would fail half-way.

    Raises:
        ConfigError: says what would fit.
    """
    if device.type == "cpu":
        return
    needed, free = total_bytes([*model.parameters(), *model.buffers()]), available_bytes(device)
    if needed > free:
        raise ConfigError(
            f"--device {device}: the model's weights take {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free there: take --quantize nf4 or int8, a smaller model, or a "
            "larger device; `manylora estimate serve` says what fits where"
        )


def _placement(quantize: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments that quantize on loading; a quantized model can't be moved afterwards."""
    if quantize == NONE:
        return {}
    return {"quantization_config": quantization_config(quantize, dtype), "device_map": {"": device}}


def _check_complete(directory: Path, missing: Collection[str]) -> None:
    """Weights that a checkpoint lacks would be random, and the probe could not tell."""
    if missing:
        first = ", ".join(sorted(missing)[:4])
        raise ModelRefused(f"{directory} is not complete: {len(missing)} weights are missing ({first})")


def context_length(config: Any, wanted: int | None) -> int:
    """Tokens that a request may have together: what the model allows, or ``wanted`` if that is less.

    A model with rotary factors for long texts is limited to short ones unless more is wanted.

    Raises:
        ConfigError: more is wanted than the model allows, or neither says a number.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or wanted
    if limit is None:
        raise ConfigError("--max-model-len: this model does not state its context length; give one")
    for rope in _ropes(text):
        original = original_length(text, rope)
        if not original or original >= limit:
            continue
        if rope.get("rope_type") == _BY_LENGTH:
            logger.warning(
                "context limited to %d of %d tokens: dynamic positions depend on the longest row of a batch",
                original, limit,
            )  # fmt: skip
            limit = original
        elif rope.get("rope_type") == LONG_ROPE and wanted is None:
            logger.warning(
                "context limited to %d of %d tokens: the model has other rotary factors for longer texts; "
                "a larger --max-model-len has those serve texts of every length",
                original, limit,
            )  # fmt: skip
            limit = original
    if wanted is not None and wanted > limit:
        raise ConfigError(f"--max-model-len {wanted}: this model's context is {limit} tokens")
    return int(wanted or limit)


def _ropes(text: Any) -> list[Mapping[str, Any]]:
    """The rope settings of a text config: one for all layers, or one per kind of layer."""
    rope = getattr(text, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, Mapping)]


def _fingerprint(model: Any, directory: Path, quantize: str) -> str:
    """The fingerprint of the stored weights, where the files have them under the model's names."""
    if quantize == NONE:
        return fingerprint(model.state_dict())
    try:
        return fingerprint(StoredModel(directory))
    except BaseModelError as error:
        logger.info("the fingerprint is of the quantized weights: %s", error)
        return fingerprint(model.state_dict())


def decoder_candidates(
    loaded: LoadedModel, kernels: str = "auto", *, coded_cache: bool = False, deterministic: bool = False
) -> Iterator[Decoder]:
    """The decoders that may serve the model, best first; none is trusted before the probe.

    ``kernels`` is "auto" (native, then PyTorch), "native" or "pytorch"; the generic decoder always runs
    PyTorch and comes last. With ``coded_cache`` keys and values are kept in 8 bits, which the fused decoder
    alone does, and with ``deterministic`` rows have the same bits in any company, which its kernels do.

    Raises:
        ModelRefused: the generic decoder can't run the model.
        ConfigError: native kernels, a cache in 8 bits or equal bits were asked for and can't be had.
    """
    reason = FusedDecoder.unsupported(loaded.hf)
    if deterministic:
        if reason is not None:
            raise ConfigError(f"--deterministic needs the fused decoder: {reason}")
        yield FusedDecoder(loaded.hf, loaded.max_model_len, coded_cache=coded_cache, deterministic=True)
    elif reason is None:
        fused = FusedDecoder(loaded.hf, loaded.max_model_len, kernels, coded_cache=coded_cache)
        native = fused.native
        yield fused
        if kernels == "native":
            return
        del fused  # it was refused: on a GPU there is no room for two caches
        if native:
            yield FusedDecoder(loaded.hf, loaded.max_model_len, "pytorch", coded_cache=coded_cache)
        if not coded_cache:
            yield GenericDecoder(loaded.hf, reason)
    elif coded_cache:
        raise ConfigError(f"--kv-cache-dtype int8 needs the fused decoder: {reason}")
    elif kernels == "native":
        raise ConfigError(f"--kernels native: {reason}")
    else:
        logger.warning("the generic decoder serves this model, slower than the fused one would: %s", reason)
        yield GenericDecoder(loaded.hf, reason)


def describe_base(loaded: LoadedModel, decoder: Decoder, name: str) -> BaseModel:
    """What adapters are validated against."""
    adaptable = {module.name: module for module in decoder.modules if module.linear and not module.expert}
    stacks = experts_of(loaded.hf) if any(module.expert for module in decoder.modules) else ()
    named = (n for n, m in loaded.hf.named_modules() if n and not list(m.children()))
    cache = describe_cache(loaded.hf.config)
    return BaseModel(
        name=name,
        architecture=type(loaded.hf).__name__,
        model_type=loaded.hf.config.model_type,
        fingerprint=loaded.fingerprint,
        modules=adaptable,
        others=frozenset(n for n in named if n not in adaptable),
        vocabulary=describe_vocabulary(loaded.hf),
        text=loaded.tokenizer.base_text(),
        cache=cache if cache == decoder.cache_shape else None,
        quantization=loaded.quantize,
        norms={module.name: module for module in decoder.modules if not module.linear},
        heads=describe_heads(loaded.hf.config),
        experts={stack.name: stack for stack in stacks},
    )
