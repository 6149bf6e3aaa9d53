"""Whatever artifact is sent or named over HTTP, the answer is an adapter that serves or a client's fault."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.adapters import write_adapter, write_kind
from tests.support.admin_client import Admin
from tests.support.mutated_artifacts import Case, mutated, read_case
from tests.support.running_server import Running, serving, tiny_service
from tests.support.vocabulary_adapters import make

CASES = int(os.environ.get("MANYLORA_FUZZ_UPLOADS", "120"))
SEED = int(os.environ.get("MANYLORA_FUZZ_SEED", "0"))
NAMES = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + CASES)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def server(root: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny_service(model, tmp_path_factory.mktemp("data"), adapter_root=[root])) as running:
        yield running


@pytest.fixture(scope="module")
def cases(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    where = tmp_path_factory.mktemp("valid")
    write_adapter(where / "plain", model, rank=4, targets="all-linear")
    write_kind(where / "dora", model, peft_type="LORA", r=4, target_modules=["q_proj"], use_dora=True)
    write_kind(where / "vera", model, peft_type="VERA", r=8, target_modules=["q_proj", "v_proj"])
    make(where / "saved", model, seed=1, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    return {path.name: read_case(path) for path in sorted(where.iterdir())}


def test_the_answer_is_an_adapter_or_a_fault_of_the_client(
    server: Running, cases: dict[str, Case], root: Path
) -> None:
    admin, statuses = Admin(server), Counter[int]()
    for seed in range(SEED, SEED + CASES):
        directory = mutated(cases, NAMES, seed).write(root / f"case-{seed}")
        if seed % 2:
            found = admin.upload("x", directory, wait="true")
        else:
            body = {"lora_name": "x", "lora_path": str(directory), "load_inplace": True}
            found = admin.ask("POST", "/v1/load_lora_adapter", json=body)
        assert found.status_code < 500, f"seed {seed}: {found.text}"
        statuses[found.status_code // 100] += 1
        if found.status_code < 300:
            answer = admin.ask(
                "POST", "/v1/completions", json={"model": "x", "prompt": "Hi", "max_tokens": 2}
            )
            classifies = answer.status_code == 400 and "classifies" in answer.text
            assert answer.status_code == 200 or classifies, f"seed {seed}: {answer.text}"
    assert statuses[2] > CASES // 20
    assert statuses[4] > CASES // 4
    server.wait_until_idle()
