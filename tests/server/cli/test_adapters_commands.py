"""``manylora adapters``, every command against a real server on a real port."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from manylora.server.cli.main import app
from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, zipped
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

KEY = "admin-key"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, roots: Path) -> Iterator[Running]:
    service = tiny_service(
        model,
        tmp_path_factory.mktemp("data"),
        adapter_root=[roots],
        api_key=["user"],
        admin_api_key=[KEY],
        max_upload_bytes=1 << 20,
    )
    with serving(service) as running:
        yield running


@pytest.fixture
def server(running: Running) -> Iterator[Running]:
    yield running
    Admin(running, KEY).forget_all()


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    return write_adapter(tmp_path / "pirate", model, rank=4)


def run(server: Running | None, *arguments: str, **variables: str) -> Result:
    """Run ``manylora adapters``; without a server, against a port where nobody listens."""
    url = "http://127.0.0.1:1" if server is None else server.url
    env = {"MANYLORA_URL": url, "MANYLORA_ADMIN_API_KEY": KEY, "COLUMNS": "100", "NO_COLOR": "1", **variables}
    return CliRunner(env=env).invoke(app, ["adapters", *arguments])


def out(server: Running, *arguments: str) -> str:
    result = run(server, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(result: Result, status: int) -> str:
    """What a command that failed said: on stderr, in lines of its own, without a traceback."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert all(line.startswith("manylora: ") for line in result.stderr.splitlines()), result.stderr
    return result.stderr


def test_the_life_of_an_adapter(server: Running, adapter: Path, tmp_path: Path, model: Path) -> None:
    assert out(server, "ls") == "no adapters\n"
    said = out(server, "add", "pirate", str(adapter), "--tag", "fun", "--tag", "sea")
    first = re.fullmatch(
        r"pirate serves revision ([0-9a-f]{8}): rank 4, 4 of 14 modules, device [\d.]+ KiB\n", said
    )
    assert first is not None, said
    assert out(server, "add", "pirate", str(adapter)) == f"pirate is unchanged: revision {first[1]}\n"
    other = write_adapter(tmp_path / "other", model, seed=3)
    said = out(server, "add", "pirate", str(other))
    assert f" in place of {first[1]}: rank 8" in said
    assert out(server, "rollback", "pirate") == f"pirate serves revision {first[1]}\n"
    assert re.fullmatch(r"pirate: device [\d.]+ KiB, pinned\n", out(server, "pin", "pirate"))
    assert refusal(run(server, "evict", "pirate"), 1).startswith("manylora: pirate: it is pinned")
    assert out(server, "unpin", "pirate").endswith("KiB\n")
    assert re.fullmatch(r"pirate: disk [\d.]+ KiB\n", out(server, "evict", "pirate"))
    assert re.fullmatch(r"pirate: device [\d.]+ KiB\n", out(server, "prefetch", "pirate"))
    shown = out(server, "show", "pirate")
    for part in (
        first[1],
        "LORA, rank 4",
        "4 of 14",
        "upload://",
        "current",
        "0 ended, 0 running",
        "the base's",
    ):
        assert part in shown
    assert re.fullmatch(
        r"pirate is deleted, [\d.]+ KiB of device memory freed\n",
        out(server, "rm", "pirate", "--deadline", "5"),
    )
    assert out(server, "ls") == "no adapters\n"


def test_what_an_adapter_was_composed_of(server: Running, adapter: Path) -> None:
    out(server, "add", "pirate", str(adapter))
    with server.http() as http:
        recipe = {"members": [{"name": "pirate", "weight": -0.5}], "method": "svd", "rank": 2}
        http.post(
            "/v1/adapters/less/compose?wait=true", json=recipe, headers={"authorization": f"Bearer {KEY}"}
        )
    assert re.search(
        r"composed +svd, rank 2, [\d.]+% of the energy lost\n +pirate@[0-9a-f]{8}\*-0.5\n",
        out(server, "show", "less"),
    )


def test_list(server: Running, adapter: Path) -> None:
    for name, tag in (("b", "x"), ("a-1", "y"), ("a-2", "x")):
        out(server, "add", name, str(adapter), "--tag", tag)
    lines = out(server, "ls").splitlines()
    assert lines[0].split()[:3] == ["name", "state", "revision"]
    assert [line.split()[0] for line in lines[1:]] == ["a-1", "a-2", "b"]
    assert [line.split()[0] for line in out(server, "ls", "a-").splitlines()[1:]] == ["a-1", "a-2"]
    for options, names in (
        (("--tag", "x"), ["a-2", "b"]),
        (("--limit", "1"), ["a-1"]),
        (("--state", "failed"), []),
        (("--resident",), ["a-1", "a-2", "b"]),
        (("--not-resident",), []),
    ):
        found = [json.loads(line)["id"] for line in out(server, "ls", "--json", *options).splitlines()]
        assert found == names
    assert "state" in refusal(run(server, "ls", "--state", "asleep"), 1)


def test_json_for_scripts(server: Running, adapter: Path) -> None:
    added = json.loads(out(server, "add", "a", str(adapter), "--json"))
    assert added["state"] == "ready"
    assert json.loads(out(server, "show", "a", "--json"))["digest"] == added["digest"]
    assert json.loads(out(server, "pin", "a", "--json"))["pinned"] is True
    assert json.loads(out(server, "alias", "live", "a", "--json"))["id"] == "live"
    assert json.loads(out(server, "alias", "--json"))["id"] == "live"
    assert json.loads(out(server, "alias", "--rm", "live", "--json"))["deleted"] is True
    assert json.loads(out(server, "rm", "a", "--json"))["deleted"] is True


def test_archives_and_sources(
    server: Running, adapter: Path, roots: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(adapter))
    digest = json.loads(out(server, "add", "files", str(adapter), "--json"))["digest"]
    assert json.loads(out(server, "add", "zip", str(tmp_path / "a.zip"), "--json"))["digest"] == digest
    inside = write_adapter(roots / "inside", model)
    assert "serves" in out(server, "add", "url", f"file://{inside}")
    assert "serves" in out(server, "add", "path", "--server-path", "inside")
    assert "outside" in refusal(run(server, "add", "no", "--server-path", "/etc"), 1)
    assert refusal(run(server, "add", "no", "hf://org/repo@main"), 1)


def test_without_waiting(server: Running, adapter: Path) -> None:
    said = out(server, "add", "a", str(adapter), "--no-wait")
    assert said.startswith(("a is being loaded; see: manylora adapters show a", "a serves revision "))
    assert Admin(server, KEY).settled("a")["state"] == "ready"
    refused = refusal(run(server, "add", "a", str(adapter), "--no-replace"), 1)
    assert "taken" in refused


def test_several_at_once(server: Running, adapter: Path) -> None:
    for name in ("a", "b"):
        out(server, "add", name, str(adapter))
    result = run(server, "rm", "a", "missing", "b")
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["a", "b"]
    assert "missing" in result.stderr


def test_aliases(server: Running, adapter: Path) -> None:
    out(server, "add", "a", str(adapter))
    assert out(server, "alias") == ""
    assert out(server, "alias", "live", "a") == "live -> a\n"
    assert out(server, "alias", "live", "a=0.9", "a*0.5=0.1") == "live -> 90% a, 10% a*0.5\n"
    shown = out(server, "alias", "live").splitlines()
    assert shown[0] == "live -> 90% a, 10% a*0.5"
    assert shown[1].split() == ["a", "a*0.5", "difference"]
    assert next(line for line in shown if line.startswith("requests")).split() == ["requests", "0", "0"]
    assert "--reset" in refusal(run(server, "alias", "live", "--reset"), 2)
    assert out(server, "alias", "live", "a=0.9", "a*0.5=0.1", "--reset").startswith("live -> 90% a")
    assert out(server, "alias") == "live -> 90% a, 10% a*0.5\n"
    assert "TARGET=SHARE" in refusal(run(server, "alias", "live", "a", "b"), 2)
    assert "TARGET=SHARE" in refusal(run(server, "alias", "live", "a=", "b=1"), 2)
    assert "--rm" in refusal(run(server, "alias", "--rm"), 2)
    assert out(server, "alias", "--rm", "live") == "live is deleted\n"
    assert "live" in refusal(run(server, "alias", "live"), 1)


def test_every_fault_is_printed(server: Running, adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": -1, "novel": 3'))
    said = refusal(run(server, "add", "a", str(adapter)), 1)
    lines = said.splitlines()
    assert lines[0] == "manylora: a can't be served:"
    assert any("lora_alpha" in line and "novel" not in line for line in lines)
    assert any("novel" in line and "lora_alpha" not in line for line in lines)
    shown = out(server, "show", "a")
    assert "failed" in shown
    assert "novel" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "a", "./nonexistent"], "no such directory"),
        (["add", "a", "{empty}"], "has no adapter_config.json and no adapter_model.safetensors"),
        (["add", "a", "{file}"], "neither a directory nor"),
    ],
)
def test_what_is_found_before_anything_is_sent(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_text("x")
    places = {"{empty}": str(tmp_path / "empty"), "{file}": str(tmp_path / "file.bin")}
    assert message in refusal(run(None, *(places.get(part, part) for part in arguments)), 2)


def test_no_server(adapter: Path) -> None:
    for arguments in (["ls"], ["show", "a"], ["rm", "a"], ["add", "a", str(adapter)], ["alias"]):
        said = refusal(run(None, *arguments), 3)
        assert said == (
            "manylora: no server at http://127.0.0.1:1 (Connection refused): "
            "start one with 'manylora serve', or give --url\n"
        )
    assert "not an http://" in refusal(run(None, "ls", "--url", "localhost:8000"), 2)


def test_an_upload_that_is_too_large(server: Running, tmp_path: Path) -> None:
    """The server says so and hangs up while the file is still being sent."""
    with (tmp_path / "large.zip").open("wb") as file:
        file.truncate(64 << 20)
    said = refusal(run(server, "add", "a", str(tmp_path / "large.zip")), 1)
    assert said == "manylora: The request body is larger than 1048576 bytes (--max-upload-bytes)\n"


def test_another_server(server: Running) -> None:
    """Something answers, but not with what a manylora server says."""
    assert run(server, "ls", "--url", f"{server.url}/v1/").exit_code == 0, "as OpenAI's clients have it"
    said = refusal(run(server, "ls", "--url", f"{server.url}/docs"), 1)
    assert "nothing at GET" in said


def test_keys(server: Running) -> None:
    assert "does not manage adapters" in refusal(run(server, "ls", MANYLORA_ADMIN_API_KEY="user"), 1)
    assert "API key" in refusal(run(server, "ls", MANYLORA_ADMIN_API_KEY="", MANYLORA_API_KEY=""), 1)
    assert run(server, "ls", "--api-key", KEY, MANYLORA_ADMIN_API_KEY="wrong").exit_code == 0
    assert run(server, "ls", MANYLORA_ADMIN_API_KEY=f"{KEY},other").exit_code == 0  # as the server's lists
    assert KEY not in run(server, "ls", "--help").stdout
