"""What the original model says to the probe is kept, and decides nothing against a decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.errors import ModelRefused
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading import kept_references
from manylora.server.model.loading import probe as probing
from manylora.server.model.loading.kept_references import KeptReferences
from manylora.server.model.loading.loader import LoadedModel, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, probe, probe_adapters
from manylora.server.model.loading.reference import Reference, reference
from manylora.server.model.pages.pool import PagePool


def load(model: Path) -> LoadedModel:
    return load_model(model, dtype="fp32", device="cpu", max_model_len=None)


class Start:
    """One start of a server, as far as the probe goes; ``asked`` counts how often the model is."""

    def __init__(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded = load(model)
        self.decoder = FusedDecoder(self.loaded.hf, 512)
        self.pool = PagePool(
            self.decoder.modules, 1 << 20, self.loaded.dtype, self.loaded.device, self.decoder
        )
        self.decoder.allocate(self.pool.data, PROBE_BLOCKS, 64)
        self.kept = KeptReferences.of(self.loaded, self.decoder.name, self.loaded.dtype)
        self.model = self.loaded.hf
        self.asked = 0

        def counted(*args: Any) -> Reference:
            self.asked += 1
            return reference(*args)

        monkeypatch.setattr(probing, "reference", counted)

    def probe(self) -> float:
        dtype = self.loaded.dtype
        return max(
            probe(self.model, self.decoder, dtype, self.kept),
            probe_adapters(self.model, self.decoder, self.pool, dtype, self.kept),
        )


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept_references, "WORTH_KEEPING", 0.0)
    return tmp_path / "manylora" / "probes"


def test_a_second_start_asks_nothing(
    tiny_llama: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Start(tiny_llama, monkeypatch)
    error = first.probe()
    second = Start(tiny_llama, monkeypatch)
    assert second.probe() == error
    assert (first.asked, second.asked) == (2, 0)
    assert len(list(directory.iterdir())) == 2


def test_a_wrong_decoder_is_refused_by_the_model_itself(
    tiny_llama: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Start(tiny_llama, monkeypatch).probe()
    wrong = Start(tiny_llama, monkeypatch)
    wrong.model = load(tiny_llama).hf  # the decoder changes the weights of its own, not of these
    down = wrong.decoder.weights.layers[1].down
    assert isinstance(down, torch.Tensor)
    with torch.no_grad():
        down.copy_(down.flip(0))
    with pytest.raises(ModelRefused, match="disagrees"):
        wrong.probe()
    assert wrong.asked == 1


def test_what_was_kept_of_another_model_refuses_no_decoder(
    tiny_llama: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Start(tiny_llama, monkeypatch).probe()
    for file in directory.iterdir():
        kept = Start(tiny_llama, monkeypatch).kept
        asked = file.stem.removeprefix(f"{kept.model}-")
        said = kept.read(asked)
        assert said is not None
        kept.keep(asked, Reference(said.logits.flip(1), said.allowed), 1.0)
    again = Start(tiny_llama, monkeypatch)
    again.probe()
    assert again.asked == 2
    mended = Start(tiny_llama, monkeypatch)
    mended.probe()
    assert mended.asked == 0


@pytest.mark.parametrize("content", [b"", b"\x08" * 200, b'{"logits": 1}'])
def test_a_damaged_file_is_no_answer(
    tiny_llama: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    Start(tiny_llama, monkeypatch).probe()
    for file in directory.iterdir():
        file.write_bytes(content)
    again = Start(tiny_llama, monkeypatch)
    again.probe()
    assert again.asked == 2


def test_models_that_differ_are_told_apart(tiny_llama: Path) -> None:
    loaded = load(tiny_llama)

    def name(loaded: LoadedModel, decoder: str = "fused", dtype: torch.dtype = torch.float32) -> str:
        return KeptReferences.of(loaded, decoder, dtype).model

    names = [
        name(loaded),
        name(loaded, decoder="generic"),
        name(loaded, dtype=torch.bfloat16),
        name(replace(loaded, fingerprint="another")),
        name(replace(loaded, quantize="nf4")),
        name(replace(loaded, max_model_len=9)),
    ]
    loaded.hf.config.rms_norm_eps *= 2
    names.append(name(loaded))
    assert len(set(names)) == len(names)


def test_little_is_kept(tmp_path: Path, directory: Path) -> None:
    said = Reference(torch.zeros(2, 3), torch.ones(2))
    for number in range(20):
        KeptReferences(directory, f"model{number}").keep("base", said, 1.0)
    assert len(list(directory.iterdir())) == 8
    assert KeptReferences(directory, "model19").read("base") is not None


def test_a_directory_that_can_t_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = KeptReferences(tmp_path / "file" / "probes", "model")
    kept.keep("base", Reference(torch.zeros(2, 3), torch.ones(2)), 1.0)
    assert kept.read("base") is None


def test_a_quick_answer_is_not_kept(tmp_path: Path) -> None:
    kept = KeptReferences(tmp_path / "probes", "model")
    kept.keep("base", Reference(torch.zeros(2, 3), torch.ones(2)), 0.01)
    assert not kept.directory.exists()
