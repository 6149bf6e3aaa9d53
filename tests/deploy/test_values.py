"""What schemas leave open and Kubernetes refuses all the same: names, labels, quantities and ports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.crd_check import EVERYTHING_ON
from tests.support.kube_objects import EXTENDED, OVERLAYS, Manifest, built, chart

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")
PORT = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")


def found(value: Any, field: str) -> Iterator[Any]:
    """Every value of a field of that name, at any depth."""
    if isinstance(value, dict):
        if field in value:
            yield value[field]
        for each in value.values():
            yield from found(each, field)
    elif isinstance(value, list):
        for each in value:
            yield from found(each, field)


def complaints(objects: tuple[Manifest, ...] | list[Manifest]) -> Iterator[str]:
    for each in objects:
        name = each["metadata"]["name"]
        if not (SERVICE if each["kind"] == "Service" else NAME).fullmatch(name):
            yield f"name {name}"
        for labels in (*found(each, "labels"), *found(each, "matchLabels")):
            yield from (f"label {key}" for key in labels if not LABEL.fullmatch(key))
            yield from (f"value {value}" for value in labels.values() if not LABEL_VALUE.fullmatch(value))
        for quantities in (*found(each, "requests"), *found(each, "limits")):
            yield from (f"quantity {value}" for value in quantities.values() if not QUANTITY.fullmatch(value))
        yield from (f"size {value}" for value in found(each, "sizeLimit") if not QUANTITY.fullmatch(value))
        for ports in found(each, "ports"):
            names = [port["name"] for port in ports if "name" in port]
            yield from (f"port {name}" for name in names if not PORT.fullmatch(name))
            if len(set(names)) < len(names):
                yield f"ports {names}"
        for reference in found(each, "secretKeyRef"):
            if not (SECRET_KEY.fullmatch(reference["key"]) and NAME.fullmatch(reference["name"])):
                yield f"secret {reference}"
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    yield from (f"twice {name}" for name in set(names) if names.count(name) > 1)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_have_values_that_are_taken(overlay: str) -> None:
    assert list(complaints(built(overlay))) == []


@pytest.mark.parametrize("release", ["manylora", "a" * 53, "1.2"])
def test_the_chart_has_values_that_are_taken(release: str) -> None:
    assert list(complaints(chart({**EVERYTHING_ON, "gpus": 2}, release))) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"metadata": {"name": "a_b"}},
        {"metadata": {"name": "a", "labels": {"a/b/c": "d"}}},
        {"metadata": {"name": "a", "labels": {"a": "with space"}}},
        {"metadata": {"name": "a"}, "spec": {"requests": {"memory": "4 GB"}}},
        {"metadata": {"name": "a"}, "spec": {"ports": [{"name": "more-than-fifteen-letters"}]}},
        {"metadata": {"name": "a"}, "spec": {"ports": [{"name": "b"}, {"name": "b"}]}},
        {"metadata": {"name": "a"}, "spec": {"env": [{"secretKeyRef": {"name": "a", "key": "b/c"}}]}},
    ],
)
def test_a_value_that_is_refused_is_found(broken: Manifest) -> None:
    assert len(list(complaints([{"kind": "Deployment", **broken}]))) == 1


def test_what_stands_twice_is_found() -> None:
    (first, *_) = built(EXTENDED)
    assert len(list(complaints([first, first]))) == 1
