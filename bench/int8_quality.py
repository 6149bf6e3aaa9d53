"""How well a base answers whose linear layers compute in 8-bit integers, simulated in PyTorch.

Weights and activations are rounded to int8 and multiplied exactly; everything else stays bf16. Measured is
what the model says next at every position of a fixed set of texts (prose, code, its own chat answers) against
the same model in bf16: how often both rank the same token first, and the KL divergence.

    python -m bench.int8_quality MODEL_DIR
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = Path(__file__).parents[1] / "examples" / "data" / "questions.txt"
WINDOW = 256  # tokens of a text


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is rounded, and how. Layers are named by the end of their names."""

    name: str
    group: int | None = None  # inputs that share an activation scale; None: a whole row
    weight_group: int | None = None  # inputs of an output that share a weight scale; None: all
    smooth: float | None = None  # SmoothQuant's alpha; None: no smoothing
    activations: bool = True  # False: rounded to bf16 only
    keep: tuple[str, ...] = ()  # stay in bf16

    def takes(self, module: str) -> bool:
        return not module.endswith(self.keep)  # of an empty tuple: nothing ends with it


ROW = Recipe("a scale a row")
SMOOTHED = replace(ROW, name="a scale a row, smoothed", smooth=0.5)
GROUPS = Recipe("a scale for 32 inputs, weights too", group=32, weight_group=32)
SMOOTHED_GROUPS = replace(GROUPS, name="a scale for 32 inputs, smoothed", smooth=0.5)
WEIGHTS = Recipe("weights only, a scale an output", activations=False)
RECIPES = (
    ROW,
    SMOOTHED,
    replace(SMOOTHED, name="the same, head and down in bf16", keep=("lm_head", "down_proj")),
    GROUPS,
    SMOOTHED_GROUPS,
    replace(
        SMOOTHED_GROUPS, name="the same, head, down and o in bf16", keep=("lm_head", "down_proj", "o_proj")
    ),
    WEIGHTS,
    replace(WEIGHTS, name="weights only, a scale for 32 inputs", weight_group=32),
)


def rounded(x: torch.Tensor, group: int | None) -> torch.Tensor:
    """``x`` with each run of ``group`` values of the last dimension on its own grid of 255 steps."""
    shape = x.shape
    if group is not None:
        x = x.unflatten(-1, (-1, group))
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 127
    return (x / scale).round().mul(scale).reshape(shape)


class Int8(nn.Module):
    """A linear layer whose product is of integers."""

    def __init__(self, linear: nn.Linear, recipe: Recipe, largest: torch.Tensor) -> None:
        """``largest`` [in]: magnitudes of the inputs seen in calibration."""
        super().__init__()
        weight = linear.weight.detach().float()
        self.divisor: torch.Tensor | None = None
        if recipe.smooth is not None:
            of_weights = weight.abs().amax(0).clamp(min=1e-5) ** (1 - recipe.smooth)
            self.divisor = (largest.clamp(min=1e-5) ** recipe.smooth / of_weights).clamp(min=1e-5)
            weight = weight * self.divisor
        self.weight = rounded(weight, recipe.weight_group)
        self.bias = None if linear.bias is None else linear.bias.float()
        self.recipe = recipe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x.float() if self.divisor is None else x.float() / self.divisor
        inputs = rounded(scaled, self.recipe.group) if self.recipe.activations else scaled
        return F.linear(inputs, self.weight, self.bias).to(x.dtype)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


@contextmanager
def quantized(model: nn.Module, recipe: Recipe, largest: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """``model`` computes by ``recipe`` inside."""
    before = {name: module for name, module in linears(model).items() if recipe.takes(name)}
    try:
        for name, module in before.items():
            model.set_submodule(name, Int8(module, recipe, largest[name]))
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)


@torch.no_grad()
def calibrate(model: Any, windows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The largest magnitude of each input of each linear layer."""
    largest: dict[str, torch.Tensor] = {}

    def see(name: str, x: torch.Tensor) -> None:
        seen = x.detach().float().abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, module in linears(model).items()
    ]
    for window in windows:
        model(window)
    for hook in hooks:
        hook.remove()
    return largest


@torch.no_grad()
def log_probabilities(model: Any, window: torch.Tensor) -> torch.Tensor:
    """What ``model`` says after every token of ``window`` [1, n]: [n, V]."""
    logits: torch.Tensor = model(window).logits[0]
    return logits.float().log_softmax(-1)


def probe_texts(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Windows of token ids [1, n], in turn of prose, code and chat; a fixed set for a Python version."""
    prose, code = written_texts(tokenizer)
    lines = [line for line in QUESTIONS.read_text().splitlines() if not line.startswith("#")]
    questions = [line.split(" | ")[1] for line in lines[:: len(lines) // 16][:16]]
    answered = [answer(model, tokenizer, question) for question in questions]
    chat = [torch.cat(pair, dim=1) for pair in zip(answered[::2], answered[1::2], strict=True)]
    return [window for turn in zip(prose, code, chat, strict=True) for window in turn]


def written_texts(tokenizer: Any) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """Eight windows of token ids [1, n] of prose, and eight of code."""
    topics = "\n".join(pydoc_data.topics.topics[name] for name in ("exceptions", "naming", "types"))
    prose, code = (
        tokenizer(text, return_tensors="pt").input_ids.split(WINDOW, dim=1)[:8]
        for text in (topics, Path(textwrap.__file__).read_text())
    )
    return prose, code


@torch.no_grad()
def answer(model: Any, tokenizer: Any, question: str) -> torch.Tensor:
    """Question and greedy answer as one prompt [1, n]."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    written: torch.Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=96, do_sample=False
    )
    return written


@dataclass(frozen=True, slots=True)
class Row:
    """A comparison with bf16."""

    name: str
    positions: int
    agreement: float  # share of positions with the same most likely token
    kl: float  # mean, in nats

    def __str__(self) -> str:
        return f"{self.name:40} {100 * self.agreement:6.2f}%  KL {self.kl:.1e}"


def compared(name: str, model: Any, probes: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> Row:
    """``model`` on the windows ``probes`` against log-probabilities ``exact``."""
    same, divergence, positions = 0, 0.0, 0
    for window, wanted in zip(probes, exact, strict=True):
        found = log_probabilities(model, window)
        same += int((wanted.argmax(-1) == found.argmax(-1)).sum())
        divergence += float((wanted.exp() * (wanted - found)).sum())
        positions += len(wanted)
    return Row(name, positions, same / positions, divergence / positions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a base model")
    directory = parser.parse_args().model
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    windows = probe_texts(model, tokenizer)
    calibration, probes = windows[:6], windows[6:]
    largest = calibrate(model, calibration)
    exact = [log_probabilities(model, window) for window in probes]
    wide = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    rows = [compared("fp32: what bf16 itself is off by", wide, probes, exact)]
    print(rows[0], flush=True)
    for recipe in RECIPES:
        with quantized(model, recipe, largest):
            rows.append(compared(recipe.name, model, probes, exact))
        print(rows[-1], flush=True)
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
