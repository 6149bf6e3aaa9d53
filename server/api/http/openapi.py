"""The OpenAPI document behind ``/docs``, with examples that run against this very server.

Each route describes its own body and examples in its decorator: ``openapi_extra=documented(...)``. Here is
what spans all routes: the schemas of the bodies, the shape of errors, the keys, and what examples may name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from manylora.server.api.access.scopes import ADMIN, INFER, OPEN, KeyScope
from manylora.server.api.http.body import RequestBody
from manylora.server.names.status import Registered
from manylora.server.service import Service

# What a route's examples may name. Each stands for a name that the server knows when the document is asked
# for; an example that names something the server does not have is left out.
BASE = "{base}"
ADAPTER = "{adapter}"  # the first that writes text
LAST_ADAPTER = "{last adapter}"  # the last that writes text, which may be the first
ADAPTER_OR_BASE = "{adapter or base}"
SECOND_ADAPTER_OR_BASE = "{second adapter or base}"
CLASSIFIER = "{classifier}"
MEMBER = "{member}"  # the first adapter of any kind, or one that could be made
LAST_MEMBER = "{last member}"
DIRECTORY = "{directory}"  # of an adapter, on the server

_NEW_ADAPTER, _NEW_ALIAS = "my-adapter", "my-alias"
_PLACEHOLDER = re.compile(r"\{[a-z ]+\}")

_ERROR_RESPONSE = {
    "description": "What was wrong, in OpenAI's shape.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": _ERROR_RESPONSE, "5XX": _ERROR_RESPONSE}
# What else than one JSON object with 200 routes answer.
BEGUN: dict[int | str, dict[str, Any]] = {202: {"description": "The work goes on."}}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
PUBLISHED: dict[int | str, dict[str, Any]] = {201: {"description": "A new name."}, **BEGUN}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


class RouteDocument(dict[str, Any]):
    """What one route adds to the OpenAPI document: a plain dictionary, and the model of its body."""

    def __init__(self, body: type[RequestBody], content: dict[str, Any], *, required: bool) -> None:
        super().__init__(requestBody={"required": required, "content": content})
        self.body = body


def documented(
    body: type[RequestBody],
    examples: Mapping[str, dict[str, Any]],
    *,
    required: bool = True,
    form: Mapping[str, Any] | None = None,
) -> RouteDocument:
    """Describe a route's body, for its decorator's ``openapi_extra``.

    Args:
        body: the model of the JSON body.
        examples: made by :func:`example`, by name; they may hold placeholders such as :data:`ADAPTER`.
        required: whether the body may not be empty.
        form: the schema of a ``multipart/form-data`` body that may be sent instead.
    """
    reference = {"$ref": f"#/components/schemas/{body.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": reference, "examples": dict(examples)}}
    if form is not None:
        content["multipart/form-data"] = {"schema": form}
    return RouteDocument(body, content, required=required)


def example(summary: str, value: dict[str, Any]) -> dict[str, Any]:
    """One example of a body, with the line that ``/docs`` shows for it."""
    return {"summary": summary, "value": value}


class Application(FastAPI):
    """FastAPI whose OpenAPI document is computed anew each time, so that it names the adapters of now."""

    def __init__(self, service: Service, routers: Iterable[APIRouter], **options: Any) -> None:
        super().__init__(**options, responses=ERROR_RESPONSES)
        self._service = service
        self._bodies: list[type[RequestBody]] = []
        for router in routers:
            self.include_router(router)
            self._bodies += _documented_bodies(router)

    def openapi(self) -> dict[str, Any]:
        """The document for everybody."""
        return self.document(OPEN)

    def document(self, caller: KeyScope, root_path: str = "") -> dict[str, Any]:
        """What FastAPI reads off the routes, completed in place.

        Args:
            caller: who reads it. Adapters are named to those who may list them, aliases and a directory of
                the server to admins.
            root_path: under which a proxy serves the routes.
        """
        self.openapi_schema = None
        document = super().openapi()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(_schemas(self._bodies), Error=_ERROR_SCHEMA)
        config = self._service.config
        tenants = self._service.tenants.any
        hidden = caller < INFER and (bool(config.api_key) or tenants)
        adapters = [] if hidden else self._service.adapters.views.serving()
        roots = config.adapter_root if caller is ADMIN else []
        _fill_body_examples(document, _names(self._service.model_name, adapters, roots))
        if root_path:
            document["servers"] = [{"url": root_path}]
        aliases = self._service.adapters.aliases.list() if caller is ADMIN else []
        _add_name_examples(document, [each.name for each in adapters], [each.name for each in aliases])
        if config.api_key or config.admin_api_key or tenants:
            components["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
            document["security"] = [{"key": []}, {"x-api-key": []}]
        return document


def _documented_bodies(router: APIRouter) -> Iterator[type[RequestBody]]:
    for route in router.routes:
        if isinstance(route, APIRoute) and isinstance(route.openapi_extra, RouteDocument):
            yield route.openapi_extra.body


def _schemas(bodies: Iterable[type[RequestBody]]) -> dict[str, Any]:
    """The JSON schemas of all bodies and of what they consist of, by name."""
    models: list[tuple[type[RequestBody], Any]] = [(body, "validation") for body in bodies]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and description of each route."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _names(base: str, adapters: Sequence[Registered], roots: Sequence[Path]) -> dict[str, str]:
    """What each placeholder stands for now. Those that stand for nothing are left out."""
    writers = [adapter.name for adapter in adapters if adapter.labels is None]
    classifiers = [adapter.name for adapter in adapters if adapter.labels is not None]
    members = [adapter.name for adapter in adapters] or [_NEW_ADAPTER]
    names = {
        BASE: base,
        ADAPTER_OR_BASE: [*writers, base][0],
        SECOND_ADAPTER_OR_BASE: [*writers[1:], base][0],
        MEMBER: members[0],
        LAST_MEMBER: members[-1],
        DIRECTORY: f"{roots[0] if roots else '/adapters'}/{_NEW_ADAPTER}",
    }
    if writers:
        names |= {ADAPTER: writers[0], LAST_ADAPTER: writers[-1]}
    if classifiers:
        names[CLASSIFIER] = classifiers[0]
    return names


def _fill_body_examples(document: dict[str, Any], names: Mapping[str, str]) -> None:
    """Replace the placeholders in all examples of bodies."""
    for _, _, operation in _operations(document):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            if "examples" in media:
                media["examples"] = dict(_filled_examples(media["examples"], names))


def _filled_examples(examples: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name, template in examples.items():
        try:
            yield _filled(name, names), _filled(template, names)
        except KeyError:  # it names something that the server does not have
            continue


def _filled(value: Any, names: Mapping[str, str]) -> Any:
    """``value`` with the placeholders in its texts replaced; KeyError for one that stands for nothing."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: names[found.group()], value)
    if isinstance(value, list):
        return [_filled(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, names) for key, item in value.items()}
    return value


def _add_name_examples(document: dict[str, Any], adapters: Sequence[str], aliases: Sequence[str]) -> None:
    """Give the names in paths ones that are there, or that can be made."""
    for path, method, operation in _operations(document):
        of_aliases = path.startswith("/v1/aliases")
        known, new = (aliases, _NEW_ALIAS) if of_aliases else (adapters, _NEW_ADAPTER)
        for parameter in operation.get("parameters", []):
            if parameter["name"] == "name":
                parameter["example"] = known[0] if known and method != "put" else new
