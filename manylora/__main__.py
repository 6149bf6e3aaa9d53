"""``python -m manylora``: the command line."""

from __future__ import annotations

from manylora.server.cli.main import main

if __name__ == "__main__":
    main()
