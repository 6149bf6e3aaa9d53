"""From a loaded model to a decoder that is trusted, with the memory that it runs in."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from manylora.server.errors import ModelRefused
from manylora.server.memory_budget import available_bytes, return_freed
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.kept_references import KeptReferences
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates
from manylora.server.model.loading.memory import divide_memory
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings
from manylora.server.sizing.division import Division

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A decoder that has passed the probe, with the memory it runs in."""

    decoder: Decoder
    pool: PagePool
    num_blocks: int  # the padding block included
    memory: Division
    probe_error: float
    kernels_note: str


def prepare(loaded: LoadedModel, settings: Settings, limits: EngineLimits) -> Prepared:
    """The first of the decoders that may serve the model to pass the probe."""
    on_cpu = loaded.device.type == "cpu"
    available = available_bytes(loaded.device)
    refusals: list[str] = []
    for decoder in decoder_candidates(
        loaded,
        settings.kernels,
        coded_cache=settings.kv_cache_dtype == "int8",
        deterministic=settings.deterministic,
    ):
        if not on_cpu:  # the decoder holds the base now, and nothing else holds a part of it
            return_freed(loaded.device)
            available = available_bytes(loaded.device)
        note = "; ".join(refusals) if refusals else decoder.kernels_note
        memory = divide_memory(loaded, decoder, settings, limits, available)
        try:
            pool, error = _allocate_and_probe(loaded, decoder, settings, limits, memory)
        except ModelRefused as refusal:
            logger.warning("%s", refusal)
            refusals.append(str(refusal))
            del decoder  # on a GPU there is no room for two caches
        else:
            decoder.take_over(loaded.hf)
            return_freed(loaded.device)
            return Prepared(decoder, pool, memory.num_blocks, memory, error, note)
    where = "" if settings.kv_cache_dtype == "auto" else f" with --kv-cache-dtype {settings.kv_cache_dtype}"
    where += " with --deterministic" if settings.deterministic else ""
    raise ModelRefused(f"no decoder serves this model correctly{where}: " + "; ".join(refusals))


def _allocate_and_probe(
    loaded: LoadedModel, decoder: Decoder, settings: Settings, limits: EngineLimits, memory: Division
) -> tuple[PagePool, float]:
    """The page pool, and the largest error that the probe found."""
    taken = decoder.taken if isinstance(decoder, FusedDecoder) else None
    pool = PagePool(
        decoder.modules,
        memory.adapters,
        loaded.dtype,
        loaded.device,
        decoder,
        tables=decoder.tables,
        taken=None if taken is None else taken.check,
    )
    rows = max(limits.max_batch_tokens, PROBE_ROWS)
    decoder.allocate(pool.data, max(memory.num_blocks, PROBE_BLOCKS), rows)
    # Keys and values in 8 bits may move a model as far as computing in 16 bits does, and no further.
    precision = loaded.dtype if settings.kv_cache_dtype == "auto" else torch.bfloat16
    kept = KeptReferences.of(loaded, decoder.name, precision)
    error = max(
        probe(loaded.hf, decoder, precision, kept),
        probe_adapters(
            loaded.hf,
            decoder,
            pool,
            precision,
            kept,
            scales_inputs=None if taken is None else taken.scales_inputs,
        ),
    )
    return pool, error
