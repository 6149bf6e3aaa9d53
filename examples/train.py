"""Train an example adapter: ``python -m examples.train pirate --base DIR --out DIR``.

A plain loop: LoRA on a frozen bf16 base, AdamW, a cosine schedule with warm-up, the loss on the
assistant's tokens and the end token only. The saved artifact is loaded again on an untouched base and
must give the trained logits; then base and adapter answer the held-out questions.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.card import write_card
from examples.chat import IGNORED, Batch, batches, collate, encode
from examples.evaluate import answer, failures, score
from examples.recipe import Recipe
from examples.rows import RECIPES

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WARMUP = 0.1  # share of the steps
LOGIT_TOLERANCE = 0.005  # relative; what rounding the adapter to bf16 may change


def load_base(directory: Path) -> Any:
    """The frozen base in bf16, as it is served."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)


def lora_config(recipe: Recipe) -> LoraConfig:
    """Plain LoRA (or rsLoRA): no biases, no extra modules, B starts at zero."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=list(recipe.targets),
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rslora,
        rank_pattern=dict(recipe.rank_pattern),
    )


def answer_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [tokens, vocab] (fp32) that predict the supervised tokens, and those tokens [tokens].

    Only these positions go through ``lm_head``: at this size it is a fifth of the forward pass.
    """
    base = model.get_base_model()
    hidden = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    targets = batch.labels[:, 1:]
    chosen = targets != IGNORED
    return base.lm_head(hidden[:, :-1][chosen]).float(), targets[chosen]


def cosine_with_warmup(step: int, steps: int) -> float:
    """The factor on the learning rate: up in a line, down along half a cosine."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(model: Any, recipe: Recipe, tokenizer: Any, console: Console) -> float:
    """One pass over the conversations; returns the mean loss of the last tenth of the steps."""
    chats = [encode(tokenizer, messages) for messages in recipe.conversations]
    supervised = sum(label != IGNORED for chat in chats for label in chat.labels)
    console.print(
        f"{len(chats)} chats, {sum(len(c.input_ids) for c in chats)} tokens, {supervised} trained on"
    )
    schedule = list(batches(chats, recipe.batch_size, tokenizer.pad_token_id, random.Random(0)))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=recipe.learning_rate, weight_decay=0.0)
    steps = len(schedule)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_with_warmup(step, steps))
    model.train()
    losses: list[float] = []
    for batch in track(schedule, f"training {recipe.name}", console=console):
        loss = functional.cross_entropy(*answer_logits(model, batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 10 == 0:
            console.print(f"step {len(losses):3}/{steps}  loss {sum(losses[-10:]) / 10:.3f}")
    model.eval()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def save(model: Any, directory: Path) -> None:
    """Write the PEFT artifact with its weights rounded to bf16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    if directory.exists():
        shutil.rmtree(directory)
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    # Left to itself PEFT asks the Hub whether the vocabulary changed; the embeddings are frozen here.
    model.save_pretrained(directory, save_embedding_layers=False)


@torch.no_grad()
def check_saved(base: Path, directory: Path, probe: Batch, expected: Tensor) -> float:
    """How far the artifact's fp32 logits on a pristine base are from the trained ones (relative)."""
    model = PeftModel.from_pretrained(load_base(base), directory).eval().float()
    logits, _ = answer_logits(model, probe)
    error = float((logits - expected).norm() / expected.norm())
    if not error < LOGIT_TOLERANCE:
        raise RuntimeError(f"the saved adapter is not what was trained: logits differ by {error:.2%}")
    return error


def measure(model: Any, tokenizer: Any, recipe: Recipe, console: Console) -> dict[str, dict[str, float]]:
    """Held-out scores of base and adapter; prints the adapter's answers and which checks they fail."""
    questions = [item.question for item in recipe.held_out]
    with model.disable_adapter():
        base_answers = answer(model, tokenizer, questions)
    answers = answer(model, tokenizer, questions)
    for item, given in zip(recipe.held_out, answers, strict=True):
        failed = ", ".join(failures(item, given))
        console.print(f"  {item.question}\n    {given.text!r}", markup=False, highlight=False)
        if failed:
            console.print(f"    fails: {failed}")
    results = {"base": score(recipe.held_out, base_answers), "adapter": score(recipe.held_out, answers)}
    for name, scores in results.items():
        console.print(f"{name:8}", "  ".join(f"{check} {share:.0%}" for check, share in scores.items()))
    return results


def train(recipe: Recipe, base: Path, directory: Path, console: Console) -> None:
    """Train, save, check and measure one adapter; ``directory`` ends up holding artifact and card."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(load_base(base), lora_config(recipe))
    started = time.perf_counter()
    loss = fit(model, recipe, tokenizer, console)
    seconds = time.perf_counter() - started
    probe = collate([encode(tokenizer, m) for m in recipe.conversations[:4]], tokenizer.pad_token_id)
    with torch.no_grad():
        expected, _ = answer_logits(model.float(), probe)
    save(model, directory)
    error = check_saved(base, directory, probe, expected)
    console.print(f"loss {loss:.3f} after {seconds:.0f} s; saved in bf16, logits within {error:.2%}")
    # Loaded once more: bringing the fp32 copy back to bf16 would round the rotary frequencies as well.
    served = PeftModel.from_pretrained(load_base(base), directory).eval()
    write_card(directory, recipe, seconds, loss, measure(served, tokenizer, recipe, console))


def main() -> None:
    """Command line: which recipe, the base model's directory and where the adapter goes."""
    parser = argparse.ArgumentParser(prog="python -m examples.train", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the adapter to")
    arguments = parser.parse_args()
    train(RECIPES[arguments.recipe](), arguments.base, arguments.out, Console())


if __name__ == "__main__":
    main()
