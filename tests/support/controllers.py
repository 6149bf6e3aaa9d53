"""Stand-ins for what drives model servers in Kubernetes, written after what is known of their calls.

AIBrix's ModelAdapter controller and production-stack's LoraAdapter controller load an adapter into each pod,
and unload it from each; llm-d's endpoint picker reads metrics and chooses a pod by them. None of them knows
that servers may share a registry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass
class ModelAdapterController:
    """AIBrix's: looks whether a pod has the adapter, and if not loads it; 200 and 201 are success."""

    pods: Sequence[str]  # URLs
    succeeds: frozenset[int] = frozenset({200, 201})

    def load(self, name: str, path: str, pods: Sequence[str] | None = None) -> None:
        """Have the pods serve it, all of them by default."""
        for pod in self.pods if pods is None else pods:
            if name not in self.listed(pod):
                self._post(pod, "load", lora_name=name, lora_path=path)
            assert name in self.listed(pod), f"{pod} does not list {name}"

    def unload(self, name: str, pods: Sequence[str] | None = None) -> None:
        """Have the pods serve it no more."""
        for pod in self.pods if pods is None else pods:
            self._post(pod, "unload", lora_name=name)

    def listed(self, pod: str) -> dict[str, str]:
        """Adapters by name, with what stands for their source; a model without a parent is the base."""
        answer = httpx.get(f"{pod}/v1/models", timeout=10)
        assert answer.status_code == 200, answer.text
        cards = answer.json()["data"]
        assert all({"id", "root", "created", "parent"} <= card.keys() for card in cards)
        return {card["id"]: card["root"] for card in cards if card["parent"] is not None}

    def _post(self, pod: str, what: str, **body: str) -> None:
        answer = httpx.post(f"{pod}/v1/{what}_lora_adapter", json=body, timeout=30)
        assert answer.status_code in self.succeeds, f"{pod}: {answer.status_code} {answer.text}"


@dataclass
class LoraAdapterController(ModelAdapterController):
    """Production-stack's: loads whether or not the pod has it, again in each round; only 200 is success."""

    succeeds: frozenset[int] = frozenset({200})

    def load(self, name: str, path: str, pods: Sequence[str] | None = None) -> None:
        """Have the pods serve it, all of them by default."""
        for _ in range(2):
            for pod in self.pods if pods is None else pods:
                self._post(pod, "load", lora_name=name, lora_path=path)


@dataclass(frozen=True)
class PodState:
    """What the picker has read of a pod."""

    waiting: float
    running: float
    kv_usage: float  # of 1
    block_size: int
    num_blocks: int
    max_lora: int
    resident: frozenset[str]
    awaited: frozenset[str]


@dataclass
class EndpointPicker:
    """llm-d's: scrapes each pod without a key, and scores pods by adapter, queue and KV cache."""

    pods: Sequence[str]  # where their metrics are
    weights: Mapping[str, float] = field(default_factory=lambda: {"lora": 3.0, "queue": 1.0, "kv": 1.0})

    def pick(self, adapter: str | None) -> int:
        """The pod for a request, by its number."""
        states = [self.scrape(pod) for pod in self.pods]
        longest = max(1.0, *(state.waiting for state in states))
        scores = [
            self.weights["lora"] * (0.0 if adapter is None else self._affinity(state, adapter))
            + self.weights["queue"] * (1 - state.waiting / longest)
            + self.weights["kv"] * (1 - state.kv_usage)
            for state in states
        ]
        return scores.index(max(scores))

    @staticmethod
    def scrape(pod: str) -> PodState:
        """What one pod says of itself; of several series of adapters the newest counts."""
        answer = httpx.get(f"{pod}/metrics", timeout=5)
        assert answer.status_code == 200, answer.text
        values: dict[str, float] = {}
        labels: dict[str, dict[str, str]] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name.startswith("vllm:") and sample.value >= values.get(sample.name, float("-inf")):
                    values[sample.name], labels[sample.name] = sample.value, sample.labels
        adapters, sizes = labels["vllm:lora_requests_info"], labels["vllm:cache_config_info"]
        return PodState(
            waiting=values["vllm:num_requests_waiting"],
            running=values["vllm:num_requests_running"],
            kv_usage=values["vllm:kv_cache_usage_perc"],
            block_size=int(sizes["block_size"]),
            num_blocks=int(sizes["num_gpu_blocks"]),
            max_lora=int(adapters["max_lora"]),
            resident=_names(adapters["running_lora_adapters"]),
            awaited=_names(adapters["waiting_lora_adapters"]),
        )

    @staticmethod
    def _affinity(state: PodState, adapter: str) -> float:
        if adapter in state.resident:
            return 1.0
        if len(state.resident) + len(state.awaited) < state.max_lora:
            return 0.8
        return 0.6 if adapter in state.awaited else 0.0


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {""}
