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
    shape = BaseShape.of(loaded.hf.config, loaded.hf)
    size = StepSize(limits.max_batch_tokens, limits.max_num_seqs, context, settings.max_lora_rank)
    demand = Demand(
        step=max(reserved_bytes(shape, loaded.dtype.itemsize, size), probe_bytes(shape)),
        block=decoder.kv_bytes_per_block,
        context=context,
        sequences=limits.max_num_seqs,
        merged_copy=shape.linear * loaded.dtype.itemsize,
        wanted=Wanted(settings.kv_cache_memory, settings.adapter_memory, settings.merge_memory),
    )
    division = divide(available, demand)
    logger.info(
        "%s: %s free beside the base; K and V of %d tokens %s, adapters %s, merged copies %s, steps %s",
        loaded.device, gib(available), division.tokens, gib(division.num_blocks * demand.block),
        gib(division.adapters), gib(division.merged), gib(division.step),
    )  # fmt: skip
    return division


def merge_budget(loaded: LoadedModel, settings: Settings, division: Division) -> int:
    """Bytes that merged copies may take; on a CPU of what is free now."""
    if loaded.device.type == "cpu":
        return merge_bytes(settings.merge_memory, available_bytes(loaded.device))
    return division.merged
