"""The losses of several runs in one picture.

``python -m manylora.adapters.training.report.curves out/a out/b --png both.png``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from manylora.adapters.training.report.plots import compared_png
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import read_metrics


def main() -> None:
    """Command line: the output directories of the runs, which name the curves, and the file to write."""
    parser = argparse.ArgumentParser(
        prog="python -m manylora.adapters.training.report.curves", description=__doc__
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="output directory of a run")
    parser.add_argument("--png", type=Path, required=True, metavar="FILE", help="picture to write")
    given = parser.parse_args()
    runs = {path.name: read_metrics(Folder(path).metrics) for path in given.runs}
    empty = [name for name, lines in runs.items() if not lines]
    if empty:
        parser.error(f"no metrics.jsonl in {', '.join(empty)}")
    given.png.write_bytes(compared_png(runs))


if __name__ == "__main__":
    main()
