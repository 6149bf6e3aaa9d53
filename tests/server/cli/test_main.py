"""The command line: help, exit codes and messages, and a whole server from start to signal."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from manylora.adapters.format import artifact
from manylora.adapters.options.option import flag_of, off_flag_of, option_of
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore
from manylora.server import service
from manylora.server.api.access.logging_setup import configure_logging
from manylora.server.cli import serve as cli_serve
from manylora.server.cli.main import app
from manylora.server.cli.serve import base_url, curl_line
from manylora.server.errors import ModelRefused
from manylora.server.options.loading import load_settings
from manylora.server.options.settings import Settings
from manylora.server.residency import references
from tests.support.server_process import until_ready

SCREEN = {"COLUMNS": "80", "LINES": "40", "NO_COLOR": "1", "TERM": "dumb"}


def invoke(*arguments: str) -> Result:
    return CliRunner(env=SCREEN).invoke(app, list(arguments))


def refusal(result: Result) -> str:
    """What a command that could not do its job said; it must have said it on stderr, without a traceback."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


# --- help


def test_help_names_the_commands() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("pull", "serve", "adapters"):
        assert re.search(rf"^│ {command} ", result.stdout, re.MULTILINE)


def test_serve_help_has_one_line_for_every_option() -> None:
    result = invoke("serve", "--help")
    lines = result.stdout.splitlines()
    assert len(lines) <= len(Settings.model_fields) + 27
    assert max(map(len, lines)) <= 80
    for name, field in Settings.model_fields.items():
        option = option_of(field)
        spelled = off_flag_of(name) if option.switch and field.default else flag_of(name)
        value = f"{option.metavar}{'...' if option.repeatable else ''}"
        (line,) = (line for line in lines if line.startswith(f"│ {spelled} {value}"))
        assert re.search(r"  \S.*[.\]] +│$", line), "with its meaning to the end"
    assert "--config FILE" in result.stdout
    assert "…" not in result.stdout


@pytest.mark.parametrize(
    "switch",
    ["--auto-merge", "--no-auto-merge", "--enable-prefix-cache", "--no-prefix-cache", "--no-console"],
)
def test_switches_have_two_positions(switch: str) -> None:
    said = refusal(invoke("serve", "--port", "0", switch, "--model", "./nonexistent"))
    assert said == "manylora: ./nonexistent: no such directory\n"


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"manylora \d+\.\d+\.\d+\n", result.stdout)


SLOW = {"torch", "transformers", "fastapi", "numpy", "huggingface_hub", "sqlalchemy", "uvicorn"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "slow"),
    [
        (["serve", "--help"], SLOW | {"httpx", "rich.progress"}),
        (["adapters", "add", "--help"], SLOW | {"httpx"}),
        (["adapters", "ls", "--url", "http://127.0.0.1:1"], SLOW),
    ],
)
def test_start_up_imports_nothing_slow(arguments: list[str], slow: set[str]) -> None:
    script = (
        "import sys\nfrom manylora.server.cli.main import app\n"
        f"try: app({arguments!r})\nexcept SystemExit: pass\n"
        f"print({slow!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--port", "x"],
            "manylora: --port: must be a valid integer, unable to parse string as an integer (got 'x')",
        ),
        (["--dtype", "int8"], "manylora: --dtype: must be 'auto', 'bf16', 'fp16' or 'fp32' (got 'int8')"),
        (["--adapter", "pirate"], "manylora: --adapter: must be NAME=PATH, not 'pirate'"),
        (["--adapter", "a=x", "--adapter", "a=y"], "manylora: --adapter: 'a' is given twice"),
        (["--adapter", "a=/none"], "manylora: --adapter a=/none: no such directory"),
        (["--config", "/nonexistent.yaml"], "manylora: /nonexistent.yaml: No such file or directory"),
        (["--model", "./nonexistent"], "manylora: ./nonexistent: no such directory"),
        (["--host", "host.invalid"], "manylora: --host host.invalid: "),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    said = refusal(invoke("serve", "--port", "0", *arguments))
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_unknown_option() -> None:
    result = invoke("serve", "--prot", "1")
    assert result.exit_code == 2
    assert "--port" in result.stderr


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Found before the model, which does not exist, is looked for.
        said = refusal(invoke("serve", "--port", str(port), "--model", str(tmp_path / "none")))
    assert said == f"manylora: --host 127.0.0.1 --port {port}: Address already in use\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://me:hush@127.0.0.1:1/x",
            "the adapter registry (PostgreSQL, database 'x' on 127.0.0.1): ",
        ),
        ("mysql://me:hush@db/x", "the registry's URL must start with sqlite:/// or postgresql://"),
        ("sqlite:////proc/none/x.db", "the adapter registry (SQLite, /proc/none/x.db): "),
    ],
)
def test_a_registry_that_can_not_be_used_is_told_before_the_model_is_looked_for(
    tmp_path: Path, url: str, message: str
) -> None:
    options = ("--model", str(tmp_path / "none"), "--data-dir", str(tmp_path), "--port", "0")
    said = refusal(invoke("serve", *options, "--registry-url", url))
    assert said.startswith(f"manylora: --registry-url: {message}")
    assert said.count("\n") == 1
    assert "hush" not in said


def test_a_data_directory_that_can_not_be_used_is_told_before_the_model_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = ("--model", str(tmp_path / "none"), "--data-dir", str(tmp_path / "file"), "--port", "0")
    assert refusal(invoke("serve", *options)).startswith("manylora: --data-dir: the revision store ")


def test_a_registry_of_another_directory_is_told_before_the_model_is_looked_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    with RevisionStore(tmp_path / "one" / "adapters") as store, Registry(url) as registry:
        registry.set_store(store.identity)
    options = ("--model", str(tmp_path / "none"), "--port", "0", "--registry-url", url, "--data-dir")
    said = refusal(invoke("serve", *options, str(tmp_path / "two")))
    assert said.startswith(
        "manylora: --registry-url: the adapter registry belongs to another artifact directory"
    )
    assert "no such directory" in refusal(invoke("serve", *options, str(tmp_path / "one")))


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    refusal(invoke("serve", "--port", "0", "--model", "./nonexistent"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_pull_prints_the_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    result = invoke("pull", str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}\n"
    assert "no such directory" in refusal(invoke("pull", str(tmp_path / "none")))


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_our_own_loggers_have_the_level_that_was_chosen(level: str) -> None:
    ours = logging.getLogger("manylora")
    before = ours.level
    try:
        configure_logging(load_settings({"log_level": level}))
        for module in (service, references, artifact):
            logger = logging.getLogger(module.__name__)
            assert logger.getEffectiveLevel() == getattr(logging, level.upper())
    finally:
        ours.setLevel(before)


def test_address_for_clients() -> None:
    assert base_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert base_url("::", 80) == "http://[::1]:80"
    assert base_url("example.org", 80) == "http://example.org:80"
    assert "$MANYLORA_API_KEY" in curl_line("http://x", "m", needs_key=True)
    assert "KEY" not in curl_line("http://x", "m", needs_key=False)


# --- a whole server


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and everything it printed until it was ready."""
    command = [sys.executable, "-m", "manylora", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, until_ready(process)
        finally:
            process.kill()


def small(model: Path, tmp_path: Path) -> list[str]:
    """Options of a server that takes little of everything."""
    return [
        *("--model", str(model), "--served-model-name", "tiny", "--data-dir", str(tmp_path / "data")),
        *("--kv-cache-memory", "16MiB", "--adapter-memory", "16MiB"),
    ]


@pytest.mark.slow
def test_ready_line_works_and_signals_end_it(tiny_llama: Path, tmp_path: Path) -> None:
    with serving(*small(tiny_llama, tmp_path)) as (process, printed):
        assert "base model  tiny (LlamaForCausalLM)" in printed
        assert "adapters    none" in printed
        line = printed.splitlines()[-1]
        if shutil.which("curl"):
            answer = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
            events = [event for event in answer.stdout.split("\n\n") if event]
            assert events[-1] == "data: [DONE]"
            assert json.loads(events[0].removeprefix("data: "))["model"] == "tiny"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_running_stream_may_finish(tiny_llama: Path, tmp_path: Path) -> None:
    with serving(*small(tiny_llama, tmp_path), "--shutdown-timeout", "60") as (process, printed):
        (url,) = re.findall(r"curl -N (http://\S+)/v1/chat/completions", printed)
        body = {"model": "tiny", "prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            events = [line for line in lines if line.startswith("data: ")]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.slow
def test_adapter_that_can_not_be_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    options = [*small(tiny_llama, tmp_path), "--port", "0", "--adapter", f"bad={tmp_path / 'bad'}"]
    command = [sys.executable, "-m", "manylora", "serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"manylora: .*\bbad\b.*", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_traceback_when_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModelRefused("it is broken")

    monkeypatch.setattr(cli_serve, "run_server", broken)
    assert refusal(invoke("serve")) == "manylora: it is broken\n"
    result = invoke("serve", "--log-level", "debug")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith("Traceback")
    assert result.stderr.splitlines()[-1] == "manylora: it is broken"


@pytest.mark.slow
def test_signal_during_start_up_ends_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Path:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal was ignored")

    monkeypatch.setattr(cli_serve, "resolve_model", interrupted)
    assert invoke("serve", "--port", "0").exit_code == 128 + signal.SIGTERM
