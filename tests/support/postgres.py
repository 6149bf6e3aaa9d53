"""A real PostgreSQL for the tests, from the binaries on this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def binaries() -> Path | None:
    """The directory of ``initdb`` and ``pg_ctl``, of the newest version installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve())
    return next((p.parent for p in reversed(found) if (p.parent / "pg_ctl").exists()), None)


@contextmanager
def running(binary: Path) -> Iterator[str]:
    """A server with an empty database on a free port of the loopback; its URL without a database."""
    home = Path(tempfile.mkdtemp(prefix="manylora-pg-"))  # not in tmp_path, which others can't enter
    try:
        _own(home)
        data, port = home / "data", _free_port()
        _run(binary / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c fsync=off -c max_connections=60"
        _run(binary / "pg_ctl", "-D", data, "-l", home / "log", "-o", options, "-w", "-t", "60", "start")
        try:
            yield f"postgresql://tester:hush-hush@127.0.0.1:{port}"
        finally:
            _run(binary / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    """Whom to run the server as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def _own(home: Path) -> None:
    user = _user()
    if user is not None:
        os.chown(home, user.pw_uid, user.pw_gid)


def _run(*command: object) -> None:
    user = _user()
    as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}
    done = subprocess.run(  # type: ignore[call-overload]  # the keywords depend on who runs this
        [str(part) for part in command],
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if "initdb" in str(command[0]) else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        **as_user,
    )
    assert done.returncode == 0, done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
