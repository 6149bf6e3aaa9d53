"""One process of a run that ``accelerate launch`` or ``torchrun`` starts, from a YAML file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from manylora.adapters.errors import AdapterError
from manylora.adapters.training.config_load import load_config
from manylora.adapters.training.quiet import quiet_libraries


def main() -> int:
    """Train as the YAML file says; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m manylora.adapters.training.run.worker", description=__doc__
    )
    parser.add_argument("config", type=Path, help="YAML file with the options of manylora train")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    quiet_libraries()
    from torch import distributed  # noqa: PLC0415  (after the arguments are known to be good)

    from manylora.adapters.training.run.train import train  # noqa: PLC0415

    try:
        train(
            load_config({}, given.config),
            resume=given.resume,
            overwrite=given.overwrite,
            console=Console(stderr=True),
        )
    except AdapterError as error:
        print(f"manylora: {error}", file=sys.stderr)
        return 2
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
