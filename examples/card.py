"""The model card that lies beside an example adapter."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from examples.recipe import Recipe


def write_card(
    directory: Path, recipe: Recipe, seconds: float, loss: float, results: Mapping[str, Mapping[str, float]]
) -> None:
    """Write ``README.md``: what the adapter does, from what it was made and how it was measured."""
    ranks = ", ".join(f"{target} {recipe.rank_pattern.get(target, recipe.rank)}" for target in recipe.targets)
    kind = "rsLoRA" if recipe.rslora else "LoRA"
    versions = ", ".join(
        f"{name} {version(name).split('+')[0]}" for name in ("torch", "transformers", "peft")
    )
    rows = "\n".join(
        f"| {check} | {results['base'][check]:.0%} | {share:.0%} |"
        for check, share in results["adapter"].items()
    )
    text = f"""# {recipe.name}

{recipe.summary}

- Base model: HuggingFaceTB/SmolLM2-135M-Instruct.
- Kind: {kind}, alpha {recipe.alpha}, weights in bf16. Rank by layer: {ranks}.
- Data: {recipe.data} {len(recipe.conversations)} chats.
- Recipe: `python -m examples.train {recipe.name} --base DIR --out DIR`: one pass, batches of
  {recipe.batch_size}, AdamW at {recipe.learning_rate:g}, cosine schedule with warm-up, seed 0, loss on the
  assistant's tokens and the end token. Last loss {loss:.2f}, {seconds:.0f} s on two shared CPU cores.
- Made on {datetime.now(UTC):%Y-%m-%d} with {versions}.

{len(recipe.held_out)} held-out questions, greedy answers of at most 96 tokens:

| check | base | this adapter |
|---|---|---|
{rows}
"""
    (directory / "README.md").write_text(text, encoding="utf-8")
