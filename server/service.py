"""Everything one server process consists of, put together once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from manylora.adapters.errors import AdapterError
from manylora.adapters.format.pooling import PoolingConfig
from manylora.adapters.registry.tenants.records import PODS, TenantRecord
from manylora.adapters.sources.policy import SourcePolicy
from manylora.adapters.store.store import RevisionStore
from manylora.server.adapter_manager import AdapterManager
from manylora.server.batches.batches import BatchQueue
from manylora.server.engine.async_engine import AsyncEngine
from manylora.server.engine.engine import Engine
from manylora.server.errors import ConfigError
from manylora.server.exporting.exports import Exports
from manylora.server.files.expiry import FileExpiry
from manylora.server.files.readers import FileReader
from manylora.server.files.stored_files import StoredFiles
from manylora.server.files.uploads import FileUploads
from manylora.server.grammars.compiler import GrammarCompiler
from manylora.server.jobs.tuning import Tuning
from manylora.server.kernels.inputs import BLOCK_SIZE
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.parallel.starting import StartedRanks
from manylora.server.model.text.conventions import ConventionsCache
from manylora.server.model.text.tokenizer import Tokenizer
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings
from manylora.server.responses.background import Background
from manylora.server.responses.stored import StoredResponses
from manylora.server.tenants.directory import TenantDirectory
from manylora.server.tenants.view import TenantView
from manylora.server.threads import LimitedWork, request_pool
from manylora.server.tracing.current import RequestTracer
from manylora.server.vllm.gauges import Load, VllmGauges
from manylora.server.vllm.pods import PodNames
from manylora.server.vllm.residents import Residents

logger = logging.getLogger(__name__)

CHARS_PER_TOKEN = 64  # a text longer than this times the context can't fit; it is not tokenized
MAX_BATCH_LINE_BYTES = 4 << 20  # as a request's body
MAX_UPLOADED_PARTS = 10_000  # of one upload
_REQUEST_THREADS = 4  # that read files, render templates, turn long texts into tokens


@dataclass
class Service:
    """What the API serves. Put together in ``assembly``, started and stopped by the application."""

    config: Settings
    model_name: str
    tokenizer: Tokenizer
    conventions: ConventionsCache
    grammars: GrammarCompiler
    engine: AsyncEngine
    core: Engine  # behind ``engine``; touched only by its thread, or by checks while nothing runs
    adapters: AdapterManager
    exports: Exports
    measuring: LimitedWork  # for work on the logits of whole vocabularies
    store: RevisionStore
    sources: SourcePolicy  # from where adapters may be fetched, and how much of them
    metrics: Metrics
    max_model_len: int
    description: Mapping[str, object]  # for /version
    limits: EngineLimits
    pooling: PoolingConfig  # how the base embeds texts
    files: StoredFiles  # that clients uploaded
    file_readers: FileReader  # says what still needs one of them
    uploads: FileUploads  # files that come in parts
    expiry: FileExpiry  # of those files and uploads
    batches: BatchQueue
    responses: StoredResponses  # that clients go on from
    tenants: TenantDirectory  # who shares the server
    tuning: Tuning  # jobs that train adapters
    background: Background  # responses that nobody waits for
    tracer: RequestTracer | None  # of requests; None: nothing is traced
    ranks: StartedRanks | None  # the processes that share the base
    pods: PodNames  # of adapters that are this server's alone
    ready: bool = False
    started: float = field(default_factory=time.time)  # unix seconds

    vllm: VllmGauges = field(init=False)  # what routers in front of the server read

    def __post_init__(self) -> None:
        residents = Residents(self.adapters)
        self.vllm = VllmGauges(self.model_name, self.load, residents, lambda: self.pods.view)

    async def start(self) -> None:
        """Start the engine and load the configured adapters; ready afterwards.

        Raises:
            ConfigError: a configured adapter can't be served; says which, and every reason. Or the memory of
                the accelerator is too small.
        """
        asyncio.get_running_loop().set_default_executor(request_pool(_REQUEST_THREADS))
        self.engine.start()
        await self.engine.warmed()  # before anything is sent to the device that it captures on
        await self.adapters.start()
        await self.tenants.start()
        await self.expiry.start()
        alone = self.config.registry_scope == "pod"
        for name, path in self.config.adapter.items():
            try:
                registered = self.pods.own + name if alone else name
                await self.adapters.admin.load(registered, path, replace=True)
            except AdapterError as error:
                raise ConfigError(f"--adapter {name}={path}: {error}") from error
        for name in self.config.also_served_as:
            try:
                await self.adapters.aliases.put(name, [(self.model_name, 1.0)])
            except AdapterError as error:
                raise ConfigError(f"--also-served-as {name}: {error}") from error
        self.ready = True

    def view_of(self, tenant: TenantRecord) -> TenantView:
        """The names of the registry as a tenant sees them."""
        return TenantView(
            tenant, self.adapters.mirror, self.model_name, lambda name: name == PODS or self.tenants.has(name)
        )

    def load(self) -> Load:
        """What the engine is doing, and what waits for it."""
        engine, requests = self.core, self.metrics.requests
        return Load(
            running=len(engine.scheduler.running),
            waiting=len(engine.scheduler.waiting) + self.adapters.residency.device.num_waiting,
            kv_used=engine.blocks.num_used,
            kv_total=engine.blocks.num_blocks,
            block_size=BLOCK_SIZE,
            prefix_queries=requests.prefix_queried_tokens,
            prefix_hits=requests.prefix_hit_tokens,
            preemptions=requests.preemptions,
        )

    async def stop(self) -> None:
        """Stop admitting, end what runs, free what is held."""
        self.ready = False
        await self.tuning.stop()
        await self.batches.stop()
        await self.expiry.close()
        await self.background.stop()
        await self.exports.close()
        await self.engine.stop()
        await self.grammars.close()
        await self.conventions.close()
        await self.tenants.close()
        await self.pods.forget(self.adapters.deletions)
        await self.adapters.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        if self.ranks is not None:
            await asyncio.to_thread(self.ranks.close)
