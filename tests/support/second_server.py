"""A second server's adapter manager, in a process of its own: commands come in by line, answers go out."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from manylora.adapters.errors import AdapterError
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness


async def obey(setup: ManagerSetup, command: str, *words: str) -> Any:
    """Do what one line says."""
    if command == "load":
        return (await setup.manager.admin.load(words[0], Path(words[1]), replace=True)).digest
    if command == "ask":
        try:
            held = await setup.hold(words[0])
        except AdapterError as error:
            return type(error).__name__
        held.release()
        return held.served_model
    if command == "delete":
        return (await setup.manager.deletions.delete(words[0])).drained
    if command == "alias":
        return (await setup.manager.aliases.put(words[0], [(words[1], 1.0)])).name
    assert command == "rollback"
    return (await setup.manager.admin.rollback(words[0])).digest


async def main(model: Path, root: Path, url: str) -> None:
    """Serve until the input ends."""
    with open_manager_setup(EngineHarness(model), root, room=2, url=url) as setup:
        await setup.manager.start()
        print(json.dumps("ready"), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await obey(setup, *line.split())), flush=True)
        await setup.manager.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
