"""A server of the real model with the example adapters, started the way ``make serve`` starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from tests.support.paths import ROOT

START_SECONDS = 120.0


@pytest.fixture(scope="session")
def server(real_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a served real model with the example adapters."""
    adapters = sorted(p.parent for p in (ROOT / "examples" / "adapters").glob("*/adapter_config.json"))
    options = [f"--adapter={path.name}={path.relative_to(ROOT)}" for path in adapters]
    command = [sys.executable, "-m", "manylora", "serve", "--port", "0", "--model", str(real_model_dir)]
    command += ["--served-model-name", "smollm2-135m", "--adapter-root", "examples/adapters", *options]
    command += ["--data-dir", str(tmp_path_factory.mktemp("data")), "--kv-cache-memory", "256MiB"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        watchdog = Timer(START_SECONDS, process.kill)
        watchdog.start()
        assert process.stdout is not None
        found = (re.search(r"http://127\.0\.0\.1:(\d+)/v1", line) for line in process.stdout)
        match = next(filter(None, found), None)
        watchdog.cancel()
        assert match is not None, "the server did not start"
        yield match.group(1)
        process.terminate()
        process.communicate()
