"""The base that a server runs, by its settings: in this process, or divided between several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from manylora.adapters.base_models.configuration import plain_config
from manylora.server.kernels.cpu.library import natively_faster
from manylora.server.model.decoders.families import FAMILIES
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.device import resolve_device
from manylora.server.model.loading.loader import LoadedModel, load_model
from manylora.server.model.loading.preparing import Prepared, prepare
from manylora.server.model.parallel.preparing import prepare_ranks
from manylora.server.model.parallel.starting import StartedRanks, start_ranks
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings


@dataclass(frozen=True)
class Base:
    """A base that can be served."""

    loaded: LoadedModel
    prepared: Prepared
    limits: EngineLimits
    ranks: StartedRanks | None  # the processes that share it; None: it is all here


def load_base(settings: Settings, directory: Path) -> Base:
    """Load the model in ``directory``.

    Raises:
        ModelRefused: it can't be served correctly.
        ConfigError: an option does not fit the model or the machine.
    """
    if settings.tensor_parallel_size > 1:
        return _divided(settings, directory)
    loaded = _loaded(settings, directory)
    limits = EngineLimits.of(settings, accelerator=loaded.device.type != "cpu")
    return Base(loaded, prepare(loaded, settings, limits), limits, None)


def _loaded(settings: Settings, directory: Path) -> LoadedModel:
    """The model in the dtype asked for. Auto is bf16, too, where the native kernels alone have it fast."""

    def load(dtype: str) -> LoadedModel:
        return load_model(
            directory,
            dtype=dtype,
            device=settings.device,
            max_model_len=settings.max_model_len,
            quantize=settings.quantize,
        )

    if (
        settings.dtype == "auto"
        and settings.kernels != "pytorch"
        and _native_alone(settings.device, directory)
    ):
        loaded = load("bf16")
        if (
            FusedDecoder.unsupported(loaded.hf) is None
            and FusedDecoder(loaded.hf, loaded.max_model_len).native
        ):
            return loaded
        del loaded
    return load(settings.dtype)


def _native_alone(device: str, directory: Path) -> bool:
    """Whether the native kernels may run the model, and nothing else multiplies bf16 as fast."""
    if resolve_device(device).type != "cpu" or not natively_faster():
        return False
    try:
        return plain_config(directory).model_type in FAMILIES
    except (OSError, ValueError):
        return False  # whoever loads it says why


def _divided(settings: Settings, directory: Path) -> Base:
    ranks = start_ranks(
        directory,
        settings.tensor_parallel_size,
        dtype=settings.dtype,
        device=settings.device,
        max_model_len=settings.max_model_len,
        quantize=settings.quantize,
        kernels=settings.kernels,
        coded_cache=settings.kv_cache_dtype == "int8",
        log_level=settings.log_level.upper(),
    )
    limits = EngineLimits.of(settings, accelerator=ranks.loaded.device.type != "cpu")
    try:
        return Base(ranks.loaded, prepare_ranks(ranks, settings, limits), limits, ranks)
    except BaseException:
        ranks.close()
        raise
