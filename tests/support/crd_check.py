"""``python -m tests.support.crd_check FILE…`` compares the manifests with whole CRDs.

``tests/deploy/crds`` describes the fields that are used here alone. Given the files of CRDs, as the projects
publish them or ``kubectl get crd --output yaml`` prints them, this says where those descriptions differ from
them, and what they have against the manifests. Prints nothing else; exits with 1 if there is anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube_objects import OVERLAYS, Manifest, built, chart
from tests.support.kube_schemas import CRDS, VERSIONS, closed, differences, found

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some are of several megabytes
EVERYTHING_ON = {
    "metrics.podMonitor.enabled": True,
    "inferencePool.enabled": True,
    "training.mode": "external",
}


def manifests() -> list[Manifest]:
    """Everything that is rendered here."""
    overlays = [each for overlay in OVERLAYS for each in built(overlay)]
    return [*overlays, *chart(EVERYTHING_ON)]


def crds(files: list[Path]) -> Iterator[tuple[str, str, Any]]:
    """Version, kind and schema of each that the files have."""
    for file in files:
        for read in yaml.load_all(file.read_text(), LOADER):
            for each in read["items"] if read["kind"] == "List" else [read]:
                spec = each["spec"]
                for version in spec["versions"]:
                    name = f"{spec['group']}/{version['name']}"
                    yield name, spec["names"]["kind"], version["schema"]["openAPIV3Schema"]


def complaints(files: list[Path]) -> Iterator[str]:
    """One line each. Says as well which descriptions there was no CRD for."""
    described = {
        (read["apiVersion"], read["kind"]): read["spec"]
        for read in (yaml.safe_load(file.read_text()) for file in sorted(CRDS.glob("*.yaml")))
        if "spec" in read
    }
    rendered = manifests()
    for api_version, kind, whole in crds(files):
        ours = described.pop((api_version, kind), None)
        if ours is None:
            continue
        for difference in differences(ours, whole["properties"]["spec"]):
            yield f"{kind}: {difference}"
        schema = closed({**whole, "properties": {**whole["properties"], "metadata": {}}})
        for each in rendered:
            if (each["apiVersion"], each["kind"]) == (api_version, kind):
                yield from (f"{kind}: {problem}" for problem in found(schema, each, VERSIONS[-1]))
    yield from (f"{kind}: no CRD was given" for _, kind in described)


if __name__ == "__main__":
    lines = list(complaints([Path(argument) for argument in sys.argv[1:]]))
    print("\n".join(lines))
    sys.exit(bool(lines))
