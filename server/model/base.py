"""The base that a server runs, by its settings: in this process, or divided between several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    loaded = load_model(
        directory,
        dtype=settings.dtype,
        device=settings.device,
        max_model_len=settings.max_model_len,
        quantize=settings.quantize,
    )
    limits = EngineLimits.of(settings, accelerator=loaded.device.type != "cpu")
    return Base(loaded, prepare(loaded, settings, limits), limits, None)


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
