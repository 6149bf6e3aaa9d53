"""Writes ``docs/configuration.md`` from :class:`manylora.server.options.settings.Settings`."""

from __future__ import annotations

from collections.abc import Sequence

from manylora.adapters.options.tables import option_tables
from manylora.server.options.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings, default_text, flag_of

_INTRODUCTION = f"""\
# Configuration

<!-- Written by `make docs` from server/options/settings.py. -->

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
    """The whole page, in Markdown."""
    head = ("Flag", "Variable", "YAML key", "Default", "Meaning")
    return _INTRODUCTION + option_tables(head, map(_row, Settings.model_fields))


def _row(name: str) -> tuple[str, Sequence[str]]:
    flag = flag_of(Settings.model_fields[name])
    spelled = f"`--{name.replace('_', '-')} {flag.metavar}".rstrip() + "`"
    if flag.off is not None:
        spelled += f", `{flag.off}`"
    default = default_text(name)
    shown = "" if default is None else default if flag.default == default else f"`{default}`"
    meaning = f"{flag.meaning} Repeatable." if flag.repeatable else flag.meaning
    return flag.panel, (spelled, f"`{ENV_PREFIX}{name.upper()}`", f"`{name}`", shown, meaning)


if __name__ == "__main__":
    print(page(), end="")
