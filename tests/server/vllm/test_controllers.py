"""Two servers of one registry, driven by what drives vLLM's servers in Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import httpx
import pytest

from tests.support.adapters import write_adapter
from tests.support.controllers import EndpointPicker, LoraAdapterController, ModelAdapterController
from tests.support.running_server import Running, serving, tiny_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CONTROLLERS = (ModelAdapterController, LoraAdapterController)


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[tuple[Running, Running]]:
    """Two servers with one registry, each of which loads adapters for itself."""
    data, root = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("roots")
    for name, seed in (("one", 1), ("two", 2)):
        write_adapter(root / name, model, seed=seed, targets="all-linear")
    first, second = (
        tiny_service(model, data, adapter_root=[root], registry_scope="pod", pod_name=name, max_num_seqs=2)
        for name in ("pod-a", "pod-b")
    )
    with serving(first) as a, serving(second) as b:
        yield a, b


def ask(server: Running, model: str) -> int:
    body = {"model": model, "prompt": "Hello", "max_tokens": 2}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).status_code


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_adapters_come_to_each_pod_and_go_from_each(
    pods: tuple[Running, Running], kind: type[ModelAdapterController]
) -> None:
    a, b = pods
    controller = kind([a.url, b.url])
    controller.load("support", "one")
    assert [ask(a, "support"), ask(b, "support")] == [200, 200]
    controller.unload("support", [a.url])
    assert [ask(a, "support"), ask(b, "support")] == [404, 200]
    assert "support" in controller.listed(b.url)
    controller.unload("support", [b.url])
    assert [ask(a, "support"), ask(b, "support")] == [404, 404]
    assert controller.listed(a.url) == controller.listed(b.url) == {}


def test_each_pod_may_have_another_adapter_of_a_name(pods: tuple[Running, Running]) -> None:
    a, b = pods
    controller = LoraAdapterController([a.url, b.url])
    controller.load("support", "one", [a.url])
    assert [ask(a, "support"), ask(b, "support")] == [200, 404]
    assert ask(b, "pods/pod-a/support") == 404
    assert "pods/pod-a/support" not in controller.listed(b.url)
    controller.load("support", "two", [b.url])
    revisions = [httpx.get(f"{pod.url}/v1/models/support").json()["revision"] for pod in pods]
    assert revisions[0] != revisions[1]
    controller.unload("support")


def test_requests_follow_residents(pods: tuple[Running, Running]) -> None:
    a, b = pods
    controller, picker = LoraAdapterController([a.url, b.url]), EndpointPicker([a.url, b.url])
    controller.load("first", "one", [a.url])
    controller.load("second", "two", [b.url])
    assert [picker.pick("first"), picker.pick("second")] == [0, 1]
    controller.load("first", "one", [b.url])
    controller.unload("first", [a.url])
    wait_until(lambda: picker.pick("first") == 1)
    assert ask(b, "first") == 200
    controller.unload("first", [b.url])
    controller.unload("second", [b.url])


def test_what_is_read_is_the_truth_of_the_moment(pods: tuple[Running, Running]) -> None:
    """More than two at a time wait; the picker sees them, the adapter and the KV cache at once."""
    server, _ = pods
    controller, picker = LoraAdapterController([server.url]), EndpointPicker([server.url])
    controller.load("support", "one")
    assert picker.scrape(server.url).resident == {"support"}
    client = server.client()
    options = {"model": "support", "prompt": "Hello there", "max_tokens": 400, "stream": True}
    streams = [client.completions.create(**options, extra_body={"ignore_eos": True}) for _ in range(3)]  # type: ignore[call-overload]
    next(streams[0])
    began = monotonic()
    while (state := picker.scrape(server.url)).waiting == 0:
        assert monotonic() - began < 5
    assert (state.running, state.waiting) == (2, 1)
    assert 0 < state.kv_usage <= 1
    assert state.kv_usage == pytest.approx(server.service.core.blocks.num_used / state.num_blocks, abs=0.2)
    for stream in streams:
        stream.close()
    server.wait_until_idle()
    state = picker.scrape(server.url)
    assert (state.running, state.waiting, state.kv_usage) == (0, 0, 0)
    controller.unload("support")
    assert picker.scrape(server.url).resident == set()


def test_a_request_says_for_whom_it_loads(pods: tuple[Running, Running], model: Path) -> None:
    a, b = pods
    body = {"lora_name": "shared", "lora_path": "one", "registry_scope": "registry"}
    assert httpx.post(f"{a.url}/v1/load_lora_adapter", json=body, timeout=30).status_code == 200
    wait_until(lambda: ask(b, "shared") == 200)
    body = {"lora_name": "shared", "registry_scope": "registry"}
    assert httpx.post(f"{b.url}/v1/unload_lora_adapter", json=body, timeout=30).status_code == 200
    wait_until(lambda: ask(a, "shared") == 404)


@pytest.mark.sweep
def test_a_pod_that_ends_takes_its_own_with_it(tmp_path: Path, model: Path) -> None:
    write_adapter(tmp_path / "root" / "one", model)
    options = {"adapter_root": [tmp_path / "root"], "registry_scope": "pod"}
    data = tmp_path / "data"
    with serving(
        tiny_service(model, data, **options, pod_name="a", adapter={"x": tmp_path / "root" / "one"})
    ) as a:
        assert ask(a, "x") == 200
        controller = ModelAdapterController([a.url])
        assert set(controller.listed(a.url)) == {"x"}
    with serving(tiny_service(model, data, **options, pod_name="b")) as b:
        assert not b.service.adapters.mirror.names
