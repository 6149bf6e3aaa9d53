"""The example adapters' data and configurations, as the trainer reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.training.config_load import load_config
from examples.rows import RECIPES, write_rows
from tests.training.making import prepared

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", RECIPES)
def test_rows_and_configuration(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]()
    path = tmp_path / f"{name}.jsonl"
    write_rows(recipe, path)
    config = load_config({}, ROOT / "examples" / "training" / f"{name}.yaml")
    data = prepared(path, max_length=4096)
    assert len(data.train.rows) == len(recipe.conversations)
    assert (config.lora_r, config.alpha, config.use_rslora) == (recipe.rank, recipe.alpha, recipe.rslora)
    assert config.rank_pattern == dict(recipe.rank_pattern)
    assert (config.learning_rate, config.batch_size) == (recipe.learning_rate, recipe.batch_size)
    assert config.train_path.name == path.name
