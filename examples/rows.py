"""The example adapters' data as files.

``python -m examples.rows pirate`` writes pirate.jsonl and pirate-eval.jsonl; ``manylora train --config
examples/training/pirate.yaml`` trains on the one and measures on the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from examples.pirate import pirate_recipe
from examples.recipe import Conversation, Recipe
from examples.structured import json_recipe
from examples.support import support_recipe
from examples.tools import tools_recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "pirate": pirate_recipe,
    "json": json_recipe,
    "support": support_recipe,
    "tools": tools_recipe,
}


def write_rows(recipe: Recipe, directory: Path) -> tuple[Path, Path]:
    """Write what is learned and what is only measured, as OpenAI's messages; the two files."""
    held_out = [item.conversation for item in recipe.held_out]
    return (
        _write(directory / f"{recipe.name}.jsonl", recipe.conversations),
        _write(directory / f"{recipe.name}-eval.jsonl", held_out),
    )


def _write(path: Path, conversations: Iterable[Conversation]) -> Path:
    lines = [json.dumps(conversation.row, ensure_ascii=False) for conversation in conversations]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def main() -> None:
    """Command line: which recipe, and where its files go."""
    parser = argparse.ArgumentParser(prog="python -m examples.rows", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="default: here")
    arguments = parser.parse_args()
    write_rows(RECIPES[arguments.recipe](), arguments.to)


if __name__ == "__main__":
    main()
