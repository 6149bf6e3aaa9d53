"""vLLM's options: which of them have a meaning here, which change no answer, and which can't be had.

The names are those of vLLM's ``vllm serve``. An option that is in none of the tables is refused as well: what
is not known may change an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SWITCHES: Final = frozenset(
    {
        "async-scheduling",
        "disable-custom-all-reduce",
        "disable-fastapi-docs",
        "disable-frontend-multiprocessing",
        "disable-hybrid-kv-cache-manager",
        "disable-log-requests",
        "disable-log-stats",
        "disable-sliding-window",
        "disable-uvicorn-access-log",
        "enable-auto-tool-choice",
        "enable-chunked-prefill",
        "enable-expert-parallel",
        "enable-log-outputs",
        "enable-log-requests",
        "enable-lora",
        "enable-prefix-caching",
        "enable-prompt-tokens-details",
        "enable-reasoning",
        "enable-request-id-headers",
        "enable-server-load-tracking",
        "enable-sleep-mode",
        "enable-ssl-refresh",
        "enforce-eager",
        "fully-sharded-loras",
        "skip-tokenizer-init",
        "trust-remote-code",
        "use-tqdm-on-load",
    }
)
"""Options without a value, each with ``--no-…`` as well."""

LISTS: Final = frozenset({"api-key", "allowed-origins", "lora-modules", "served-model-name"})
"""Options with one value or several."""

SHORT: Final[Mapping[str, str]] = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-q": "quantization",
    "-n": "nnodes",
    "-O": "optimization-level",
    "-cc": "compilation-config",
    "-sc": "speculative-config",
}

SERVED: Final = frozenset(
    {
        "allowed-origins",
        "api-key",
        "device",
        "dtype",
        "enable-log-requests",
        "enable-prefix-caching",
        "host",
        "kv-cache-dtype",
        "kv-cache-memory-bytes",
        "lora-modules",
        "max-lora-rank",
        "max-model-len",
        "max-num-batched-tokens",
        "max-num-seqs",
        "otlp-traces-endpoint",
        "port",
        "quantization",
        "root-path",
        "served-model-name",
        "ssl-certfile",
        "ssl-keyfile",
        "tensor-parallel-size",
        "uds",
        "uvicorn-log-level",
    }
)
"""Options that do here what they do there."""

ONLY: Final[Mapping[str, tuple[str, ...]]] = {
    "chat-template-content-format": ("auto", "string", "openai"),
    "config-format": ("auto", "hf"),
    "convert": ("auto", "none"),
    "data-parallel-size": ("1",),
    "generation-config": ("vllm",),
    "load-format": ("auto", "safetensors", "gguf", "bitsandbytes"),
    "logprobs-mode": ("raw_logprobs",),
    "model-impl": ("auto", "vllm", "transformers"),
    "nnodes": ("1",),
    "pipeline-parallel-size": ("1",),
    "response-role": ("assistant",),
    "revision": ("main",),
    "runner": ("auto", "generate"),
    "seed": ("0",),
    "ssl-cert-reqs": ("0",),
    "task": ("auto", "generate"),
    "tokenizer-mode": ("auto", "hf"),
    "tokenizer-revision": ("main",),
}
"""Options of which these values are what is done anyway, and others can't be had."""

IGNORED: Final[Mapping[str, str]] = {
    "api-server-count": "one process serves",
    "async-scheduling": "steps are prepared ahead where that helps",
    "attention-backend": "the kernels are our own",
    "block-size": "blocks have 16 tokens",
    "calculate-kv-scales": "the KV cache is not in fp8",
    "collect-detailed-traces": "all spans are sent",
    "compilation-config": "nothing is compiled",
    "cpu-offload-gb": "the base stays on one device",
    "disable-access-log-for-endpoints": "--enable-log-requests logs all requests or none",
    "disable-custom-all-reduce": "there is none",
    "disable-fastapi-docs": "the routes' description holds nothing secret",
    "disable-frontend-multiprocessing": "one process serves",
    "disable-hybrid-kv-cache-manager": "there is none",
    "disable-log-requests": "requests are not logged anyway",
    "disable-log-stats": "nothing is logged regularly",
    "disable-uvicorn-access-log": "--enable-log-requests says whether requests are logged",
    "distributed-executor-backend": "ranks are processes",
    "download-dir": "models of the Hub are in its own cache",
    "enable-auto-tool-choice": "tools are served where the template has a place for them",
    "enable-chunked-prefill": "prompts are always computed in chunks beside answers",
    "enable-expert-parallel": "experts are not divided",
    "enable-lora": "adapters are always served",
    "enable-prompt-tokens-details": "they are always told",
    "enable-reasoning": "it is told apart where the template says how",
    "enable-request-id-headers": "they are always sent",
    "enable-server-load-tracking": "the metrics have it",
    "enable-sleep-mode": "the server does not sleep",
    "enable-ssl-refresh": "a restart reads certificates again",
    "enforce-eager": "what is captured answers the same",
    "fully-sharded-loras": "how adapters are divided follows from their layers",
    "gpu-memory-utilization": "--kv-cache-memory-bytes bounds the KV cache, MANYLORA_ADAPTER_MEMORY adapters",
    "kv-events-config": "no events of the KV cache are sent",
    "limit-mm-per-prompt": "there are texts only",
    "log-config-file": "MANYLORA_LOG_LEVEL and MANYLORA_LOG_FORMAT say what is logged",
    "lora-dtype": "adapters are computed in the base's format",
    "lora-extra-vocab-size": "adapters may have any number of tokens of their own",
    "max-cpu-loras": "MANYLORA_ADAPTER_CACHE_MEMORY bounds them by their size",
    "max-log-len": "prompts are not logged",
    "max-logprobs": "up to 20 are given",
    "max-loras": "MANYLORA_ADAPTER_MEMORY bounds them by their size",
    "max-parallel-loading-workers": "one thread loads",
    "max-seq-len-to-capture": "steps of any length are captured by their rows",
    "mm-processor-cache-gb": "there are texts only",
    "num-gpu-blocks-override": "--kv-cache-memory-bytes bounds them",
    "optimization-level": "nothing is compiled",
    "prefix-caching-hash-algo": "it is one",
    "reasoning-parser": "the template says how reasoning is told apart",
    "scheduling-policy": "requests with the lower priority field go first, the others in order",
    "shutdown-timeout": "MANYLORA_SHUTDOWN_TIMEOUT is ours",
    "speculative-config": "answers are not drafted, which would not change them",
    "structured-outputs-config": "one library holds answers to their format",
    "guided-decoding-backend": "one library holds answers to their format",
    "swap-space": "what has to make room is computed again",
    "tool-call-parser": "the template says how calls are written",
    "trust-remote-code": "no code of a model runs; a model that needs its own is refused",
    "use-tqdm-on-load": "progress is shown on terminals",
    "uvicorn-access-log": "--enable-log-requests says whether requests are logged",
}
"""Options that change no answer, and why they change nothing here either."""
