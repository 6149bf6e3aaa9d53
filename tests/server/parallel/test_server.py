"""A server whose base is divided between two processes: its answers, and its end when one of them dies."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from manylora.server.cli.output import DEAD
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.server_process import ServerProcess, server_process, small_options
from tests.support.tiny_models import byte_tokenizer, tiny_model
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Where to?"}]


def ranks_of(server: ServerProcess) -> list[int]:
    """The processes of the other ranks."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "parallel.follower" in Path(f"/proc/{pid}/cmdline").read_text()]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def streamed(server: ServerProcess, model: str, **options: object) -> Iterator[str]:
    """The parts of a greedy answer as they come; the text of an error is one as well."""
    body = {"model": model, "messages": MESSAGES, "temperature": 0, "stream": True, **options}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    yield f"error: {event['error']['code']}"
                elif text := event["choices"][0]["delta"].get("content"):
                    yield text


def test_answers_and_the_end_of_a_rank(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "qwen2")
    one = EngineHarness(model)
    adapter = write_adapter(tmp_path / "adapter", one.base, targets="all-linear", rank=4, scale=0.2)
    ids = prompt_ids()
    expected = [
        one.run(one.sequence(ids, *members, max_tokens=24, ignore_eos=False))[0].text
        for members in ((), ((one.load(adapter), 1.0),))
    ]
    options = [*small_options(model, tmp_path / "data"), "--dtype", "fp32", "--tensor-parallel-size", "2"]
    with server_process(*options, "--adapter", f"mine={adapter}", "--shutdown-timeout", "1") as server:
        found = ["".join(streamed(server, name, max_tokens=24)) for name in ("tiny", "mine")]
        assert found == expected
        assert expected[0] != expected[1]
        about = httpx.get(f"{server.url}/version").json()
        assert about["tensor_parallel_size"] == 2
        assert 0 < about["probe_error"] < 1e-4
        (rank,) = ranks_of(server)
        answer = streamed(server, "mine", max_tokens=400, ignore_eos=True)
        next(answer)
        os.kill(rank, signal.SIGKILL)
        assert [part for part in answer if part.startswith("error: ")] == ["error: engine_dead"]
        assert server.process.wait(30) == DEAD


@pytest.mark.sweep
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_ranks_end_with_the_server(number: signal.Signals, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    options = [*small_options(model, tmp_path / "data"), "--dtype", "fp32", "--tensor-parallel-size", "2"]
    with server_process(*options) as server:
        (rank,) = ranks_of(server)
        os.kill(rank, signal.SIGTERM)  # which a service manager sends to all: rank 0 decides
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.signal(number)
        assert server.process.wait(30) == (0 if number == signal.SIGTERM else -number)
        wait_until(lambda: not is_running(rank))


@pytest.mark.sweep
def test_adapters_come_and_go_while_others_answer(tmp_path: Path) -> None:
    """There is room for two of five; whatever is evicted meanwhile, each answer is its adapter's own."""
    model = tiny_model(tmp_path / "model", "qwen2")
    one = EngineHarness(model)
    paths = {
        f"a{i}": write_adapter(tmp_path / f"a{i}", one.base, targets="all-linear", rank=4, seed=i, scale=0.2)
        for i in range(5)
    }
    ids = prompt_ids()

    def expected(*members: tuple[AdapterPages, float]) -> str:
        return one.run(one.sequence(ids, *members, max_tokens=24, ignore_eos=False))[0].text

    pages = {name: one.load(path) for name, path in paths.items()}
    texts = {name: expected((pages[name], 1.0)) for name in paths} | {"tiny": expected()}
    texts["a0*0.5+a3*-0.7"] = expected((pages["a0"], 0.5), (pages["a3"], -0.7))
    assert len(set(texts.values())) == len(texts)
    size = one.pool.used_bytes // len(pages)
    named = [part for name, path in paths.items() for part in ("--adapter", f"{name}={path}")]
    options = [*small_options(model, tmp_path / "data"), "--dtype", "fp32", "--tensor-parallel-size", "2"]
    options[options.index("--adapter-memory") + 1] = str(int(3.6 * size))  # parts are more than the whole
    with server_process(*options, *named) as server, ThreadPoolExecutor(6) as threads:
        asked = [name for _ in range(4) for name in texts]
        found = list(threads.map(lambda name: "".join(streamed(server, name, max_tokens=24)), asked))
        assert found == [texts[name] for name in asked]
        metrics = httpx.get(f"{server.url}/metrics").text
        evictions = re.search(r"^manylora_adapter_evictions_total (\d+)", metrics, re.MULTILINE)
        assert evictions is not None
        assert int(evictions[1]) > 5
        built = httpx.post(f"{server.url}/v1/adapters/a0/merge", timeout=60)
        assert built.is_success, built.text
        assert "".join(streamed(server, "a0@merged", max_tokens=24)) == texts["a0"]


def prompt_ids() -> list[int]:
    """What a server makes of the messages."""
    tokenizer = byte_tokenizer()
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))
