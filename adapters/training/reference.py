"""Writes ``docs/training-options.md`` from :class:`manylora.adapters.training.config.TrainConfig`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.fields import FieldInfo

from manylora.adapters.options.option import Option, default_text
from manylora.adapters.options.reference_tables import flag_cell, option_tables
from manylora.adapters.training.config import TrainConfig

_INTRODUCTION = """\
# Options of the trainer

<!-- Written by `make docs` from adapters/training/config.py. -->

Every option of `manylora train` is a flag and a key of the YAML file that `--config FILE` names; a flag
beats the file. An unknown key is refused with the name of the nearest option. Repeatable flags are given
once a value, or once with commas: `--target-modules q_proj,v_proj`. How training works is told in
[training.md](training.md).

```yaml
base_model: smollm2-135m
train_path: support.jsonl
output_dir: out/support
lora_r: 8
learning_rate: 1e-3
rank_pattern:
  down_proj: 16
```
"""


def page() -> str:
    """The page ``docs/training-options.md``, in Markdown."""
    columns = ("Flag and key", "Default", "Meaning", "Why this default")
    return _INTRODUCTION + option_tables(TrainConfig, columns, _cells)


def _cells(name: str, field: FieldInfo, option: Option) -> Sequence[str]:
    return flag_cell(name, option), default_text(field) or "none", option.meaning, option.why


if __name__ == "__main__":
    print(page(), end="")
