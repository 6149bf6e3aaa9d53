"""Writes ``docs/configuration.md`` from :class:`manylora.server.options.settings.Settings`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.fields import FieldInfo

from manylora.adapters.options.option import Option, default_text
from manylora.adapters.options.reference_tables import flag_cell, option_tables
from manylora.server.options.settings import CONFIG_VARIABLE, Settings
from manylora.server.options.types import ENV_PREFIX

_INTRODUCTION = f"""\
# Configuration

<!-- Written by `make docs` from server/options. -->

Every option of `manylora serve` can be given in four places. A flag beats its environment variable,
which beats the YAML file, which beats the default.

- **Flag**: `--max-num-seqs 64`. Repeatable flags are given once per value: `--adapter a=./a --adapter b=./b`.
- **Environment variable**: `{ENV_PREFIX}MAX_NUM_SEQS=64`. Lists are separated by commas
  (`{ENV_PREFIX}API_KEY=key1,key2`, `{ENV_PREFIX}ADAPTER=a=./a,b=./b`) or written as JSON. An empty variable
  counts as not set.
- **YAML file**, named by `--config FILE` or `{CONFIG_VARIABLE}`:

  ```yaml
  model: smollm2-135m
  max_num_seqs: 64
  kv_cache_memory: 2GiB
  adapter_root: [/srv/adapters]
  adapter:
    pirate: /srv/adapters/pirate
  ```

An unknown key, in the file or among the `{ENV_PREFIX}*` variables, is refused with the name of the nearest
option. A list or mapping replaces the one from a place that ranks lower; nothing is merged. Relative
paths start at the working directory. Sizes are numbers of bytes or have a unit: `512MiB` and `2GiB`
(powers of 1024), `1.5GB` (powers of 1000). Sizes and lengths that default to auto accept `auto`.

Give API keys in a variable or the file rather than as a flag: other users of the machine can read a
process's command line. Keys are never printed or logged.
"""


def page() -> str:
    """The page ``docs/configuration.md``, in Markdown."""
    columns = ("Flag", "Variable", "YAML key", "Default", "Meaning")
    return _INTRODUCTION + option_tables(Settings, columns, _cells)


def _cells(name: str, field: FieldInfo, option: Option) -> Sequence[str]:
    default = default_text(field)
    shown = "" if default is None else default if field.default is None else f"`{default}`"
    meaning = f"{option.meaning} Repeatable." if option.repeatable else option.meaning
    return flag_cell(name, option), f"`{ENV_PREFIX}{name.upper()}`", f"`{name}`", shown, meaning


if __name__ == "__main__":
    print(page(), end="")
