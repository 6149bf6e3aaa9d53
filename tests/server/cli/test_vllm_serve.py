"""Starting the server with vLLM's options."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.cache_directory import cache_directory
from manylora.server.cli.vllm.arguments import IGNORED, LISTS, ONLY, SERVED, SHORT, SWITCHES
from manylora.server.cli.vllm.translate import translate
from manylora.server.errors import ConfigError
from manylora.server.options.settings import Settings
from tests.support.adapters import write_adapter
from tests.support.server_process import until_ready
from tests.support.vllm_section import SECTION, table


def settings(*arguments: str, **variables: str) -> dict[str, Any]:
    return translate(arguments, variables).settings


def test_as_kserve_starts_it() -> None:
    """The argument list of its runtime for large models."""
    module = {"name": "support", "path": "/mnt/lora/support"}
    told = translate(
        [
            *("/mnt/models", "--served-model-name", "llama", "publishers/ns/models/llama", "--port", "8000"),
            *(
                "--disable-log-requests",
                "--enable-ssl-refresh",
                "--ssl-certfile",
                "/tls/crt",
                "--ssl-keyfile",
            ),
            *("/tls/key", "--enable-lora", "--max-loras=4", "--max-lora-rank=32", "--max-cpu-loras=8"),
            *("--lora-modules", json.dumps(module)),
        ],
        {},
    )
    assert told.settings == {
        "model": "/mnt/models",
        "served_model_name": "llama",
        "also_served_as": ["publishers/ns/models/llama"],
        "host": "0.0.0.0",
        "port": "8000",
        "registry_scope": "pod",
        "unknown_fields": "ignore",
        "ssl_certfile": "/tls/crt",
        "ssl_keyfile": "/tls/key",
        "max_lora_rank": "32",
        "adapter": {"support": "/mnt/lora/support"},
    }
    assert set(told.ignored) == {
        *("--disable-log-requests", "--enable-ssl-refresh", "--enable-lora", "--max-loras", "--max-cpu-loras")
    }


def test_spellings() -> None:
    told = settings(
        "--model=m",
        *("--max_model_len", "4k", "--max-num-seqs=16", "-tp", "2", "--no-enable-prefix-caching", "-O3"),
        *("--dtype", "half", "--compilation-config.mode", "3", "--lora-modules", "a=/a", "b=/b"),
        *("--kv-cache-memory-bytes", "1G", "--api-key", "k1", "k2", "--allowed-origins", '["*"]'),
    )
    expected = {
        "max_model_len": 4000,
        "max_num_seqs": 16,
        "tensor_parallel_size": "2",
        "enable_prefix_cache": False,
        "dtype": "fp16",
        "adapter": {"a": "/a", "b": "/b"},
        "kv_cache_memory": 1024**3,
        "api_key": ["k1", "k2"],
        "allow_origin": ["*"],
        "served_model_name": "m",
    }
    assert expected.items() <= told.items()
    assert settings("m", VLLM_API_KEY="secret")["api_key"] == ["secret"]
    quoted = """'{"name": "a", "path": "/a"}'"""
    assert settings("m", "--lora-modules", quoted)["adapter"] == {"a": "/a"}
    assert "max_model_len" not in settings("m", "--max-model-len", "auto")
    assert settings("m", "-q", "bitsandbytes")["quantize"] == "nf4"
    assert "quantize" not in settings("m", "--quantization", "awq_marlin")


def test_a_file_is_beaten_by_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text(
        "model: other\nport: 9000\nenable-lora: true\nmax-num-seqs: 4\nlora-modules: [a=/a, b=/b]\n"
    )
    told = settings("m", "--config", str(file), "--port", "1")
    assert (told["model"], told["port"], told["max_num_seqs"]) == ("m", "1", 4)
    assert told["adapter"] == {"a": "/a", "b": "/b"}
    assert settings("--config", str(file))["model"] == "other"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "MODEL"),
        (("m", "n"), "n"),
        (("m", "--colour", "red"), "--colour"),
        (("m", "--chat-template", "x.jinja"), "--chat-template"),
        (("m", "--hf-overrides", "{}"), "--hf-overrides"),
        (("m", "--rope-scaling", "{}"), "--rope-scaling"),
        (("m", "--tokenizer", "other"), "--tokenizer"),
        (("m", "--seed", "7"), "--seed"),
        (("m", "--revision", "abc"), "--revision"),
        (("m", "-pp", "2"), "--pipeline-parallel-size"),
        (("m", "--generation-config", "auto"), "--generation-config"),
        (("m", "--kv-cache-dtype", "fp8"), "--kv-cache-dtype"),
        (("m", "--quantization", "fp8"), "--quantization"),
        (("m", "--dtype", "int4"), "--dtype"),
        (("m", "--max-model-len", "long"), "--max-model-len"),
        (("m", "--port"), "--port"),
        (("m", "--lora-modules", "{"), "--lora-modules"),
        (("m", "--lora-modules", "a"), "--lora-modules"),
        (("m", "--lora-modules", '{"name": "a"}'), "--lora-modules"),
        (("m", "--lora-modules", '{"name": "a", "path": "b", "scale": 2}'), "--lora-modules"),
        (("m", "--config", "/missing.yaml"), "/missing.yaml"),
        (("m", "--kv-transfer-config", "{}"), "--kv-transfer-config"),
        (("m", "--override-generation-config", "{}"), "--override-generation-config"),
        (("m", "--long-lora-scaling-factors", "4"), "--long-lora-scaling-factors"),
    ],
)
def test_what_may_change_an_answer_is_refused_by_name(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        translate(arguments, {})


@given(st.lists(st.text(min_size=0, max_size=12), max_size=6))
def test_any_words_are_settings_or_an_error(words: list[str]) -> None:
    try:
        told = translate(words, {})
    except ConfigError:
        return
    assert told.settings["model"]


def test_tables_fit_one_another_and_the_settings() -> None:
    assert not SERVED & ONLY.keys()
    assert not SERVED & IGNORED.keys()
    assert not ONLY.keys() & IGNORED.keys()
    assert LISTS <= SERVED
    values = {"lora-modules": "a=b", "dtype": "half", "quantization": "bitsandbytes"}
    values |= {"kv-cache-dtype": "int8"}
    for name in SERVED:
        for setting in settings("m", f"--{name}", *([] if name in SWITCHES else [values.get(name, "1")])):
            assert setting in Settings.model_fields, setting
    assert set(SHORT.values()) <= SERVED | ONLY.keys() | IGNORED.keys()


def test_the_page_lists_them() -> None:
    assert SECTION.text() == table(), "run python -m tests.support.vllm_section"


@pytest.mark.slow
def test_a_server_starts_from_them(tmp_path: Path, model: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", model)
    module = json.dumps({"name": "support", "path": str(adapter), "base_model_name": "x"})
    command = [
        *(sys.executable, "-m", "manylora", "vllm-serve", str(model), "--host", "127.0.0.1", "--port", "0"),
        *("--served-model-name", "llama", "publishers/ns/models/llama", "--enable-lora", "--max-loras=4"),
        *("--max-lora-rank=32", "--max-cpu-loras=8", "--lora-modules", module),
        *("--gpu-memory-utilization", "0.9"),
    ]
    environment = {
        "PATH": "/usr/bin:/bin",
        "MANYLORA_DATA_DIR": str(tmp_path / "data"),
        "MANYLORA_KV_CACHE_MEMORY": "16MiB",
        "MANYLORA_ADAPTER_MEMORY": "16MiB",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(cache_directory("kernels").parents[1]),
        "PYTHONPATH": ":".join(sys.path),
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        printed = until_ready(process)
        assert "pods/" not in printed  # its own names are told as clients write them
        url = printed.partition("Ready on ")[2].split()[0]
        listed = httpx.get(f"{url}/v1/models").json()["data"]
        assert [each["id"] for each in listed] == ["llama", "support", "publishers/ns/models/llama"]
        for name in ("llama", "support", "publishers/ns/models/llama"):
            body = {"model": name, "prompt": "Hello", "max_tokens": 2, "unknown_field": 1}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert "--gpu-memory-utilization is ignored" in said
    assert "MANYLORA_ADAPTER_ROOT" in said
