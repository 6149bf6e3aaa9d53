"""``/v1/adapters/{name}/export``: models written by a process of its own while others are answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from manylora.server.cli.main import app
from tests.support.admin_client import error_of
from tests.support.engine_harness import hf_greedy
from tests.support.running_server import PATIENCE, Running, serving, tiny_service
from tests.support.served_adapters import ADAPTERS

pytestmark = pytest.mark.slow

ROUTE = "/v1/adapters/{}/export"
MESSAGES: list[Any] = [{"role": "user", "content": "Export me"}]
BODY = {"messages": MESSAGES, "max_tokens": 16, "temperature": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path, root: Path
) -> Iterator[Running]:
    known = {name: adapters / name for name in ADAPTERS}
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter=known, export_root=root)
    with serving(service) as running:
        yield running


@pytest.fixture
def server(running: Running, root: Path) -> Iterator[Running]:
    yield running
    running.wait_until_idle()
    assert not [entry for entry in root.iterdir() if entry.name.startswith(".")]


def settled(server: Running, name: str) -> Any:
    """The export once it has ended."""
    deadline = monotonic() + 2 * PATIENCE
    with server.http() as http:
        while True:
            found = http.get(ROUTE.format(name)).json()
            if found["state"] in {"ready", "failed"}:
                return found
            assert monotonic() < deadline, found
            sleep(0.05)  # of a test's own thread; the other process has to get on with it


def test_an_exported_mix_answers_like_the_mix(server: Running, root: Path) -> None:
    mix = "alpha*0.5+beta*-0.25"
    with server.http() as http:
        asked = {"directory": "both", "dtype": "fp32", "max_shard_size": 1 << 20}
        begun = http.post(ROUTE.format(mix), params={"wait": "false"}, json=asked)
        assert begun.status_code == 202, begun.text
        assert begun.json()["state"] in {"waiting", "writing"}
        assert error_of(http.post(ROUTE.format(mix), json=asked)) == (409, "directory_exists", "directory")
        expected = http.post("/v1/chat/completions", json={"model": mix, **BODY})
        found = settled(server, mix)
        assert found["state"] == "ready", found
        assert found["directory"] == str(root / "both")
        assert found["progress"] == 1.0
        assert 0 < found["measured"]["logit_difference"] < 1e-4 < found["measured"]["adapter_effect"]
        assert error_of(http.post(ROUTE.format(mix), json=asked)) == (409, "directory_exists", "directory")
    model = AutoModelForCausalLM.from_pretrained(root / "both", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(root / "both")
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    answer = tokenizer.decode(hf_greedy(model, ids, 16), skip_special_tokens=True)
    assert expected.status_code == 200, expected.text
    content = expected.json()["choices"][0]["message"]["content"]
    assert content
    assert answer.startswith(content)
    card = (root / "both" / "README.md").read_text()
    assert "| alpha |" in card
    assert "| beta |" in card


@pytest.mark.sweep
def test_from_the_command_line(server: Running, root: Path) -> None:
    env = {"MANYLORA_URL": server.url, "COLUMNS": "100", "NO_COLOR": "1"}
    done = CliRunner(env=env).invoke(app, ["adapters", "export", "gamma", "--dtype", "bf16"])
    assert done.exit_code == 0, done.output
    (directory,) = root.glob("gamma-*")
    assert str(directory) in done.stdout
    assert " in 1 file; its logits differ by" in " ".join(done.stdout.split())
    again = CliRunner(env=env).invoke(app, ["adapters", "export", "gamma"])
    assert again.exit_code == 1
    assert "exists already" in again.stderr


@pytest.mark.sweep
def test_a_stored_revision_that_has_changed(
    server: Running, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = server.service.adapters.views.get("beta").digest
    weights = server.service.store.path(digest) / "adapter_model.safetensors"
    intact = weights.read_bytes()
    weights.chmod(0o644)
    try:
        weights.write_bytes(intact[:-4] + b"\0\0\0\0")
        with server.http() as http:
            asked = {"directory": "damaged"}
            answer = http.post(ROUTE.format("beta"), json=asked, timeout=2 * PATIENCE)
            shown = http.get(ROUTE.format("beta")).json()
    finally:
        weights.write_bytes(intact)
    assert error_of(answer) == (422, "invalid_adapter", "name")
    assert "has changed" in answer.json()["error"]["message"]
    assert shown["state"] == "failed"
    assert shown["error"] == answer.json()["error"]
    assert not (root / "damaged").exists()
    assert "Traceback" not in capfd.readouterr().err  # of the process: its end is no fault


def test_cancelled_exports_leave_nothing(server: Running, root: Path) -> None:
    with server.http() as http:
        for name in ("alpha", "beta"):  # the second waits for the first
            asked = {"directory": f"cancelled-{name}"}
            assert http.post(ROUTE.format(name), params={"wait": "false"}, json=asked).status_code == 202
        for name in ("beta", "alpha"):
            cancelled = http.delete(ROUTE.format(name)).json()
            assert cancelled["state"] == "failed"
            assert cancelled["error"]["code"] == "cancelled"
            assert "was cancelled" in cancelled["error"]["message"]
    assert not list(root.glob("cancelled*"))


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("nobody", {}, (404, "model_not_found", "name")),
        ("alpha@merged", {}, (400, "invalid_mix", "name")),
        ("alpha*0", {}, (400, "invalid_mix", "name")),
        ("alpha", {"directory": "../out"}, (400, None, "directory")),
        ("alpha", {"directory": ".."}, (400, None, "directory")),
        ("alpha", {"directory": "a/b"}, (400, None, "directory")),
        ("alpha", {"directory": ""}, (400, None, "directory")),
        ("alpha", {"dtype": "int8"}, (400, None, "dtype")),
        ("alpha", {"max_shard_size": 1}, (400, None, "max_shard_size")),
        ("alpha", {"out": "/tmp"}, (400, "unknown_parameter", "out")),
    ],
)
def test_what_is_refused(
    server: Running, name: str, body: dict[str, Any], error: tuple[int, str | None, str]
) -> None:
    with server.http() as http:
        assert error_of(http.post(ROUTE.format(name), json=body)) == error


def test_what_was_not_exported(server: Running) -> None:
    with server.http() as http:
        assert http.get(ROUTE.format("alpha*0.125")).status_code == 404
        assert http.delete(ROUTE.format("alpha*0.125")).status_code == 404


def test_off_unless_a_directory_is_named(shared: Running) -> None:
    with shared.http() as http:
        answer = http.post(ROUTE.format("alpha"))
    assert error_of(answer) == (400, "export_not_allowed", None)
    assert "--export-root" in answer.json()["error"]["message"]


def test_a_server_that_stops_takes_its_exports_along(model: Path, adapters: Path, tmp_path: Path) -> None:
    root = tmp_path / "exports"
    options = {"adapter": {"alpha": adapters / "alpha"}, "export_root": root}
    with serving(tiny_service(model, tmp_path / "data", **options)) as running, running.http() as http:
        assert http.post(ROUTE.format("alpha"), params={"wait": "false"}).status_code == 202
    assert not root.exists() or not list(root.iterdir())
