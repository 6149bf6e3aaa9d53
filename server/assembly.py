"""A server put together from its settings: the base model, and everything around it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from manylora.adapters.format.artifact import Limits
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.pooling import read_pooling
from manylora.adapters.registry.registry import Registry
from manylora.adapters.sources.fetching import fetch, find, policy_for
from manylora.adapters.sources.policy import SourcePolicy
from manylora.adapters.store.store import RevisionStore
from manylora.server.adapter_manager import AdapterManager, AdapterSources, MergeOptions
from manylora.server.batches.batches import BatchQueue
from manylora.server.cores import threads_to_set
from manylora.server.engine.async_engine import AsyncEngine
from manylora.server.engine.engine import Engine, EngineConfig
from manylora.server.engine.faults import Supervision, device_works
from manylora.server.engine.order.turns import Turns
from manylora.server.exporting.exports import Exports
from manylora.server.files.expiry import FileExpiry
from manylora.server.files.readers import files_in_use
from manylora.server.files.stored_files import StoredFiles
from manylora.server.files.uploads import FileUploads
from manylora.server.grammars.compiler import GrammarCompiler
from manylora.server.jobs.tuning import Tuning, mode_of
from manylora.server.kernels.inputs import BLOCK_SIZE
from manylora.server.memory_budget import cache_bytes
from manylora.server.merged.auto_merge import AutoMergeRules
from manylora.server.merged.measuring import PROBES, MergeMeasure
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.base import Base, load_base
from manylora.server.model.loading.device import resolve_device, use_device
from manylora.server.model.loading.loader import LoadedModel, describe_base
from manylora.server.model.loading.memory import merge_budget
from manylora.server.model.loading.preparing import Prepared
from manylora.server.model.pages.pool import PagePool
from manylora.server.model.text.conventions import ConventionsCache
from manylora.server.model.text.templates import TemplateProcesses
from manylora.server.model.warm_up import warm_up
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings
from manylora.server.residency.held_mix import HeldMix
from manylora.server.responses.background import Background
from manylora.server.responses.stored import StoredResponses
from manylora.server.service import Service
from manylora.server.tenants.directory import TenantDirectory
from manylora.server.threads import SlowWork
from manylora.server.tracing.starting import start_tracing
from manylora.server.vllm.pods import PodNames

logger = logging.getLogger(__name__)

CHARS_PER_TOKEN = 64  # a text longer than this times the context can't fit; it is not tokenized
MAX_BATCH_LINE_BYTES = 4 << 20  # as a request's body
MAX_UPLOADED_PARTS = 10_000  # of one upload
_REQUEST_THREADS = 4  # that read files, render templates, turn long texts into tokens


def build_service(settings: Settings, model_dir: Path) -> Service:
    """Load the base model in ``model_dir`` and put a server together around it.

    Raises:
        ModelRefused: the model can't be served correctly.
        ConfigError: an option does not fit the model or the machine.
    """
    if (threads := threads_to_set(os.environ)) is not None:
        torch.set_num_threads(threads)
    if resolve_device(settings.device).type != "cpu":
        keep_compiled(settings.data_dir)
    base = load_base(settings, model_dir)
    try:
        return _service(settings, model_dir, base)
    except BaseException:
        if base.ranks is not None:
            base.ranks.close()
        raise


def _service(settings: Settings, model_dir: Path, base: Base) -> Service:
    loaded, prepared, limits = base.loaded, base.prepared, base.limits
    fell_back = settings.kernels == "auto" and prepared.decoder.kernels == "pytorch"
    max_model_len = min(loaded.max_model_len, (prepared.num_blocks - 1) * BLOCK_SIZE)
    if max_model_len < loaded.max_model_len:
        logger.warning("context limited to %d tokens by the memory for keys and values", max_model_len)
    name = settings.model_name
    metrics = Metrics()
    metrics.steps.ask_fallback(lambda: fell_back)
    if (capturing := prepared.decoder.capturing) is not None:
        metrics.steps.ask_uncaptured(lambda: capturing.num_failed)
    core = _engine(loaded, prepared, settings, limits, metrics)
    engine = AsyncEngine(
        core,
        max_model_len=max_model_len,
        max_open=limits.max_num_seqs + settings.max_waiting,
        supervision=_supervision(base, max_model_len),
    )
    store = RevisionStore(settings.data_dir / "adapters")
    slow = SlowWork()
    measuring = slow.limited(1)
    prompts = [loaded.tokenizer.encode(text)[: max_model_len - 1] for text in PROBES]
    merging = MergeOptions(
        prepared.decoder,
        MergeMeasure(engine, measuring, prompts),
        answering=lambda: [held for held in engine.answering() if isinstance(held, HeldMix)],
        busy=lambda: engine.num_open > 0,
        budget=merge_budget(loaded, settings, prepared.memory),
        element_bytes=loaded.dtype.itemsize,
        automatic=_auto_merge_rules(settings),
    )
    artifact_limits = Limits(settings.max_lora_rank, prepared.pool.capacity_bytes, max(0, max_model_len - 2))
    adapters = _adapters(
        describe_base(loaded, prepared.decoder, name),
        prepared.pool,
        store,
        settings,
        limits=artifact_limits,
        metrics=metrics,
        slow=slow,
        merging=merging,
        turns=core.scheduler.turns,
    )
    processes = TemplateProcesses(max_chars=max_model_len * CHARS_PER_TOKEN)
    files = StoredFiles(adapters.registry.files, settings.data_dir / "files", settings.files_url)
    uploads = FileUploads(adapters.registry.uploads, files, MAX_UPLOADED_PARTS)
    batches = BatchQueue(
        adapters.registry.batches,
        files,
        lambda own: _batch_room(engine, limits.max_num_seqs, own),
        MAX_BATCH_LINE_BYTES,
    )
    responses = StoredResponses(adapters.registry.responses, settings.response_store)
    tenants = TenantDirectory(
        adapters.registry, usage_days=settings.usage_days, audit_days=settings.audit_days
    )
    tuning = Tuning(
        mode_of(settings.training, loaded.device.type),
        settings,
        model_dir,
        adapters=adapters,
        files=files,
        tenants=tenants,
        device=loaded.device.type,
    )
    file_readers = files_in_use(batches.needs, tuning.needs)
    return Service(
        config=settings,
        model_name=name,
        tokenizer=loaded.tokenizer,
        conventions=ConventionsCache(loaded.tokenizer, processes, store.path, loaded.pad_id),
        grammars=GrammarCompiler(core.vocab_size),
        engine=engine,
        core=core,
        adapters=adapters,
        exports=Exports(adapters, store.path, model_dir, settings.export_root),
        measuring=measuring,
        store=store,
        sources=source_policy(settings),
        metrics=metrics,
        max_model_len=max_model_len,
        description=_describe(loaded, prepared, settings, max_model_len),
        limits=limits,
        pooling=read_pooling(model_dir),
        files=files,
        file_readers=file_readers,
        uploads=uploads,
        expiry=FileExpiry(files, uploads, file_readers),
        batches=batches,
        responses=responses,
        tenants=tenants,
        tuning=tuning,
        background=Background(responses),
        tracer=start_tracing(settings.otlp_endpoint, os.environ),
        ranks=base.ranks,
        pods=PodNames(settings.pod_name, adapters.mirror, usual=settings.registry_scope == "pod"),
    )


def _engine(
    loaded: LoadedModel, prepared: Prepared, settings: Settings, limits: EngineLimits, metrics: Metrics
) -> Engine:
    config = EngineConfig(
        num_blocks=prepared.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        max_batch_tokens=limits.max_batch_tokens,
        max_stretch=settings.max_stretch,
        fair=settings.scheduling == "fair",
        prefix_cache=settings.enable_prefix_cache,
        deterministic=settings.deterministic,
    )
    return Engine(prepared.decoder, loaded.tokenizer, config, fingerprint=loaded.fingerprint, metrics=metrics)


def _supervision(base: Base, max_model_len: int) -> Supervision:
    """How the engine is looked after: on a CPU alone nothing is lost, hangs or has to be warmed up."""
    device, limits, ranks = base.loaded.device, base.limits, base.ranks
    until_lost = None if ranks is None else ranks.leader.until_lost
    if device.type == "cpu":
        works = None if ranks is None else lambda: ranks.leader.reason is None
        return Supervision(works, limits.step_timeout, until_lost=until_lost)

    def begin() -> None:
        use_device(device)
        warm_up(
            base.prepared.decoder,
            rows=limits.max_batch_tokens,
            sequences=limits.max_num_seqs,
            context=max_model_len,
        )

    def all_work() -> bool:
        return (ranks is None or ranks.leader.reason is None) and device_works(device)

    return Supervision(all_work, limits.step_timeout, begin, until_lost)


def keep_compiled(data_dir: Path) -> None:
    """Have Triton keep its compiled kernels beside the models, unless the environment says where.

    Its own place is in the home folder, which in a container may be read-only, or gone with it.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(data_dir / "triton"))


def source_policy(settings: Settings) -> SourcePolicy:
    """What the settings allow to be fetched."""
    return SourcePolicy(
        roots=tuple(settings.adapter_root),
        repositories=tuple(settings.adapter_repository),
        urls=tuple(settings.adapter_url),
    )


def _batch_room(engine: AsyncEngine, max_running: int, own: int) -> int:
    """How many requests of batches may run: all that fit, an eighth of that while others are there."""
    return max(1, max_running if engine.num_open <= own else max_running // 8)


def _auto_merge_rules(settings: Settings) -> AutoMergeRules | None:
    if not settings.auto_merge:
        return None
    return AutoMergeRules(
        settings.auto_merge_share, settings.auto_merge_seconds, settings.auto_merge_sequences
    )


def _adapters(
    base: BaseModel,
    pool: PagePool,
    store: RevisionStore,
    settings: Settings,
    *,
    limits: Limits,
    metrics: Metrics,
    slow: SlowWork,
    merging: MergeOptions,
    turns: Turns | None,
) -> AdapterManager:
    policy = policy_for(settings.resolve, source_policy(settings))
    return AdapterManager(
        base=base,
        store=store,
        registry=Registry(
            settings.registry,
            owner=store.owner,
            directory=store.identity,
            history=settings.keep_revisions,
        ),
        pool=pool,
        limits=limits,
        metrics=metrics,
        max_waiting=settings.max_waiting,
        memory_bytes=cache_bytes(settings.adapter_cache_memory),
        sources=AdapterSources(
            fetch=lambda source, into: fetch(source, into, policy),
            find=(lambda name: find(name, settings.resolve, policy)) if settings.resolve else None,
        ),
        slow=slow,
        merging=merging,
        turns=turns,
    )


def _describe(
    loaded: LoadedModel, prepared: Prepared, settings: Settings, max_model_len: int
) -> dict[str, object]:
    return {
        "decoder": prepared.decoder.name,
        "kernels": prepared.decoder.kernels,
        "kernels_note": prepared.kernels_note,
        "architecture": type(loaded.hf).__name__,
        "quantization": loaded.quantize,
        "base_bytes": prepared.decoder.weight_bytes,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "tensor_parallel_size": settings.tensor_parallel_size,
        "fingerprint": loaded.fingerprint,
        "probe_error": prepared.probe_error,
        "max_model_len": max_model_len,
        "kv_blocks": prepared.num_blocks - 1,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "deterministic": settings.deterministic,
        "adapter_memory_bytes": prepared.pool.capacity_bytes,
    }
