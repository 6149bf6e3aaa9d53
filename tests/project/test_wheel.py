"""The wheel, installed where nothing but it and its dependencies are: what is in it, and that it serves."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import httpx
import pytest

from tests.support.paths import ROOT
from tests.support.wheel import Environment, build_wheel, make_environment

ADAPTERHUB = "adapters==1.3.0"
START_SECONDS = 300.0  # the first start on a machine compiles the kernels

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Environment:
    return make_environment(wheel, tmp_path)


def test_the_wheel_holds_the_package_and_what_it_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    version = wheel.name.split("-")[1]
    assert {name.split("/")[0] for name in names} == {"manylora", f"manylora-{version}.dist-info"}
    assert "manylora/py.typed" in names
    assert f"manylora-{version}.dist-info/licenses/LICENSE" in names
    for folder in ("server", "adapters"):
        modules = {f"manylora/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
        assert modules
        assert modules <= names
    sources = {f"manylora/{path.relative_to(ROOT)}" for path in (ROOT / "server/kernels/cpu/src").iterdir()}
    assert any(source.endswith(".cpp") for source in sources)
    assert sources <= names
    static = ROOT / "server/console/static"
    console = {f"manylora/{path.relative_to(ROOT)}" for path in static.rglob("*") if path.is_file()}
    assert "manylora/server/console/static/vendor/preact.LICENSE" in console
    assert console <= names


def test_it_serves_from_an_empty_environment(
    environment: Environment, tiny_llama: Path, tmp_path: Path
) -> None:
    assert environment.top_level_names() == {
        "manylora",
        *(path.name for path in environment.site_packages.glob("manylora-*.dist-info")),
    }
    origin = environment.run("import manylora.server.service as s; print(s.__file__)").strip()
    assert Path(origin).is_relative_to(environment.site_packages)
    with serving(environment, tiny_llama, tmp_path / "data") as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
        page = client.get("/console").text
        (main,) = re.findall(r'src="(console/\w+/core/main\.js)"', page)
        assert client.get(f"/{main}").status_code == 200
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        answer = client.post("/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 4


BOTH = """
import json, sys

import adapters
import torch
from transformers import LlamaConfig

import manylora.adapters
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.faults import Faults
from manylora.adapters.mix import parse_mix

tiny = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
)
model = adapters.LlamaAdapterModel(tiny)
model.add_adapter("theirs", config=adapters.LoRAConfig(r=4))
model.set_active_adapters("theirs")
result = {
    "theirs": adapters.__file__,
    "ours": manylora.adapters.__file__,
    "shape": list(model(torch.arange(8)[None]).last_hidden_state.shape),
    "rank": parse_config(json.load(open(sys.argv[1])), Faults()).r,
    "mix": [[term.name, term.weight] for term in parse_mix("pirate*0.6+json*0.4")],
}
print(json.dumps(result))
"""


@pytest.mark.sweep  # fetches that library, and the older transformers that it pins
def test_adapterhub_lives_beside_it(environment: Environment) -> None:
    """AdapterHub's library installs a package ``adapters``, as the top-level folder of this repository is.

    It pins a transformers older than the server takes, so pip puts that beside it as well: everything in
    ``manylora.adapters`` that needs no transformers works with either.
    """
    ours = installed_files(environment, "manylora")
    environment.install(ADAPTERHUB)
    theirs = installed_files(environment, "adapters")
    assert ours
    assert theirs
    assert not ours & theirs
    example = ROOT / "examples" / "adapters" / "pirate" / "adapter_config.json"
    said = json.loads(environment.run(BOTH, str(example)).splitlines()[-1])
    assert said == {
        "theirs": str(environment.site_packages / "adapters" / "__init__.py"),
        "ours": str(environment.site_packages / "manylora" / "adapters" / "__init__.py"),
        "shape": [1, 8, 32],
        "rank": json.loads(example.read_text())["r"],
        "mix": [["pirate", 0.6], ["json", 0.4]],
    }


def installed_files(environment: Environment, name: str) -> set[str]:
    """Paths that pip recorded for one distribution."""
    program = f"from importlib.metadata import files; print(*files({name!r}), sep='\\n')"
    return set(environment.run(program).splitlines())


@contextmanager
def serving(environment: Environment, model: Path, data: Path) -> Iterator[httpx.Client]:
    """The installed ``manylora serve`` with a small model, as a client that asks it."""
    command = [str(environment.directory / "bin" / "manylora"), "serve", "--port", "0"]
    command += ["--model", str(model), "--served-model-name", "tiny", "--data-dir", str(data)]
    command += ["--kv-cache-memory", "16MiB", "--adapter-memory", "16MiB"]
    with subprocess.Popen(
        command,
        cwd=environment.directory,
        env=environment.variables,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = Timer(START_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)
            address = next(filter(None, found), None)
            watchdog.cancel()
            assert address is not None, "the server did not start"
            with httpx.Client(base_url=address.group(), timeout=60) as client:
                yield client
        finally:
            watchdog.cancel()
            process.terminate()
            process.communicate()
