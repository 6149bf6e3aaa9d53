"""The benchmark's parts by table: parsing, workloads, figures, adapters, GGUF."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

from bench import report
from bench.adapters import linear_layers, write_adapters
from bench.gguf_export import gguf_name, interleave_halves
from bench.peers import vllm_requirements
from bench.run import build
from bench.systems import by_lora_list, by_model, manylora, parse_system
from manylora.server.cli.loadgen.completion import Exchange
from manylora.server.cli.loadgen.figures import Figures, medians, percentile, summarize
from manylora.server.cli.loadgen.figures_table import show_table
from manylora.server.cli.loadgen.generated_prompts import PromptShape
from manylora.server.cli.loadgen.load import Observed
from manylora.server.cli.loadgen.response_reader import BadResponse, EventReader, ResponseReader
from manylora.server.cli.loadgen.workload import Workload, parse_workload

BODY = (b'data: {"choices": [1, 2]}\n\ndat', b'a: {"usage": null}\n\ndata:', b" [DONE]\n\n", b"")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in BODY)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_response_reads_the_same_however_it_is_cut(size: int) -> None:
    response, events = ResponseReader(), EventReader()
    parts = (STREAM[start : start + size] for start in range(0, len(STREAM), size))
    got = [data for part in parts for data in events.feed(response.feed(part))]
    assert response.status == 200
    assert [json.loads(data) for data in got] == [{"choices": [1, 2]}, {"usage": None}]


def test_chunks_with_extensions_and_events_with_crlf() -> None:
    assert ResponseReader().feed(HEAD + b"3;x=1\r\nabc\r\n0\r\n\r\n") == b"abc"
    assert EventReader().feed(b": comment\r\n\r\ndata:{}\r\n\r\ndata: [DONE]\r\n\r\n") == [b"{}"]
    plain = ResponseReader()
    assert plain.feed(b"HTTP/1.1 200 OK\r\n\r\ndata: x\n") == b"data: x\n"
    with pytest.raises(BadResponse):
        ResponseReader().feed(b"nonsense\r\n\r\n")
    with pytest.raises(BadResponse):
        ResponseReader().feed(HEAD + b"not a length\r\nabc\r\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", Workload("base", 0, 1)),
        ("base@8", Workload("base", 0, 8)),
        ("distinct:32", Workload("distinct", 32, 32)),
        ("zipf:64@32", Workload("zipf", 64, 32)),
        ("mix:2", Workload("mix", 2, 2)),
    ],
)
def test_the_notation_of_workloads(text: str, expected: Workload) -> None:
    assert parse_workload(text) == expected
    assert parse_workload(expected.name) == expected


@pytest.mark.parametrize(
    "text", ["", "distinct", "base:3", "mix:1", "other:2", "uniform:0@3", "distinct:2@0", "a b"]
)
def test_malformed_workloads_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"takes|is not KIND|client"):
        parse_workload(text)


def test_which_adapters_are_asked_for() -> None:
    def drawn(text: str) -> list[tuple[int, ...]]:
        workload = parse_workload(text)
        return [
            workload.members(client, request, "s")
            for request in range(50)
            for client in range(workload.clients)
        ]

    assert set(drawn("base@4")) == {()}
    assert set(drawn("identical:8@4")) == {(0,)}
    assert drawn("distinct:4")[:4] == [(0,), (1,), (2,), (3,)]
    assert drawn("mix:3")[:3] == [(0, 1), (1, 2), (2, 0)]
    assert set(drawn("uniform:8@8")) == {(i,) for i in range(8)}
    zipf = Counter(drawn("zipf:64@32"))
    assert zipf[(0,)] / zipf[(1,)] == pytest.approx(2**1.5, rel=0.25)
    assert drawn("zipf:64@32") == drawn("zipf:64@32")


def test_how_requests_name_adapters() -> None:
    assert by_model(()) == {"model": "base"}
    assert by_model((2,)) == {"model": "a2"}
    assert by_model((0, 1)) == {"model": "a0*0.5+a1*0.5"}
    assert by_lora_list(()) == {"model": "base", "lora": []}
    assert by_lora_list((4,)) == {"model": "base", "lora": [{"id": 4, "scale": 1.0}]}


@pytest.mark.parametrize("text", ["vllm", "=http://x", "name=", "name=serve --port 80"])
def test_malformed_systems_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME=URL|port"):
        parse_system(text)


def test_our_server_is_started_on_the_device_that_was_asked_for(tmp_path: Path) -> None:
    command = manylora(tmp_path, [tmp_path / "a-r64"], tmp_path, 8, device="cuda").command
    assert command[command.index("--device") + 1] == "cuda"
    assert command[command.index("--max-lora-rank") + 1] == "64"
    assert "--quantize" not in command


def test_our_server_on_a_quantized_base_has_a_name_of_its_own(tmp_path: Path) -> None:
    system = build("manylora-nf4", tmp_path, (), 8, tmp_path)
    assert system.name == "manylora-nf4"
    assert system.command[-2:] == ("--quantize", "nf4")


def test_prompts_are_long_enough_apart_and_share_what_is_asked() -> None:
    shape = PromptShape(tokens=200, shared_tokens=100)
    one, two = shape.prompt("1"), shape.prompt("2")
    assert one == shape.prompt("1")
    assert one[:300] == two[:300]
    assert one != two
    alone = [PromptShape().prompt(str(i)) for i in range(50)]
    assert len({prompt.split()[0] for prompt in alone}) == 50
    assert {len(prompt.split()) for prompt in alone} == {137}


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0.0), ([4.0], 0.99, 4.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0)],
)
def test_percentiles(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected
    assert percentile(list(range(1, 101)), 0.99) == 99


def run_of(rate_wall: float, errors: int = 0) -> Figures:
    good = Exchange(sent=0.0, chunks=[0.1, 0.3], end=0.4, prompt_tokens=7, output_tokens=10)
    bad = Exchange(sent=0.0, error="HTTP 500")
    observed = Observed([good] * 2 + [bad] * errors, wall=rate_wall, client_cpu=0.1)
    return summarize("test", "base@2", observed)


def test_medians_and_the_json_line(tmp_path: Path) -> None:
    row = medians([run_of(1.0), run_of(2.0, errors=1), run_of(4.0)])
    assert row.output_tokens_per_second == 10.0
    assert (row.requests, row.errors) == (7, 1)
    assert row.ttft_p50 == 0.1
    assert row.inter_token_p50 == pytest.approx(0.2)
    line = report.json_line("http", {"commit": "abc"}, [row])
    assert "\n" not in line
    kept = json.loads(report.save(line, tmp_path, "x").read_text())
    assert kept["rows"][0]["output_tokens_per_second"] == 10.0
    assert kept["commit"] == "abc"
    console = Console(record=True, width=120, quiet=False, file=(tmp_path / "table").open("w"))
    show_table([row], console)
    console.file.close()
    assert "10.0" in console.export_text()


def test_all_failed_is_a_row_of_errors() -> None:
    observed = Observed([Exchange(sent=0.0, error="HTTP 500")], wall=1.0, client_cpu=0.0)
    row = summarize("test", "base@1", observed)
    assert (row.errors, row.output_tokens_per_second, row.ttft_p50) == (1, 0.0, 0.0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
    }
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_adapters_have_peft_format_and_the_wanted_ranks(base: Path, tmp_path: Path) -> None:
    paths = write_adapters(base, tmp_path / "out", count=3, ranks=[4, 8], dtype="bf16")
    assert [path.name for path in paths] == ["a0-r4", "a1-r8", "a2-r4"]
    assert paths == write_adapters(base, tmp_path / "out", count=3, ranks=[4, 8], dtype="bf16")
    assert len(linear_layers(base)) == 14
    config = json.loads((paths[1] / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (8, 16, 7)
    one, two = (load_file(path / "adapter_model.safetensors") for path in (paths[0], paths[2]))
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_{}.weight"
    assert tuple(one[name.format("A")].shape) == (4, 48)
    assert tuple(one[name.format("B")].shape) == (24, 4)
    assert len(one) == 28
    assert not (one[name.format("B")] == two[name.format("B")]).all()


def test_gguf_names_and_the_order_of_rows() -> None:
    assert gguf_name("model.layers.12.mlp.down_proj") == "blk.12.ffn_down"
    assert gguf_name("model.norm") == "output_norm"
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert interleave_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_vllm_is_installed_without_sound_and_pictures() -> None:
    listed = [
        "regex",
        "torch==2.13.0+cpu; x",
        "torchaudio; x",
        "numba==0.65.0",
        "av; extra == 'audio'".replace("'", '"'),
    ]
    assert vllm_requirements(listed) == ["regex", "numba==0.65.0"]
