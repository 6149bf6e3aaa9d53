"""Metrics under vLLM's names, for routers that know no others: llm-d, AIBrix, vLLM's production-stack.

They ask many times a second, and decide by it where a request goes. So all of it is of the moment in which it
is asked for, and costs well under a millisecond with a thousand adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from manylora.server.names.view import View
from manylora.server.vllm.residents import Resident, Residents

MEANINGS: Mapping[str, tuple[str, str]] = {
    "vllm:num_requests_running": ("gauge", "Sequences in the batch."),
    "vllm:num_requests_waiting": ("gauge", "Sequences that wait for admission, and requests for an adapter."),
    "vllm:kv_cache_usage_perc": ("gauge", "KV cache in use; 1 is all of it."),
    "vllm:gpu_cache_usage_perc": ("gauge", "The same under its older name."),
    "vllm:prefix_cache_queries_total": ("counter", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits_total": ("counter", "Prompt tokens found there."),
    "vllm:gpu_prefix_cache_queries_total": ("counter", "Tokens looked up, under the older name."),
    "vllm:gpu_prefix_cache_hits_total": ("counter", "Tokens found, under the older name."),
    "vllm:num_preemptions_total": ("counter", "Sequences set back to waiting."),
    "vllm:cache_config_info": ("gauge", "Size of a KV block in tokens, and the number of blocks."),
    "vllm:lora_requests_info": ("gauge", "When this was asked for; adapters on the device are its label."),
    "vllm:num_gpu_loaded_lora_adapters": ("gauge", "Adapters on the device."),
    "vllm:max_gpu_lora_adapters": ("gauge", "About how many there is room for."),
    "vllm:lora_adapter_loaded": ("gauge", "1 for each adapter in memory."),
}
"""Type and meaning of each metric."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a server is doing at one moment."""

    running: int
    waiting: int
    kv_used: int  # blocks
    kv_total: int
    block_size: int  # tokens
    prefix_queries: int  # tokens looked up so far
    prefix_hits: int
    preemptions: int


class VllmGauges:
    """The exposition of one server, in Prometheus' text format. Event loop."""

    def __init__(
        self,
        model: str,
        load: Callable[[], Load],
        residents: Residents,
        view: Callable[[], View | None] = lambda: None,
    ) -> None:
        """``model`` is the base's name, ``view`` what there is of the registry's names."""
        self._model = f'model_name="{_escaped(model)}"'
        self._load = load
        self._residents = residents
        self._view = view
        self._of_adapters: tuple[tuple[Resident, ...], str, str] | None = None

    def exposition(self) -> bytes:
        """All metrics of :data:`MEANINGS`, as things stand."""
        return "".join(self._families()).encode()

    def _families(self) -> Iterator[str]:
        view = self._view()
        load, residents, room = self._load(), self._residents.all(view), self._residents.room
        used = load.kv_used / load.kv_total if load.kv_total else 0.0
        values = {
            "vllm:num_requests_running": load.running,
            "vllm:num_requests_waiting": load.waiting,
            "vllm:kv_cache_usage_perc": used,
            "vllm:gpu_cache_usage_perc": used,
            "vllm:prefix_cache_queries_total": load.prefix_queries,
            "vllm:prefix_cache_hits_total": load.prefix_hits,
            "vllm:gpu_prefix_cache_queries_total": load.prefix_queries,
            "vllm:gpu_prefix_cache_hits_total": load.prefix_hits,
            "vllm:num_preemptions_total": load.preemptions,
            "vllm:num_gpu_loaded_lora_adapters": sum(each.level == "gpu" for each in residents),
            "vllm:max_gpu_lora_adapters": room,
        }
        for name, value in values.items():
            yield f"{_head(name)}{name}{{{self._model}}} {value}\n"
        name = "vllm:cache_config_info"
        sizes = f'block_size="{load.block_size}",num_gpu_blocks="{load.kv_total}"'
        yield f"{_head(name)}{name}{{{sizes},{self._model}}} 1\n"
        names, series = self._adapters(residents)
        waiting = ",".join(self._residents.waited_for(view))
        name = "vllm:lora_requests_info"
        labels = f'max_lora="{room}",running_lora_adapters="{names}",waiting_lora_adapters="{waiting}"'
        yield f"{_head(name)}{name}{{{labels}}} {time.time()}\n"
        yield _head("vllm:lora_adapter_loaded") + series

    def _adapters(self, residents: tuple[Resident, ...]) -> tuple[str, str]:
        """The names of those on the device, and the series of all."""
        if self._of_adapters is None or self._of_adapters[0] is not residents:
            names = ",".join(each.name for each in residents if each.level == "gpu")
            self._of_adapters = residents, names, "".join(map(_series, residents))
        return self._of_adapters[1:]


def _series(resident: Resident) -> str:
    return (
        f'vllm:lora_adapter_loaded{{adapter_name="{resident.name}",level="{resident.level}",'
        f'pinned="{str(resident.pinned).lower()}",rank="{resident.rank}"}} 1\n'
    )


def _head(name: str) -> str:
    kind, meaning = MEANINGS[name]
    return f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
