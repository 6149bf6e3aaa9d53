"""Client libraries against a running tiny server, each in a process of its own; run by ``make clients``.

The libraries are in environments of their own: what they depend on is theirs to choose. Arguments: the
folders whose scripts are run, each with its Python (``agent_clients=build/agent-clients/bin/python``), or for
Node with the folder whose node_modules has the libraries.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import tool_templates
from tests.support.adapters import write_adapter
from tests.support.running_server import serving, tiny_service
from tests.support.tiny_models import byte_tokenizer, tiny_model

HERE = Path(__file__).parent
ADAPTERS = ("alpha", "beta")
MIX = "alpha*0.5+beta*0.5"
PATIENCE = 180.0  # seconds for one library: some take long to import
NODE = "node_clients"


def main(*environments: str) -> int:
    """Run every client of those environments; the number of those that failed."""
    commands = [command for each in environments for command in _commands(*each.split("=", 1))]
    with TemporaryDirectory(prefix="manylora-clients-") as directory:
        root = Path(directory)
        model = tiny_model(root / "model", max_position_embeddings=8192)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = tool_templates.HERMES  # so that the random model can be held to calls
        tokenizer.save_pretrained(model)
        adapters = {
            name: write_adapter(root / name, model, targets="all-linear", seed=seed)
            for seed, name in enumerate(ADAPTERS)
        }
        service = tiny_service(model, root / "data", adapter=adapters)
        with serving(service) as server:
            url = f"{server.url}/v1"
            failed = [command[-1] for command in commands if not _passes([*command, url, ADAPTERS[0], MIX])]
            server.wait_until_idle()
    return len(failed)


def _commands(folder: str, environment: str) -> list[list[str]]:
    """What runs the scripts of ``folder``."""
    if folder == NODE:  # scripts for Node are copied beside the node_modules that they import from
        return [["node", shutil.copy(script, environment)] for script in sorted((HERE / NODE).glob("*.mjs"))]
    return [[environment, str(script)] for script in sorted((HERE / folder).glob("*.py"))]


def _passes(command: list[str]) -> bool:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    print(f"{Path(command[1]).stem:<20} {'passes' if done.returncode == 0 else 'FAILS'}", flush=True)
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
