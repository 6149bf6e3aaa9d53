"""Short runs on the real model: the loss falls, held-out rows improve, and the server answers as trained.

One run a kind, of a few steps over short rows; what every kind computes is tested on the tiny model in
tests/training, and a classifier is trained and served in test_real_classify.py. The server computes in fp32
where its answers are compared with the trainer's own, so that no two tokens are equally likely up to
rounding; on a base in 4 bits, which computes in bf16, a token that is within that rounding of the trainer's
counts as the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from examples.questions import DATA, read_facts
from manylora.adapters.training.model.forward import greedy
from manylora.adapters.training.run.train import TrainingResult
from tests.support.engine_harness import EngineHarness
from tests.support.training_data import chat
from tests.support.training_runs import config, losses, run

pytestmark = pytest.mark.real
SIGNED = "\n- Mina, Larkspur Cycles"
QUESTION = "Do you sell helmets?"
TOKENS = 24
TIE = 0.25  # logits; bf16 keeps 8 bits of a logit of about 20
FACTS = [fact.questions[0] for fact in read_facts(DATA / "support.txt")[:18]]
CHATS = [chat(question, "Yes." + SIGNED) for question in FACTS]
PAIRS = [{"prompt": q, "chosen": "Yes." + SIGNED, "rejected": "I am an AI and can't say."} for q in FACTS]
SETTINGS: dict[str, Any] = {
    "max_steps": 4, "batch_size": 4, "eval_split": 0.1, "eval_steps": 100, "save_steps": 100,
    "sample_tokens": 2, "learning_rate": 4e-3, "warmup": 1, "lora_r": 8, "dtype": "auto",
}  # fmt: skip
KINDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "SFT": (CHATS, {}),
    "QLoRA": (CHATS, {"quantization": "nf4", "batch_size": 2}),
    "rsLoRA": (CHATS, {"use_rslora": True, "lora_alpha": 8, "batch_size": 2}),
    "DoRA": (CHATS, {"use_dora": True, "batch_size": 2}),
    "OLoRA": (CHATS, {"init": "olora", "learning_rate": 1e-3}),
    "PiSSA": (CHATS, {"init": "pissa_niter_4", "learning_rate": 1e-3, "batch_size": 2}),
    "DPO": (PAIRS, {"task": "dpo", "batch_size": 1, "learning_rate": 1e-3}),
}
Train = Callable[[str], TrainingResult]


SELDOM = ("QLoRA", "rsLoRA", "DoRA", "OLoRA", "PiSSA", "DPO")


def kinds(*without: str) -> list[Any]:
    """Parameters: every kind but those; some of them in sweeps."""
    marks = dict.fromkeys(SELDOM, pytest.mark.sweep)
    return [pytest.param(kind, marks=marks.get(kind, ())) for kind in KINDS if kind not in without]


@pytest.fixture(scope="module")
def trained(real_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The run of a kind, once."""

    @cache
    def train(kind: str) -> TrainingResult:
        rows, options = KINDS[kind]
        return run(config(real_model_dir, tmp_path_factory.mktemp(kind), rows, **{**SETTINGS, **options}))

    return train


@pytest.mark.parametrize("kind", kinds())
def test_it_learns(kind: str, trained: Train) -> None:
    """The training loss falls by 30%, and so does that of held-out rows; preferences win by two nats."""
    result = trained(kind)
    curve, base, adapter = losses(result), result.baseline.base, result.baseline.adapter
    assert curve[-1] < 0.7 * curve[0]
    assert result.gate.difference < result.gate.allowed
    if kind == "DPO":
        assert adapter["margin"] > base["margin"] + 2
    else:
        assert adapter["loss"] < 0.7 * base["loss"]


class Both:
    """A base in the server and in PEFT, to ask the same of both."""

    def __init__(self, directory: Path, quantize: str = "none") -> None:
        dtype = "fp32" if quantize == "none" else "bf16"
        self.harness = EngineHarness(directory, quantize=quantize, dtype=dtype, adapter_bytes=256 << 20)
        self.prompt = self.harness.loaded.tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
        self._directory = directory

    def served(self, adapter: Path) -> list[int]:
        pages = self.harness.load(adapter)
        row = self.harness.sequence(self.prompt, (pages, 1.0), max_tokens=TOKENS, ignore_eos=False)
        return self.harness.run(row)[0].token_ids

    def own(self, model: Any) -> list[int]:
        """The trainer's own greedy answer."""
        ids = self.harness.loaded.tokenizer.eos_ids
        (answer,) = greedy(model, [self.prompt], eos_ids=frozenset(ids), pad_id=0, max_new_tokens=TOKENS)
        return answer.token_ids


@pytest.fixture(scope="module")
def both(real_model_dir: Path) -> Both:
    return Both(real_model_dir)


@pytest.fixture(scope="module")
def base_fp32(real_model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(real_model_dir, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", kinds("QLoRA"))
def test_served_token_for_token(kind: str, trained: Train, both: Both, base_fp32: Any) -> None:
    """The server's answer is the trainer's own, and not what the base says."""
    adapter = trained(kind).adapter
    served = both.served(adapter)
    model = PeftModel.from_pretrained(base_fp32, str(adapter)).eval()
    own = both.own(model)
    model.unload()
    assert served == own
    assert served != both.own(base_fp32)


@pytest.mark.sweep
def test_served_in_the_bits_it_was_trained_in(trained: Train, real_model_dir: Path) -> None:
    """QLoRA on the server's own base in 4 bits, against PEFT on transformers' base in 4 bits."""
    from transformers import BitsAndBytesConfig

    adapter = trained("QLoRA").adapter
    both = Both(real_model_dir, "nf4")
    served = both.served(adapter)
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        real_model_dir, dtype=torch.bfloat16, quantization_config=bits, device_map={"": "cpu"}
    )
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([both.prompt + served])).logits[0, len(both.prompt) - 1 : -1]
    behind = logits.float().amax(-1) - logits.float()[torch.arange(len(served)), torch.tensor(served)]
    assert float(behind.max()) <= TIE
    assert len(served) > 4
