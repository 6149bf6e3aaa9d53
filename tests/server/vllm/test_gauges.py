"""Metrics under vLLM's names, and the address where they are told by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from manylora.server.api.metrics_app import OwnMetrics
from manylora.server.vllm.gauges import MEANINGS, Load, VllmGauges
from manylora.server.vllm.residents import Resident
from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.server_process import server_process, small_options

LOAD = Load(3, 2, 25, 100, 16, 70, 30, 1)


class Many:
    """A thousand adapters, which are what they are."""

    room = 2000

    def __init__(self) -> None:
        self.found = tuple(Resident(f"tenant/adapter-{n:04}", "gpu", n == 0, 8) for n in range(1000))

    def all(self, _: object = None) -> tuple[Resident, ...]:
        return self.found

    def waited_for(self, _: object = None) -> list[str]:
        return ["a", "b"]


def test_the_text_is_prometheus_and_says_what_is() -> None:
    gauges = VllmGauges('ba"se\n', lambda: LOAD, Many())  # type: ignore[arg-type]
    families = list(text_string_to_metric_families(gauges.exposition().decode()))
    values = {s.name: (s.value, s.labels) for family in families for s in family.samples}
    assert values["vllm:num_requests_running"] == (3, {"model_name": 'ba"se\n'})
    assert values["vllm:num_requests_waiting"][0] == 2
    assert values["vllm:kv_cache_usage_perc"][0] == 0.25
    assert values["vllm:prefix_cache_hits_total"][0] == 30
    sizes = values["vllm:cache_config_info"][1]
    assert (sizes["block_size"], sizes["num_gpu_blocks"]) == ("16", "100")
    adapters = values["vllm:lora_requests_info"][1]
    assert adapters["waiting_lora_adapters"] == "a,b"
    assert len(adapters["running_lora_adapters"].split(",")) == 1000
    assert adapters["max_lora"] == "2000"
    assert {name for name in values if name.startswith("vllm:")} == MEANINGS.keys()


def test_a_scrape_of_a_thousand_adapters_is_cheap() -> None:
    gauges = VllmGauges("base", lambda: LOAD, Many())  # type: ignore[arg-type]
    gauges.exposition()

    def seconds() -> float:
        began = perf_counter()
        gauges.exposition()
        return perf_counter() - began

    assert min(seconds() for _ in range(50)) < 0.001


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    adapter = write_adapter(tmp_path_factory.mktemp("adapter"), model)
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter={"a": adapter})
    with serving(service) as running:
        yield running


@pytest.mark.slow
def test_both_are_told_beside_ours(server: Running) -> None:
    with server.http() as http:
        asked = {"model": "a", "prompt": "Hello", "max_tokens": 2}
        assert http.post("/v1/completions", json=asked).status_code == 200
        text = http.get("/metrics").text
    assert "vllm:num_requests_running" in text
    assert 'manylora_requests_total{adapter="a"' in text
    own = OwnMetrics(server.service)

    async def told() -> str:
        return own.exposition().decode()

    alone = server.call(told())
    names = {s.name for family in text_string_to_metric_families(alone) for s in family.samples}
    assert MEANINGS.keys() <= names
    assert "manylora_step_seconds_bucket" in names
    labels = {key for f in text_string_to_metric_families(alone) for s in f.samples for key in s.labels}
    assert not {"adapter", "tenant", "alias", "arm"} & labels


@pytest.mark.slow
@pytest.mark.parametrize("open_to_all", [pytest.param(True, marks=pytest.mark.sweep), False])
def test_an_address_of_its_own(tmp_path: Path, model: Path, open_to_all: bool) -> None:
    options = [*small_options(model, tmp_path), "--api-key", "secret-key", "--metrics-port", "0"]
    with server_process(*options, *(["--metrics-open"] if open_to_all else [])) as process:
        url = process.printed.partition("Metrics on ")[2].split()[0]
        known = {"authorization": "Bearer secret-key"}
        assert httpx.get(url).status_code == (200 if open_to_all else 401)
        assert "vllm:lora_requests_info" in httpx.get(url, headers=known).text
        base = url.removesuffix("/metrics")
        assert httpx.get(f"{base}/health").status_code == 200
        for path in ("/v1/models", "/docs", "/openapi.json", "/version", "/"):
            assert httpx.get(base + path, headers=known).status_code == 404
        assert httpx.post(url, headers=known).status_code == 405
        assert httpx.get(f"{process.url}/metrics").status_code == 401
        process.process.terminate()
        assert process.process.wait(60) == 0
