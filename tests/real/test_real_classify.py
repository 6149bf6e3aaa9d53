"""The walk-through of docs/training.md: a classifier trained on 48 lines, served as it was trained."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoConfig

from manylora.adapters.training.config_load import load_config
from manylora.adapters.training.run.train import train
from manylora.adapters.training.session.metrics_log import read_metrics
from tests.support.classifiers import PeftClassifier
from tests.support.paths import ROOT

pytestmark = pytest.mark.real
TRAINING = ROOT / "examples" / "training"
COMMANDS = re.findall(
    r"```bash\n(.*?)\n```",
    (ROOT / "docs" / "training.md").read_text().partition("## From labelled texts")[2].partition("\n## ")[0],
    re.DOTALL,
)


@pytest.mark.sweep
def test_trained_served_and_equal(
    real_model_dir: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss halves, accuracy is a quarter above the majority's, and plain PEFT gives the probabilities."""
    monkeypatch.chdir(ROOT)
    options = {"base_model": str(real_model_dir), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    config = load_config({**options, "eval_steps": 1000, "save_steps": 1000}, TRAINING / "topics.yaml")
    result = train(config)
    assert result is not None
    curve = [line["loss"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in line]
    assert min(curve[-3:]) < curve[0] / 2
    base, adapter = result.baseline.base, result.baseline.adapter
    assert adapter["accuracy"] >= base["accuracy"] + 0.25
    url = f"http://127.0.0.1:{server}"
    rows = [json.loads(line) for line in (TRAINING / "topics-held-out.jsonl").read_text().splitlines()]
    files = [("files", (path.name, path.read_bytes())) for path in result.adapter.iterdir()]
    with httpx.Client(base_url=url, timeout=120) as http:
        put = http.put("/v1/adapters/topics", params={"wait": "true"}, files=files)
        assert put.status_code == 201, put.text
        labels = http.get("/v1/models/topics").json()["labels"]
        answer = http.post("/classify", json={"model": "topics", "input": [row["text"] for row in rows]})
        curl = COMMANDS[-1].replace("localhost:8000", f"127.0.0.1:{server}").replace("curl ", "curl -sS ")
        printed = subprocess.run(["bash", "-euc", curl], capture_output=True, text=True, check=True)
        http.delete("/v1/adapters/topics")
    assert labels == ["billing", "delivery", "repair"]
    assert len(json.loads(printed.stdout)["data"]) == 2
    data = answer.json()["data"]
    right = sum(entry["label"] == row["label"] for entry, row in zip(data, rows, strict=True))
    assert right / len(rows) == pytest.approx(adapter["accuracy"], abs=1 / len(rows) + 1e-6)  # served in bf16
    names = AutoConfig.from_pretrained(result.adapter)
    oracle = PeftClassifier(
        result.adapter, real_model_dir, 3, torch.bfloat16, pad_token_id=names.pad_token_id
    )
    from manylora.adapters.training.model.base import find_base

    template = find_base(str(real_model_dir)).template
    for entry, row in zip(data, rows, strict=True):
        expected = oracle.scores(template.chat.encode(row["text"])).softmax(-1)
        assert entry["probs"] == pytest.approx(expected.tolist(), abs=0.05)


def test_the_walk_through_is_complete() -> None:
    assert [command.split()[0] for command in COMMANDS] == ["manylora", "manylora", "curl"]
