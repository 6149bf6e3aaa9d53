"""The client of the administrative API, as a program uses it, against a real server on a real port."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.server.client.client import Client
from manylora.server.client.errors import ClientError, Refused, Unreachable, Unusable
from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, zipped
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow

KEY = "admin-key"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, exports: Path) -> Iterator[Running]:
    service = tiny_service(
        model,
        tmp_path_factory.mktemp("data"),
        admin_api_key=[KEY],
        adapter_root=[tmp_path_factory.mktemp("roots")],
        export_root=exports,
    )
    with serving(service) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.url, KEY) as client:
        yield client
    Admin(running, KEY).forget_all()


@pytest.fixture
def directory(tmp_path: Path, model: Path) -> Path:
    return write_adapter(tmp_path / "support", model, rank=4)


def test_the_life_of_an_adapter(client: Client, directory: Path, tmp_path: Path, model: Path) -> None:
    assert client.find("support") is None
    first = client.add("support", directory, tags=["prod"])
    assert (first["state"], first["rank"], first["tags"]) == ("ready", 4, ["prod"])
    second = client.add("support", write_adapter(tmp_path / "other", model, seed=3))
    assert second["revision"] != first["revision"]
    assert client.rollback("support")["revision"] == first["revision"]
    assert client.rollback("support", second["revision"])["revision"] == second["revision"]
    assert client.pin("support")["pinned"] is True
    with pytest.raises(Refused, match="pinned"):
        client.evict("support")
    assert client.unpin("support")["pinned"] is False
    assert client.evict("support")["residency"]["device"] == 0
    assert client.prefetch("support")["residency"]["device"] > 0
    shown = client.show("support")
    assert shown == client.find("support")
    assert len(shown["revisions"]) == 2
    assert client.delete("support", deadline=5.0)["deleted"] is True
    assert client.find("support") is None


def test_lists_are_read_a_page_at_a_time(client: Client, directory: Path) -> None:
    for name, tag in (("b", "x"), ("a-1", "y"), ("a-2", "x")):
        client.add(name, directory, tags=[tag])
    assert [adapter["id"] for adapter in client.list()] == ["a-1", "a-2", "b"]
    assert [adapter["id"] for adapter in client.list("a-")] == ["a-1", "a-2"]
    assert [adapter["id"] for adapter in client.list(tag="x", resident=True)] == ["a-2", "b"]
    assert [adapter["id"] for adapter in client.list(limit=2)] == ["a-1", "a-2"]
    assert list(client.list(state="failed")) == []
    assert [card["id"] for card in client.models()] == ["tiny", "a-1", "a-2", "b"]


def test_progress_of_a_publication(client: Client, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(directory))
    seen: list[tuple[str, int, int | None]] = []
    client.add("zip", tmp_path / "a.zip", progress=lambda *state: seen.append(state))
    sending = [(done, total) for stage, done, total in seen if stage == "sending"]
    assert sending[0] == (0, None)
    done, total = sending[-1]
    assert done == total == (tmp_path / "a.zip").stat().st_size
    assert [stage for stage, _, _ in seen[len(sending) :]] == ["loading"] * (len(seen) - len(sending))
    assert seen[-1][0] == "loading"


def test_a_publication_that_is_not_waited_for(client: Client, directory: Path, running: Running) -> None:
    begun = client.add("later", str(directory), wait=False)
    assert begun["publication"]["state"] in {"loading", "ready"}
    assert Admin(running, KEY).settled("later")["state"] == "ready"
    with pytest.raises(Refused) as caught:
        client.add("later", directory, replace=False)
    assert caught.value.status == 409


def test_every_fault_of_an_adapter_is_a_line(client: Client, directory: Path) -> None:
    config = directory / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": -1, "novel": 3'))
    with pytest.raises(Refused) as caught:
        client.add("bad", directory)
    first, *faults = str(caught.value).splitlines()
    assert first == "bad can't be served:"
    assert len(faults) >= 2
    assert (caught.value.status, caught.value.code) == (422, "invalid_adapter")


def test_sources_that_the_server_reads(client: Client) -> None:
    for source in ("hf://org/repo@main", "file:///etc"):
        with pytest.raises(Refused):
            client.add("no", source)
    with pytest.raises(Refused, match="outside"):
        client.add("no", "/etc", on_server=True)
    with pytest.raises(Unusable, match="no such directory"):
        client.add("no", "/nowhere")


def test_a_subfolder_of_what_is_sent(client: Client, directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "run" / "checkpoint-400")
    archive = Path(shutil.make_archive(str(tmp_path / "run"), "gztar", tmp_path, "run"))
    plain = client.add("plain", directory)["digest"]
    for source in (tmp_path / "run", archive):
        assert client.add("sub", source, subfolder="checkpoint-400")["digest"] == plain
    with pytest.raises(Refused, match="no adapter in the subfolder 'x'"):
        client.add("no", archive, subfolder="x")
    with pytest.raises(Unusable, match="no such directory"):
        client.add("no", tmp_path / "run", subfolder="x")
    with pytest.raises(Refused, match="not the name of a subfolder"):
        client.add("no", "hf://org/repo", subfolder="../x")


def test_aliases(client: Client, directory: Path) -> None:
    client.add("a", directory)
    assert client.aliases() == []
    assert client.set_alias("live", "a")["split"] == [{"target": "a", "share": 1.0}]
    split = client.set_alias("live", [("a", 3), ("a*0.5", 1)], reset=True)["split"]
    assert split == [{"target": "a", "share": 0.75}, {"target": "a*0.5", "share": 0.25}]
    assert [arm["target"] for arm in client.alias("live")["arms"]] == ["a", "a*0.5"]
    assert [alias["id"] for alias in client.aliases()] == ["live"]
    assert client.delete_alias("live")["deleted"] is True
    with pytest.raises(Refused) as caught:
        client.alias("live")
    assert caught.value.status == 404


def test_compositions_and_merged_copies(client: Client, directory: Path, tmp_path: Path, model: Path) -> None:
    client.add("a", directory)
    client.add("b", write_adapter(tmp_path / "b", model, seed=3, rank=4))
    made = client.compose("both", [("a", 0.5), ("b", -0.5)], method="svd", rank=3)
    assert (made["state"], made["rank"]) == ("ready", 3)
    with pytest.raises(Refused, match="rank"):
        client.compose("none", [("a", 1.0)], method="svd")
    copy = client.merge("a*0.5+b*0.5")
    assert copy["state"] == "ready"
    assert client.merged("a*0.5+b*0.5")["of"] == copy["of"]
    assert client.free_merged("a*0.5+b*0.5")["bytes_freed"] == copy["bytes"]
    with pytest.raises(Refused) as caught:
        client.merged("a*0.5+b*0.5")
    assert caught.value.status == 404


@pytest.mark.sweep
def test_exports(client: Client, directory: Path, exports: Path) -> None:
    client.add("a", directory)
    states: list[str] = []
    written = client.export(
        "a", directory="one", dtype="bf16", progress=lambda state, _: states.append(state)
    )
    assert written["state"] == states[-1] == "ready"
    assert (exports / "one" / "config.json").is_file()
    assert client.exported("a")["directory"] == str(exports / "one")
    assert client.export_url("a") == f"{client.url}/v1/adapters/a/export"
    with pytest.raises(Refused, match="exists already"):
        client.export("a", directory="one")
    begun = client.export("a", directory="two", verify=False, wait=False)
    assert begun["state"] in {"waiting", "writing"}
    assert client.cancel_export("a")["state"] in {"failed", "ready"}


def test_comparisons_and_scores(client: Client, directory: Path, running: Running) -> None:
    client.add("a", directory)
    seen: list[tuple[str, float]] = []
    found = client.compare(
        ["tiny", "a"], prompt=["One", "Two"], max_tokens=3, progress=lambda *state: seen.append(state)
    )
    assert [len(case["answers"]) for case in found["cases"]] == [2, 2]
    assert seen[0][0].startswith("prompt 1 of 2: ")
    shares = [done for _, done in seen]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    talk = [[{"role": "user", "content": "Who?"}]]
    assert len(client.compare(["tiny", "a"], conversations=talk, reference=1, max_tokens=2)["cases"]) == 1
    with pytest.raises(Refused, match="nobody"):
        client.compare(["tiny", "nobody"], prompt=["x"])
    answer = running.client(api_key=KEY).completions.create(model="a", prompt="x", max_tokens=1)
    assert client.score(answer.id, 0.5)["model"].startswith("a")


def test_what_is_running(client: Client, running: Running) -> None:
    assert client.url == running.url
    assert client.version()["model"] == "tiny"
    with Client(f"{running.url}/v1/", KEY) as other:
        assert other.url == running.url


def test_who_does_not_answer_and_who_refuses(running: Running) -> None:
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(Unreachable, match="no server at"):
        nobody.version()
    with Client(running.url) as stranger, pytest.raises(Refused) as caught:
        stranger.pin("a")
    assert caught.value.status == 401
    for url in ("localhost:8000", "ftp://x", "http://h:port"):
        with pytest.raises(Unusable):
            Client(url)
    assert all(issubclass(kind, ClientError) for kind in (Refused, Unreachable, Unusable))


def test_a_program_needs_no_terminal_libraries() -> None:
    script = "import sys\nimport manylora.server.client.client\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"typer", "torch", "fastapi"} & loaded
    commands = {name for name in loaded if name.startswith("manylora.server.cli.")}
    assert all(name.startswith("manylora.server.client") for name in commands)
    assert "manylora.adapters.progress_bars" not in loaded
