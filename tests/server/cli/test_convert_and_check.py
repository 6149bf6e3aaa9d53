"""``manylora adapters convert`` and ``check``: without a server, and from a config of the base alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from manylora.server.cli.main import app
from manylora.server.kernels.inputs import page_length
from tests.support.adapters import write_kind
from tests.support.foreign_adapters import config_only, peft_adapter, tiny_base, write_mlx, written

SCREEN = {"COLUMNS": "300", "LINES": "40", "NO_COLOR": "1", "TERM": "dumb"}
FAMILIES = ("llama", "qwen2", "phi3", "gpt2", "gpt_neox")


def invoke(*arguments: object) -> Result:
    return CliRunner(env=SCREEN).invoke(app, ["adapters", *map(str, arguments)])


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return config_only(tmp_path / "base", "llama")


def checked(path: Path | str, *options: object) -> Any:
    result = invoke("check", path, "--json", *options)
    found = json.loads(result.stdout)
    assert result.exit_code == (1 if found["faults"] else 0)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["mlx", "gguf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_bit_equal(tmp_path: Path, family: str, form: str, dtype: torch.dtype) -> None:
    base = config_only(tmp_path / "base", family)
    _, tensors = peft_adapter(tmp_path / "peft", tiny_base(family), family, dtype=dtype)
    there = tmp_path / ("there.gguf" if form == "gguf" else "there")
    result = invoke("convert", tmp_path / "peft", there, "--to", form, "--model", base)
    assert result.exit_code == 0, result.output
    result = invoke("convert", there, tmp_path / "back", "--model", base)
    assert result.exit_code == 0, result.output
    back = written(tmp_path / "back")
    assert back.keys() == tensors.keys()
    assert all(back[key].dtype is dtype and torch.equal(back[key], tensors[key]) for key in tensors)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 6)


@pytest.mark.parametrize(
    ("options", "form", "kept"),
    [
        ({"use_dora": True}, "mlx", "use_dora"),
        ({"alora_invocation_tokens": [3, 4]}, "gguf", "alora_invocation_tokens"),
    ],
)
def test_what_a_form_holds_beside_lora(
    tmp_path: Path, llama: Path, options: dict[str, Any], form: str, kept: str
) -> None:
    config, tensors = peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama", **options)
    there = tmp_path / ("there.gguf" if form == "gguf" else "there")
    assert invoke("convert", tmp_path / "peft", there, "--to", form, "--model", llama).exit_code == 0
    assert invoke("convert", there, tmp_path / "back", "--model", llama).exit_code == 0
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())[kept] == config[kept]
    assert all(torch.equal(written(tmp_path / "back")[key], tensors[key]) for key in tensors)


def test_rslora_keeps_its_scale(tmp_path: Path, llama: Path) -> None:
    peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama", rslora=True)
    for form in ("gguf", "mlx"):
        there = tmp_path / f"there-{form}"
        there = there.with_suffix(".gguf") if form == "gguf" else there
        assert invoke("convert", tmp_path / "peft", there, "--to", form, "--model", llama).exit_code == 0
        assert invoke("convert", there, tmp_path / f"back-{form}", "--model", llama).exit_code == 0
        config = json.loads((tmp_path / f"back-{form}" / "adapter_config.json").read_text())
        assert config["lora_alpha"] / config["r"] == pytest.approx(6 / 4**0.5)


CANT_HOLD: dict[str, tuple[dict[str, Any], str, str]] = {
    "dora in gguf": ({"use_dora": True}, "gguf", "GGUF can't hold an adapter of the kind LORA+DORA"),
    "lora_bias": ({"lora_bias": True}, "gguf", "GGUF can't hold an adapter of the kind LORA+BIAS"),
    "lora_bias in mlx": ({"lora_bias": True}, "mlx", "MLX-LM can't hold an adapter of the kind LORA+BIAS"),
    "alora in mlx": (
        {"alora_invocation_tokens": [3]},
        "mlx",
        "MLX-LM can't hold an adapter of the kind LORA+ALORA",
    ),
    "alphas": ({"alpha_pattern": {"q_proj": 2}}, "gguf", "GGUF holds one alpha for all modules"),
    "scales": ({"alpha_pattern": {"q_proj": 2}}, "mlx", "MLX-LM holds one scale (alpha / r) for all modules"),
    "ranks": (
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        "mlx",
        "MLX-LM holds one rank",
    ),
}


@pytest.mark.parametrize("case", CANT_HOLD)
def test_what_a_form_can_not_hold_is_refused_by_name(tmp_path: Path, llama: Path, case: str) -> None:
    options, form, message = CANT_HOLD[case]
    peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama", **options)
    out = tmp_path / ("out.gguf" if form == "gguf" else "out")
    result = invoke("convert", tmp_path / "peft", out, "--to", form, "--model", llama)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_kinds_are_refused_by_name(tmp_path: Path, llama: Path) -> None:
    options: dict[str, Any] = {"target_modules": ["k_proj"], "feedforward_modules": []}
    write_kind(tmp_path / "ia3", tiny_base("llama"), peft_type="IA3", **options)
    for form in ("mlx", "gguf"):
        result = invoke("convert", tmp_path / "ia3", tmp_path / "out", "--to", form, "--model", llama)
        assert result.exit_code == 1
        assert "of the kind IA3" in result.stderr


def test_convert_says_what_is_wrong_with_its_arguments(tmp_path: Path, llama: Path) -> None:
    peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama")
    (tmp_path / "there").mkdir()
    for arguments, message in (
        ((tmp_path / "nothing", tmp_path / "out"), "no such file"),
        ((tmp_path / "peft", tmp_path / "there"), "exists already"),
        ((tmp_path / "peft", tmp_path / "out", "--to", "onnx"), "--to onnx: must be peft, mlx, gguf"),
    ):
        result = invoke("convert", *arguments, "--model", llama)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    result = invoke("convert", tmp_path / "peft", tmp_path / "out", "--model", tmp_path / "peft")
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_check_without_a_base(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama", use_dora=True)
    found = checked(tmp_path / "peft")
    assert (found["kind"], found["rank"], found["trained_on"]) == ("LORA+DORA", 4, "base")
    assert (found["fits"], found["base"], found["cost"]) == (None, None, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_check_with_a_base(tmp_path: Path, family: str) -> None:
    base, model = tiny_base(family), config_only(tmp_path / "base", family)
    peft_adapter(tmp_path / "peft", base, family)
    found = checked(tmp_path / "peft", "--model", model)
    assert found["fits"] is True
    assert found["modules"] == found["total_modules"] == len(base.modules)
    widths = sum(page_length(m.in_features) + page_length(m.out_features) for m in base.modules.values())
    assert found["cost"]["adapter_memory_bytes"]["fp32"] == 4 * 4 * widths
    assert found["cost"]["estimate"] is True
    assert 0 < found["cost"]["share_of_base"] < 1
    assert found["converted_from"] is None


def test_check_says_what_is_computed_at_load(tmp_path: Path, llama: Path) -> None:
    peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama", use_dora=True)
    found = checked(tmp_path / "peft", "--model", llama)
    assert found["cost"]["computed_at_load"] == ["DoRA's gains, from the base's weights"]


def test_check_another_base(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama")
    found = checked(tmp_path / "peft", "--model", config_only(tmp_path / "base", "phi3"))
    assert found["fits"] is False or found["converted_from"] is not None
    found = checked(tmp_path / "peft", "--model", config_only(tmp_path / "other", "gpt2"))
    assert found["fits"] is False
    assert found["faults"]


def test_check_files_of_other_tools(tmp_path: Path, llama: Path) -> None:
    _, tensors = peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama")
    mlx = write_mlx(tmp_path / "mlx", tensors, rank=4, scale=1.5, layers=2)
    found = checked(mlx)
    assert (found["kind"], found["trained_on"]) == ("LORA", "mlx-community/tiny-4bit")
    found = checked(mlx, "--model", llama)
    assert found["converted_from"]["format"] == "MLX"
    gguf = tmp_path / "a.gguf"
    assert invoke("convert", mlx, gguf, "--model", llama).exit_code == 0
    assert checked(gguf)["rank"] == 4
    found = checked(gguf, "--model", llama)
    assert (found["converted_from"]["format"], found["converted_from"]["file"]) == ("GGUF", "a.gguf")
    text = invoke("check", gguf, "--model", llama)
    assert text.exit_code == 0
    assert "converted from: GGUF" in text.stdout
    assert "can serve it, 14 of 14 modules" in text.stdout


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(100), b"\xff" * 64])
def test_check_broken_files(tmp_path: Path, llama: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    for options in ((), ("--model", llama)):
        result = invoke("check", tmp_path / "a.gguf", "--json", *options)
        assert result.exit_code == 1
        assert json.loads(result.stdout)["faults"]


def test_check_refused_kinds_and_configs(tmp_path: Path, llama: Path) -> None:
    config, _ = peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama")
    for change, message in (
        ({"peft_type": "NOVEL"}, "NOVEL"),
        ({"r": 10**6}, "r "),
        ({"new_option": 3}, "new_option"),
    ):
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        for options in ((), ("--model", llama)):
            assert message in " ".join(checked(tmp_path / "peft", *options)["faults"])
    (tmp_path / "peft" / "adapter_config.json").write_text("{")
    assert checked(tmp_path / "peft")["faults"]


def test_check_what_is_not_there(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("nothing")
    peft_adapter(tmp_path / "peft", tiny_base("llama"), "llama")
    for arguments in (
        (tmp_path / "nothing",),
        (tmp_path / "empty",),
        (tmp_path / "a.txt",),
        ("nothing",),
        (tmp_path / "peft", "--model", tmp_path / "empty"),
    ):
        result = invoke("check", *arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.stderr
