"""What Kubernetes and its extensions accept, as JSON schemas that refuse every field they do not know."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.support.kube_tools import FOLDER, missing
from tests.support.paths import ROOT

VERSIONS = ("1.29.0", "1.37.0")  # the oldest that the chart allows, and the newest that the schemas have
CRDS = ROOT / "tests" / "deploy" / "crds"
Schema = dict[str, Any]

_DEFINITIONS = "/api/_definitions.json"  # as the schemas refer to it
_META = {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}


def problems(manifest: Mapping[str, Any], version: str) -> list[str]:
    """What that version of Kubernetes, or the extension whose kind it is, has against an object."""
    schema = custom_schemas().get((manifest["apiVersion"], manifest["kind"]))
    if schema is None:
        schema = _own(version, manifest["apiVersion"], manifest["kind"])
    return found(schema, manifest, version)


def found(schema: Schema, value: Any, version: str) -> list[str]:
    """What a schema has against a value; it may refer to what that version of Kubernetes defines."""
    validator = Draft202012Validator(schema, registry=_registry(version), format_checker=FormatChecker())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


@cache
def custom_schemas() -> dict[tuple[str, str], Schema]:
    """The schemas of objects of the kinds that ``tests/deploy/crds`` describes, by version and kind."""
    schemas = {}
    for file in sorted(CRDS.glob("*.yaml")):
        read = yaml.safe_load(file.read_text())
        key = (read["apiVersion"], read["kind"])
        rest = {"metadata": _META, "spec": read["spec"]} if "spec" in read else read["fields"]["properties"]
        schemas[key] = closed(
            {
                "type": "object",
                "required": ["metadata", "spec"] if "spec" in read else read["fields"]["required"],
                "properties": {"apiVersion": {"const": key[0]}, "kind": {"const": key[1]}, **rest},
            }
        )
    return schemas


def closed(schema: Any) -> Any:
    """The same schema, refusing fields that it does not name, as ``kubectl`` does by default."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "kubernetes" in schema:
        return {"$ref": f"{_DEFINITIONS}#/$defs/{schema['kubernetes']}"}
    result = {key: closed(value) for key, value in schema.items()}
    properties = schema.get("properties")
    named = isinstance(properties, dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def differences(ours: Schema, theirs: Schema, path: str = "spec") -> Iterator[str]:
    """Where a schema that names some fields of another says something else about them.

    Ours may refuse more: patterns and enumerations may be narrower.
    """
    if "kubernetes" in ours or theirs.get("x-kubernetes-preserve-unknown-fields"):
        return
    if ours.get("type") != theirs.get("type"):
        yield f"{path}: {ours.get('type')}, not {theirs.get('type')}"
    if "enum" in theirs and not set(ours.get("enum", [])) <= set(theirs["enum"]):
        yield f"{path}: {ours['enum']}, not {theirs['enum']}"
    for name in set(theirs.get("required", [])) - set(ours.get("required", [])):
        yield f"{path}.{name}: is required"
    for name, schema in ours.get("properties", {}).items():
        if name not in theirs.get("properties", {}):
            yield f"{path}.{name}: there is no such field"
        else:
            yield from differences(schema, theirs["properties"][name], f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(ours.get(inner), dict):
            yield from differences(ours[inner], theirs.get(inner, {}), f"{path}[]")


@cache
def _own(version: str, api_version: str, kind: str) -> Schema:
    group, _, its_version = api_version.rpartition("/")
    name = "-".join([kind.lower(), *([group.split(".")[0]] if group else []), its_version])
    schema: Schema = json.loads(_file(version, f"{name}.json"))
    return schema


@cache
def _registry(version: str) -> Registry[Any]:
    contents = json.loads(_file(version, "_definitions.json"))
    resource: Resource[Any] = Resource.from_contents(contents, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource(_DEFINITIONS, resource)
    return registry.crawl()


def _file(version: str, name: str) -> bytes:
    return _wheel().read(f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/{name}")


@cache
def _wheel() -> zipfile.ZipFile:
    wheels = sorted(FOLDER.glob("kubernetes_validate-*.whl"))
    if not wheels:
        missing("kubernetes-validate")
    return zipfile.ZipFile(wheels[0])  # its list of 17,000 files is read once
