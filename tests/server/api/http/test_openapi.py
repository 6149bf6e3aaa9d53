"""The OpenAPI document: examples name what the server has, and errors have the shape they are sent in."""

from __future__ import annotations

import json
from typing import Any

from tests.support.running_server import Running


def operations(server: Running) -> dict[tuple[str, str], Any]:
    """Every route's description, by method and path."""
    with server.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    return {(method, path): found for path, methods in paths.items() for method, found in methods.items()}


def examples(operation: Any) -> Any:
    return operation["requestBody"]["content"]["application/json"]["examples"]


def test_examples_name_what_there_is(server: Running) -> None:
    found = operations(server)
    chat = examples(found["post", "/v1/chat/completions"])
    assert chat["base"]["value"]["model"] == "tiny"
    assert chat["adapter"]["value"]["model"] == "alpha"
    assert chat["mix"]["value"]["model"] == "alpha*0.7+gamma*0.3"
    assert [entry["name"] for entry in chat["mix as JSON"]["value"]["adapters"]] == ["alpha", "gamma"]
    split = examples(found["put", "/v1/aliases/{name}"])["split"]["value"]["split"]
    assert [arm["target"] for arm in split] == ["alpha", "beta"]


def test_examples_that_name_what_is_missing_are_left_out(server: Running) -> None:
    assert examples(operations(server)["post", "/classify"]) == {}


def test_no_placeholder_is_left(server: Running) -> None:
    for operation in operations(server).values():
        if "application/json" in operation.get("requestBody", {}).get("content", {}):
            text = json.dumps(examples(operation))
            assert "{base}" not in text
            assert "adapter}" not in text
            assert "member}" not in text


def test_every_route_describes_the_errors_that_it_sends(server: Running) -> None:
    for operation in operations(server).values():
        for status in ("4XX", "5XX"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Error"}
        assert "422" not in operation["responses"]  # FastAPI's own shape, which is never sent
