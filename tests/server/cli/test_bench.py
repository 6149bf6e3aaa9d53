"""``manylora bench`` against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from manylora.server.cli.loadgen.completion import Endpoint
from manylora.server.cli.main import app
from tests.support.running_server import Running

QUICK = ("--prompt-tokens", "16", "--output-tokens", "3")


def run(server: Running, *arguments: str) -> Result:
    env = {"MANYLORA_URL": server.url, "COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner(env=env).invoke(app, ["bench", *QUICK, *arguments])


def test_base_and_adapters_by_default(server: Running) -> None:
    result = run(server, "--rounds", "2", "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["workload"] for row in rows] == ["base@3", "distinct:3@3"]
    for row in rows:
        assert (row["system"], row["requests"], row["errors"]) == (server.url, 6, 0)
        assert row["output_tokens"] == 3
        assert row["output_tokens_per_second"] == pytest.approx(18 / row["wall"])
        assert 0 < row["ttft_p50"] <= row["ttft_p99"] <= row["latency_p99"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["figures.png", "figures.svg"])
def test_a_table_and_a_picture(server: Running, tmp_path: Path, name: str) -> None:
    picture = tmp_path / name
    result = run(server, "-w", "mix:2@1", "-w", "zipf:3@2", "--rate", "500", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "mix:2@1" in result.stdout
    assert "zipf:3@2" in result.stdout
    assert picture.read_bytes().startswith((b"\x89PNG", b"<?xml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("-w", "distinct:9"), 2, "9 adapters are asked for, there are 3"),
        (("-w", "distinct:2", "--adapter", "beta"), 2, "2 adapters are asked for, there are 1"),
        (("-w", "nonsense"), 2, "KIND"),
        (("-w", "distinct:1", "--adapter", "nobody"), 1, "nobody"),
        (("-w", "base@1", "--rounds", "1", "--plot", "/nowhere/x.png"), 2, "can't be written"),
        (("-w", "base@1", "--rounds", "1", "--plot", "x.nonsense"), 2, "can't be written"),
        (("--url", "ftp://x"), 2, "URL"),
        (("--url", "http://127.0.0.1:1"), 3, "no server"),
    ],
)
def test_what_goes_wrong_is_said(server: Running, arguments: tuple[str, ...], status: int, said: str) -> None:
    result = run(server, *arguments)
    assert result.exit_code == status, result.output
    assert said in result.output


def test_where_completions_are() -> None:
    assert Endpoint.of("http://h:81") == Endpoint("h", 81)
    assert Endpoint.of("https://h/v1/", "k") == Endpoint("h", 443, tls=True, key="k")
    assert (
        Endpoint.of("http://[::1]/api")
        .request({})
        .startswith(b"POST /api/v1/completions HTTP/1.1\r\nHost: [::1]:80\r\n")
    )
    assert b"\r\nAuthorization: Bearer k\r\n" in Endpoint.of("http://h", "k").request({"model": "a"})
    for url in ("h:80", "ftp://h", "http://"):
        with pytest.raises(ValueError, match="not an http"):
            Endpoint.of(url)
