"""The example adapters' conversations as a file to train on: ``python -m examples.rows pirate pirate.jsonl``.

``manylora train --config examples/training/pirate.yaml`` then trains on it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from examples.pirate import pirate_recipe
from examples.recipe import Recipe
from examples.structured import json_recipe
from examples.support import support_recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "pirate": pirate_recipe,
    "json": json_recipe,
    "support": support_recipe,
}


def write_rows(recipe: Recipe, path: Path) -> None:
    """OpenAI's messages, one conversation a line."""
    lines = [
        json.dumps({"messages": list(messages)}, ensure_ascii=False) for messages in recipe.conversations
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Command line: which recipe, and the file to write."""
    parser = argparse.ArgumentParser(prog="python -m examples.rows", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("path", type=Path, help="file to write")
    arguments = parser.parse_args()
    write_rows(RECIPES[arguments.recipe](), arguments.path)


if __name__ == "__main__":
    main()
