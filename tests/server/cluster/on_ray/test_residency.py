"""Where requests go: to replicas that hold their adapters; and what is done on all replicas."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.adapters import write_adapter
from tests.support.ray_application import RayApplication

pytestmark = [pytest.mark.ray, pytest.mark.sweep, pytest.mark.timeout(900)]

ADAPTERS, REQUESTS, DISTINCT = 500, 3000, 10


def ask(http: httpx.Client, model: str, tokens: int = 2) -> httpx.Response:
    body = {"model": model, "prompt": "x", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def found_in(http: httpx.Client) -> dict[str, float]:
    """How many adapters requests found in each tier, over all replicas."""
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    found: dict[str, float] = {}
    for sample in families["manylora_adapter_tier_hits"].samples:
        found[sample.labels["tier"]] = found.get(sample.labels["tier"], 0.0) + sample.value
    return found


def test_under_zipf_95_of_100_requests_reach_a_replica_that_holds_their_adapter(
    on_ray: RayApplication, adapters: Path, model: Path
) -> None:
    """500 adapters; each replica has room for about 280."""
    for seed in range(DISTINCT):
        write_adapter(adapters / f"zipf-{seed}", model, rank=2, seed=seed, targets="all-linear")
    names = [f"zipf-{number:03}" for number in range(ADAPTERS)]

    def publish(number: int) -> None:
        path = str(adapters / f"zipf-{number % DISTINCT}")
        body = {"lora_name": names[number], "lora_path": path}
        answer = http.post("/v1/load_lora_adapter", json=body)
        assert answer.status_code == 200, answer.text

    weights = list(accumulate(1 / (rank + 1) for rank in range(ADAPTERS)))
    asked = random.Random(0).choices(names, cum_weights=weights, k=REQUESTS)
    with on_ray.http() as http, ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(ADAPTERS)))
        before = found_in(http)
        list(pool.map(lambda name: ask(http, name), asked))
        after = found_in(http)
        found = {tier: after[tier] - before[tier] for tier in after}
        list(pool.map(lambda name: http.delete(f"/v1/adapters/{name}"), names))
    assert sum(found.values()) == REQUESTS
    assert found["device"] >= 0.95 * REQUESTS, found


def test_a_merged_copy_answers_wherever_it_is_and_goes_everywhere(on_ray: RayApplication) -> None:
    with on_ray.http() as http, ThreadPoolExecutor(6) as pool:
        made = http.post("/v1/adapters/alpha*0.5+gamma/merge")
        assert made.status_code == 200, made.text
        place = made.headers["x-manylora-replica"]
        merged = "alpha@merged*0.5+gamma@merged"
        answers = list(pool.map(lambda _: ask(http, merged, 8), range(12)))
        assert {answer.headers["x-manylora-replica"] for answer in answers} == {place}
        assert http.get("/v1/adapters/gamma+alpha*0.5/merge").status_code == 200
        assert http.delete("/v1/adapters/alpha*0.5+gamma/merge").status_code == 200
        assert all(replica["merged_copies"] == [] for replica in on_ray.replicas())


def test_evicting_takes_an_adapter_off_every_replica(on_ray: RayApplication) -> None:
    with on_ray.http() as http:
        assert any("alpha" in replica["adapters_resident"] for replica in on_ray.replicas())
        assert http.post("/v1/adapters/alpha/evict").status_code == 200
        assert not any("alpha" in replica["adapters_resident"] for replica in on_ray.replicas())
        ask(http, "alpha")
        assert any("alpha" in replica["adapters_resident"] for replica in on_ray.replicas())
