"""``python -m bench`` is ``python -m bench.run``."""

import typer

from bench.run import main

typer.run(main)
