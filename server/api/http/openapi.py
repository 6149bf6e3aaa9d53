"""The schema behind ``/docs``: request bodies, and examples that run against this very server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from manylora.server.api.admin.adapters import RollbackBody
from manylora.server.api.admin.aliases import AliasBody
from manylora.server.api.admin.compose import ComposeBody
from manylora.server.api.admin.export import ExportBody
from manylora.server.api.admin.lora import LoadBody, UnloadBody
from manylora.server.api.admin.publish import SourceBody
from manylora.server.api.compare.body import CompareBody
from manylora.server.api.generate.classify import ClassifyBody
from manylora.server.api.generate.feedback import FeedbackBody
from manylora.server.api.generate.schemas import ChatBody, CompletionBody
from manylora.server.api.generate.tokenize import DetokenizeBody, TokenizeBody
from manylora.server.api.http.body import RequestBody
from manylora.server.service import Service

Examples = dict[str, dict[str, Any]]

_BODIES: dict[tuple[str, str], type[RequestBody]] = {
    ("/v1/chat/completions", "post"): ChatBody,
    ("/v1/completions", "post"): CompletionBody,
    ("/classify", "post"): ClassifyBody,
    ("/v1/compare", "post"): CompareBody,
    ("/v1/feedback", "post"): FeedbackBody,
    ("/v1/adapters/{name}", "put"): SourceBody,
    ("/v1/adapters/{name}/rollback", "post"): RollbackBody,
    ("/v1/adapters/{name}/compose", "post"): ComposeBody,
    ("/v1/adapters/{name}/export", "post"): ExportBody,
    ("/v1/aliases/{name}", "put"): AliasBody,
    ("/v1/load_lora_adapter", "post"): LoadBody,
    ("/v1/unload_lora_adapter", "post"): UnloadBody,
    ("/tokenize", "post"): TokenizeBody,
    ("/detokenize", "post"): DetokenizeBody,
}
_OPTIONAL = {RollbackBody, ExportBody}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["files"],
        "properties": {
            "files": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": "adapter_config.json, adapter_model.safetensors, …, or one archive of them.",
            },
            "tags": {"type": "array", "items": {"type": "string"}},
        },
    },
}
_ERROR = {
    "description": "What was wrong, in OpenAI's shape.",
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/Error"},
        }
    },
}
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


def complete(schema: dict[str, Any], service: Service) -> dict[str, Any]:
    """Add request bodies, errors and the key scheme to ``schema``, in place, and return it."""
    models = [(model, "validation") for model in _BODIES.values()]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"], Error=_ERROR_SCHEMA)
    for (path, method), model in _BODIES.items():
        schema["paths"][path][method]["requestBody"] = _request_body(model, _examples(path, service))
    schema["paths"]["/v1/adapters/{name}"]["put"]["requestBody"]["content"]["multipart/form-data"] = _FORM
    _name_examples(schema, service)
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"]["4XX"] = _ERROR
            operation["responses"]["5XX"] = _ERROR
    if service.config.api_key or service.config.admin_api_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
    return schema


def _request_body(model: type[RequestBody], examples: Examples) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"application/json": {"schema": reference, "examples": examples}}
    return {"required": model not in _OPTIONAL, "content": content}


def _name_examples(schema: dict[str, Any], service: Service) -> None:
    """Fill in the names in paths with ones that are there, or that can be made."""
    adapters = [adapter.name for adapter in service.adapters.views.serving()]
    aliases = [alias.name for alias in service.adapters.aliases.list()]
    for path, operations in schema["paths"].items():
        known, fresh = (aliases, "my-alias") if path.startswith("/v1/aliases") else (adapters, "my-adapter")
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "name":
                    parameter["example"] = known[0] if known and method != "put" else fresh


def _examples(path: str, service: Service) -> Examples:
    base = service.model_name
    adapters = [adapter.name for adapter in service.adapters.views.serving() if adapter.labels is None]
    if path == "/v1/chat/completions":
        return _chat_examples(base, adapters)
    if path == "/v1/completions":
        return _completion_examples(base)
    if path == "/classify":
        return _classify_examples([a.name for a in service.adapters.views.serving() if a.labels is not None])
    if path == "/v1/compare":
        return _compare_examples(base, adapters)
    if path.startswith("/v1/aliases"):
        return _alias_examples(base, adapters)
    return _other_examples(service)[path]


def _chat_examples(base: str, adapters: list[str]) -> Examples:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    shared: dict[str, Any] = {"messages": messages, "max_tokens": 64, "temperature": 0}
    examples = {
        "base": _example("The base model", {"model": base, **shared}),
        "stream": _example(
            "A stream",
            {"model": base, **shared, "stream": True, "stream_options": {"include_usage": True}},
        ),
    }
    if adapters:
        first, last = adapters[0], adapters[-1]
        mix = [{"name": first, "weight": 0.7}, {"name": last, "weight": 0.3}]
        examples["adapter"] = _example("An adapter", {"model": first, **shared})
        examples["mix"] = _example("A mix of adapters", {"model": f"{first}*0.7+{last}*0.3", **shared})
        examples["mix as JSON"] = _example("The same mix", {"model": base, "adapters": mix, **shared})
    return examples


def _completion_examples(base: str) -> Examples:
    text = {"model": base, "prompt": "Once upon a time", "max_tokens": 32}
    return {
        "text": _example("Continue a text", text),
        "score": _example(
            "Log-probabilities of a text", {**text, "max_tokens": 0, "echo": True, "logprobs": 1}
        ),
    }


def _classify_examples(classifiers: list[str]) -> Examples:
    texts = ["Great service, thank you!", "It broke after a day."]
    return {name: _example(f"With {name}", {"model": name, "input": texts}) for name in classifiers[:1]}


def _compare_examples(base: str, adapters: list[str]) -> Examples:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked = {"targets": [base, *(adapters[:1] or [base])], "messages": messages, "max_tokens": 32}
    return {"base and adapter": _example("The base model and an adapter", asked)}


def _other_examples(service: Service) -> dict[str, Examples]:
    roots = service.config.adapter_root
    directory = f"{roots[0]}/my-adapter" if roots else "/adapters/my-adapter"
    load = {"lora_name": "my-adapter", "lora_path": directory}
    source = {"source": directory, "tags": ["tried"]}
    names = [adapter.name for adapter in service.adapters.views.serving()] or ["my-adapter"]
    halves = [{"name": names[0], "weight": 0.5}, {"name": names[-1], "weight": 0.5}]
    return {
        "/v1/feedback": {"thumb": _example("Thumbs up", {"response_id": "chatcmpl-…", "score": 1})},
        "/v1/adapters/{name}": {"directory": _example("From a directory of the server", source)},
        "/v1/adapters/{name}/rollback": {"before": _example("The one before", {})},
        "/v1/adapters/{name}/compose": {"halves": _example("Half and half", {"members": halves})},
        "/v1/adapters/{name}/export": {"bf16": _example("In bfloat16", {"dtype": "bf16"})},
        "/v1/load_lora_adapter": {"directory": _example("From a directory", load)},
        "/v1/unload_lora_adapter": {"name": _example("By name", {"lora_name": "my-adapter"})},
        "/tokenize": {"text": _example("A text", {"prompt": "Hello"})},
        "/detokenize": {"ids": _example("Some ids", {"tokens": [1, 2, 3]})},
    }


def _alias_examples(base: str, adapters: list[str]) -> Examples:
    names = [*adapters[:2], base][:2]  # where there are two: the parts of a split differ
    examples = {"target": _example("Another name for one", {"target": names[0]})}
    if len(names) > 1:
        split = [{"target": names[0], "share": 0.9}, {"target": names[1], "share": 0.1}]
        examples["split"] = _example("A tenth of the users get another", {"split": split})
    return examples


def _example(summary: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "value": value}


class Application(FastAPI):
    """FastAPI with our schema. Computed when asked for, so that it names the adapters of the moment."""

    def openapi(self) -> dict[str, Any]:
        self.openapi_schema = None
        return complete(super().openapi(), self.state.service)
