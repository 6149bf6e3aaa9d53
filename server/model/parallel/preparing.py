"""The memory that ranks take, by rank and together."""

from __future__ import annotations

from dataclasses import replace

import torch

from manylora.server.memory_budget import adapter_bytes, num_kv_blocks, return_freed
from manylora.server.model.loading.memory import demand_of, log_division
from manylora.server.model.loading.preparing import Prepared
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool
from manylora.server.model.parallel.starting import StartedRanks
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings
from manylora.server.sizing.division import Division, Wanted, divide
from manylora.server.sizing.shape import BaseShape


def prepare_ranks(started: StartedRanks, settings: Settings, limits: EngineLimits) -> Prepared:
    """The decoder of ranks that have met, with the memory it runs in, once it has passed the probe.

    Raises:
        ConfigError: memory is too small; says what would fit.
        ModelRefused: the ranks together don't compute what the model does.
    """
    loaded, decoder = started.loaded, started.decoder
    memory = divide_ranks(started, settings, limits)
    pool = PagePool(
        decoder.modules,
        memory.adapters,
        loaded.dtype,
        loaded.device,
        decoder,
        tables=decoder.tables,
        shards=decoder.shards,
    )
    rows = max(limits.max_batch_tokens, PROBE_ROWS)
    decoder.allocate(pool.data, max(memory.num_blocks, PROBE_BLOCKS), rows)
    decoder.take_over(started.share.hf)
    return_freed(loaded.device)
    precision = loaded.dtype if settings.kv_cache_dtype == "auto" else torch.bfloat16
    with started.whole.original() as model:
        error = max(probe(model, decoder, precision), probe_adapters(model, decoder, pool, precision))
    return Prepared(decoder, pool, memory.num_blocks, memory, error, decoder.kernels_note)


def divide_ranks(started: StartedRanks, settings: Settings, limits: EngineLimits) -> Division:
    """Who gets how much, in bytes of all ranks together; blocks are counted once.

    On a CPU all of them share its memory. Of GPUs the one with the least decides.
    """
    loaded, block, count = started.loaded, started.decoder.kv_bytes_per_block, started.share.sharding.count
    if loaded.device.type == "cpu":
        blocks = num_kv_blocks(
            settings.kv_cache_memory,
            started.free,
            bytes_per_block=block * count,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=loaded.max_model_len,
        )
        return Division(blocks, adapter_bytes(settings.adapter_memory, started.free), merged=0, step=0)
    share = started.share
    wanted = (settings.kv_cache_memory, settings.adapter_memory, settings.merge_memory)
    demand = demand_of(
        BaseShape.of(share.hf.config, share.hf),
        loaded,
        settings,
        limits,
        block=block,
        wanted=Wanted(*(None if size is None else size // count for size in wanted)),
    )
    each = divide(started.free, demand)
    log_division(loaded, started.free, each, demand)
    return replace(each, adapters=each.adapters * count, merged=each.merged * count)
