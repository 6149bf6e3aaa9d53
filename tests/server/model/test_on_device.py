"""What runs on a GPU, on a simulated one: no operation mixes devices, and answers are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TrainableTokensConfig

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.engine.sequence import ResolvedMix
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.model.decoders.merging import merge
from manylora.server.model.loading.loader import LoadedModel
from tests.support.adapter_kinds import write_kinds
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.classifiers import make_classifier, request_scores, scores_of
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.further_kinds import write_further_kinds
from tests.support.matrix_kinds import write_matrix_kinds
from tests.support.simulated_device import DEVICE, OnDevice, SimulatedCuda, put_on_device, simulated_cuda
from tests.support.soft_prompts import model_for_prefixes, write_soft_prompts
from tests.support.vocabulary_adapters import make_any

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]

FAMILY = "llama-untied-bias"
LIMITS = Limits(max_rank=128, max_bytes=1 << 30)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedCuda]:
    with simulated_cuda(monkeypatch) as mode:
        yield mode


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Path]]:
    """A tiny model and an adapter of every kind."""
    root = tmp_path_factory.mktemp("kinds")
    model = model_for_prefixes(root / "model", FAMILY)
    return model, {
        **write_soft_prompts(root / "prompts", model),
        **write_kinds(root / "kinds", model, FAMILY),
        **write_further_kinds(root / "further", model, FAMILY),
        **write_matrix_kinds(root / "matrix", model, FAMILY),
        "tokens": make_any(root / "tokens", model, TrainableTokensConfig(token_indices=[3, 70]), seed=9),
    }


def placed(loaded: LoadedModel) -> LoadedModel:
    put_on_device(loaded.hf)
    return replace(loaded, device=DEVICE)


def run(harness: EngineHarness, pages: Mapping[str, AdapterPages], **params: Any) -> dict[str, Answer]:
    """Answers of the base and of every adapter, in one batch."""
    names = ["", *pages]
    rows = [
        harness.sequence(
            prompt_of(3 + 5 * i % 31, i), *([(pages[n], 1.0)] if n else []), max_tokens=3, **params
        )
        for i, n in enumerate(names)
    ]
    return dict(zip(names, harness.run(*rows), strict=True))


@pytest.mark.parametrize("kernels", ["pytorch", "auto"])
def test_every_kind_beside_the_base(
    kinds: tuple[Path, Mapping[str, Path]], cuda: SimulatedCuda, kernels: str
) -> None:
    """With PyTorch's kernels the bits are the same; Triton's add in another order."""
    model, paths = kinds
    ours = EngineHarness(model, kernels="pytorch", max_batch_tokens=48)
    theirs = EngineHarness(model, kernels=kernels, max_batch_tokens=48, placed=placed)
    assert theirs.decoder.kernels == ("pytorch" if kernels == "pytorch" else "triton")
    assert isinstance(theirs.pool.data, OnDevice)
    params = {"temperature": 0.7, "seed": 3, "top_p": 0.9} if kernels == "pytorch" else {}
    with recorded_logits() as expected:
        answers = run(ours, {name: ours.load(path) for name, path in paths.items()}, **params)
    with recorded_logits() as found:
        on_device = run(theirs, {name: theirs.load(path) for name, path in paths.items()}, **params)
    assert {n: a.token_ids for n, a in on_device.items()} == {n: a.token_ids for n, a in answers.items()}
    for mine, other in zip(expected.values(), found.values(), strict=True):
        tolerance = 0.0 if kernels == "pytorch" else 1e-4
        rows = zip(mine, (row.cpu() for row in other), strict=True)
        assert all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in rows)


def test_merged_copies_of_every_kind(kinds: tuple[Path, Mapping[str, Path]], cuda: SimulatedCuda) -> None:
    """The base is on the device and what adapters hold is not."""
    model, paths = kinds
    ours = EngineHarness(model, kernels="pytorch", max_batch_tokens=48)
    theirs = EngineHarness(model, kernels="pytorch", max_batch_tokens=48, placed=placed)
    merged = 0
    for name, path in paths.items():
        artifact = read_artifact(path, ours.base, LIMITS)
        if artifact.vocabulary is not None or artifact.prompt is not None or artifact.activation is not None:
            continue
        answers = [on_copy(harness, artifact.delta) for harness in (ours, theirs)]
        assert answers[0].token_ids == answers[1].token_ids, name
        merged += 1
    assert merged > 10


def on_copy(harness: EngineHarness, delta: Any) -> Answer:
    """What a merged copy of one adapter answers."""
    made = harness.decoder.merged()
    for _ in merge(harness.decoder, [(delta, 1.0)], made):
        pass
    sequence = harness.sequence(prompt_of(9), max_tokens=3)
    sequence.mix = ResolvedMix((), b"merged", "merged", made)
    (answer,) = harness.run(sequence)
    return answer


@pytest.mark.parametrize("options", [
    {"generic": True}, {"coded_cache": True, "kernels": "pytorch"},
    {"quantize": "int8", "kernels": "pytorch"}, {"quantize": "nf4", "kernels": "pytorch"},
    {"quantize": "int8", "kernels": "auto"},
], ids=str)  # fmt: skip
def test_other_ways_to_run(
    kinds: tuple[Path, Mapping[str, Path]], cuda: SimulatedCuda, options: dict[str, Any]
) -> None:
    model, paths = kinds
    few = {name: path for i, (name, path) in enumerate(paths.items()) if i % 4 == 0}
    cpu = options | ({"kernels": "pytorch"} if options.get("kernels") == "auto" else {})
    ours = EngineHarness(model, **cpu)
    theirs = EngineHarness(model, placed=placed_codes, **options)
    answers = [
        run(harness, {name: harness.load(path) for name, path in few.items()}) for harness in (ours, theirs)
    ]
    assert {n: a.token_ids for n, a in answers[0].items()} == {n: a.token_ids for n, a in answers[1].items()}


def placed_codes(loaded: LoadedModel) -> LoadedModel:
    """As :func:`placed`, with the codes of quantized layers, which are no parameters."""
    for module in loaded.hf.modules():
        codes = getattr(module, "codes", None)
        if codes is not None:
            moved = {
                key: OnDevice(value) for key, value in vars(codes).items() if isinstance(value, torch.Tensor)
            }
            module.codes = replace(codes, **moved)
    return placed(loaded)


def test_scores_logprobs_and_penalties(tiny_llama: Path, cuda: SimulatedCuda) -> None:
    found = []
    for harness in (
        EngineHarness(tiny_llama, kernels="pytorch"),
        EngineHarness(tiny_llama, kernels="pytorch", placed=placed),
    ):
        row = harness.sequence(
            prompt_of(9), max_tokens=6, temperature=0.8, seed=1, logprobs=3, prompt_logprobs=2, top_k=20,
            min_p=0.01, presence_penalty=0.5, frequency_penalty=0.2, repetition_penalty=1.2,
            logit_bias={5: 2.0}, min_tokens=4,
        )  # fmt: skip
        (answer,) = harness.run(row)
        found.append([(d.token_ids, d.logprobs, d.prompt_logprobs) for d in answer.deltas])
    assert found[0] == found[1]


def test_mixing_devices_is_noticed(cuda: SimulatedCuda) -> None:
    """What all of the above rests on."""
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    with pytest.raises(RuntimeError, match="on cuda:0"):
        there + here
    with pytest.raises(RuntimeError, match="on cuda:0"):
        there[:2] = here[:2] + there[:2]
    assert (there + torch.tensor(2.0)).tolist() == [3.0] * 3
    assert there[torch.tensor([1])].device == DEVICE
    with pytest.raises(TypeError):
        there.numpy()
    before = cuda.waits.total()
    assert float(there.sum()) == 3.0
    assert cuda.waits.total() == before + 1


def test_classification(kinds: tuple[Path, Mapping[str, Path]], cuda: SimulatedCuda, tmp_path: Path) -> None:
    model, _ = kinds
    made = make_classifier(tmp_path / "classes", model, labels=("bad", "good", "neither"))
    scores = []
    for harness in (
        EngineHarness(model, kernels="pytorch"),
        EngineHarness(model, kernels="pytorch", placed=placed),
    ):
        pages = harness.load(made)
        rows = [request_scores(harness, prompt_of(n, n), pages) for n in (5, 17)]
        scores.append([scores_of(answer) for answer in harness.run(*rows)])
    assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))
