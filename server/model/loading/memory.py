"""How a server divides its device's memory, once the base is loaded."""

from __future__ import annotations

import logging

from manylora.server.memory_budget import adapter_bytes, available_bytes, merge_bytes, num_kv_blocks
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.loading.loader import LoadedModel
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings
from manylora.server.sizing.division import Demand, Division, Wanted, divide, gib
from manylora.server.sizing.shape import BaseShape
from manylora.server.sizing.step import StepSize, probe_bytes, reserved_bytes

logger = logging.getLogger(__name__)


def divide_memory(
    loaded: LoadedModel, decoder: Decoder, settings: Settings, limits: EngineLimits, available: int
) -> Division:
    """Who gets how much of the ``available`` bytes.

    A CPU's memory is shared with everything else on the machine, so caches get shares of what is free there.
    An accelerator's is the server's own: all of it is given away but what steps need.

    Raises:
        ConfigError: it is too small; says what would fit.
    """
    context = loaded.max_model_len
    if loaded.device.type == "cpu":
        blocks = num_kv_blocks(
            settings.kv_cache_memory,
            available,
            bytes_per_block=decoder.kv_bytes_per_block,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=context,
        )
        return Division(blocks, adapter_bytes(settings.adapter_memory, available), merged=0, step=0)
    wanted = Wanted(settings.kv_cache_memory, settings.adapter_memory, settings.merge_memory)
    shape, block = BaseShape.of(loaded.hf.config, loaded.hf), decoder.kv_bytes_per_block
    demand = demand_of(shape, loaded, settings, limits, block=block, wanted=wanted)
    division = divide(available, demand)
    log_division(loaded, available, division, demand)
    return division


def demand_of(
    shape: BaseShape,
    loaded: LoadedModel,
    settings: Settings,
    limits: EngineLimits,
    *,
    block: int,
    wanted: Wanted,
) -> Demand:
    """What is asked of the memory of one accelerator that has a base, or a part of one, of that ``shape``.

    ``block`` are the bytes of K and V that a block takes there.
    """
    context = loaded.max_model_len
    size = StepSize(
        limits.max_batch_tokens,
        limits.max_num_seqs,
        context,
        settings.max_lora_rank,
        settings.deterministic,
    )
    return Demand(
        step=max(reserved_bytes(shape, loaded.dtype.itemsize, size), probe_bytes(shape)),
        block=block,
        context=context,
        sequences=limits.max_num_seqs,
        merged_copy=shape.linear * loaded.dtype.itemsize,
        wanted=wanted,
    )


def log_division(loaded: LoadedModel, available: int, division: Division, demand: Demand) -> None:
    """Say how ``available`` bytes are divided."""
    logger.info(
        "%s: %s free beside the base; K and V of %d tokens %s, adapters %s, merged copies %s, steps %s",
        loaded.device, gib(available), division.tokens, gib(division.num_blocks * demand.block),
        gib(division.adapters), gib(division.merged), gib(division.step),
    )  # fmt: skip


def merge_budget(loaded: LoadedModel, settings: Settings, division: Division) -> int:
    """Bytes that merged copies may take; on a CPU of what is free now."""
    if loaded.device.type == "cpu":
        return merge_bytes(settings.merge_memory, available_bytes(loaded.device))
    return division.merged
