"""What KServe would start, with what it fills in and adds, is what ``manylora vllm-serve`` takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from manylora.server.cli.vllm.translate import translate
from manylora.server.options.settings import Settings
from tests.support.kube_objects import built, only
from tests.support.kube_tools import run

Arguments = list[str]


def main() -> Any:
    (container,) = only(built("kserve"), "LLMInferenceServiceConfig")["spec"]["template"]["containers"]
    return container


def service() -> Any:
    return only(built("kserve"), "LLMInferenceService")


@cache
def filled_in(tls: bool) -> Any:
    """The container with its templates executed as KServe executes them: as Go's, over the whole as JSON.

    Helm executes them here, with what KServe fills in as a chart's values.
    """
    values = {
        "Spec": {"Model": {"Name": service()["spec"]["model"]["name"]}},
        "ObjectMeta": {"Namespace": "team-a"},
        "GlobalConfig": {"EnableTLS": tls},
    }
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder)
        (chart / "templates").mkdir()
        (chart / "Chart.yaml").write_text("{apiVersion: v2, name: filled-in, version: 0.0.0}")
        (chart / "values.yaml").write_text(json.dumps(values))
        template = "{{ with .Values }}" + json.dumps(main()) + "{{ end }}"
        (chart / "templates" / "container.yaml").write_text(template)
        done = run("helm", "template", str(chart))
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def added(names: list[str]) -> Arguments:
    """What KServe puts before a container's arguments for adapters: each in quotes, for a shell."""
    modules = [
        json.dumps({"name": each, "path": f"/mnt/lora/{name}"}, separators=(",", ":"))
        for name in names
        for each in (name, f"publishers/team-a/models/{name}")
    ]
    return [
        "--enable-lora",
        "--max-lora-rank=64",
        "--max-loras=2",
        "--lora-modules",
        *(f"'{module}'" for module in modules),
    ]


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """Runs the container's command with a program that writes down what it was started with."""
    program = tmp_path / "manylora"
    program.write_text("#!/bin/sh\nfor word do printf '%s\\0' \"$word\"; done\n")
    program.chmod(0o755)

    def start(arguments: Arguments, tls: bool = False) -> Arguments:
        container = filled_in(tls)
        variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        done = subprocess.run(
            [*container["command"], *arguments],
            env={**variables, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            check=True,
            cwd=tmp_path,
        )
        return [word.decode() for word in done.stdout.split(b"\0")[:-1]]

    return start


def settings_of(words: Arguments) -> Settings:
    command, *arguments = words
    assert command == "vllm-serve"
    return Settings(**translate(arguments, {}).settings)


def test_the_server_starts_with_the_base_and_its_adapters(started: Any) -> None:
    names = [each["name"] for each in service()["spec"]["model"]["lora"]["adapters"]]
    settings = settings_of(started(added(names)))
    assert settings.model == "/mnt/models"
    assert settings.served_model_name == service()["spec"]["model"]["name"]
    assert settings.also_served_as == [f"publishers/team-a/models/{settings.served_model_name}"]
    assert settings.host == "0.0.0.0"
    assert settings.port == 8000
    assert settings.ssl_certfile is None
    assert {name: str(path) for name, path in settings.adapter.items()} == {
        each: f"/mnt/lora/{name}" for name in names for each in (name, f"publishers/team-a/models/{name}")
    }


def test_it_speaks_tls_where_kserve_does(started: Any) -> None:
    settings = settings_of(started([], tls=True))
    assert str(settings.ssl_certfile) == "/var/run/kserve/tls/tls.crt"
    assert str(settings.ssl_keyfile) == "/var/run/kserve/tls/tls.key"


@pytest.mark.parametrize(
    "word",
    [
        "$(touch hit)",
        "`touch hit`",
        "a; touch hit",
        "a' 'b",
        "two words",
        "",
        "'",
        "''",
        "a\nb",
        "*",
        '"',
        "\\",
    ],
)
def test_no_argument_is_run_by_a_shell(started: Any, tmp_path: Path, word: str) -> None:
    found = started([word, f"'{word}'"])
    assert found[-2:] == [word[1:-1] if re.fullmatch("'.*'", word) else word, word]
    assert not (tmp_path / "hit").exists()


def test_its_service_refers_to_it() -> None:
    (reference,) = service()["spec"]["baseRefs"]
    assert reference["name"] == only(built("kserve"), "LLMInferenceServiceConfig")["metadata"]["name"]
    names = {each["name"] for each in service()["spec"]["template"]["containers"]}
    assert names == {main()["name"]} == {"main"}, "the one that KServe changes"


def test_ports_are_those_of_its_template() -> None:
    (port,) = main()["ports"]
    assert port["containerPort"] == 8000
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert main()[kind]["httpGet"]["port"] == 8000
        assert "scheme" not in main()[kind]["httpGet"], "KServe's template says it, as TLS is on or off"
