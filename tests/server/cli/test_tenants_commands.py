"""``manylora tenants`` and ``manylora keys`` against a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manylora.adapters.registry.tenants.records import KEY_PATTERN
from manylora.server.cli.main import app
from manylora.server.cli.tenants.arguments import seconds_of
from manylora.server.client.errors import Unusable
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tenants import ADMIN, bearer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving(tiny_service(model, tmp_path_factory.mktemp("data"), admin_api_key=[ADMIN])) as running:
        yield running


def run(server: Running, line: str, status: int = 0) -> str:
    """What a command prints: on stderr if it fails."""
    env = {"MANYLORA_URL": server.url, "MANYLORA_ADMIN_API_KEY": ADMIN, "COLUMNS": "200"}
    result = CliRunner(env=env).invoke(app, line.split())
    assert result.exit_code == status, result.output
    return result.stderr if status else result.stdout


def test_from_a_tenant_to_the_end_of_its_keys(server: Running) -> None:
    assert run(server, "tenants ls") == ""
    made = run(server, "tenants add acme --adapter acme/* --adapter polite --note plan=gold")
    assert made == "acme: acme/*, polite, and the base model  plan=gold\n"
    assert run(server, "tenants add trial") == "trial: the base model alone\n"
    assert run(server, "tenants set acme --no-base --adapter polite") == "acme: polite  plan=gold\n"
    assert run(server, "tenants set acme --adapter=") == "acme: nothing  plan=gold\n"
    assert run(server, "tenants set acme --base --limit requests_per_minute=5 --note=") == (
        "acme: the base model alone; at most 5 requests per minute\n"
    )
    run(server, "tenants set acme --limit=")
    assert run(server, "tenants set acme --weight 2.5") == "acme: the base model alone, weight 2.5\n"
    run(server, "tenants set acme --weight 1")

    told, key, *rest = run(server, "keys add acme --expires-in 90d").splitlines()
    assert rest == []
    assert re.fullmatch(KEY_PATTERN, key)
    key_id = told.split()[0]
    shown = run(server, "keys ls acme")
    assert shown.startswith(f"{key_id}  {key[:10]}…  infer  since ")
    assert key not in shown
    assert run(server, "tenants show acme").splitlines()[1].strip() == shown.strip()
    as_json = json.loads(run(server, "tenants show acme --json"))
    assert as_json["keys"][0]["expires"] == pytest.approx(as_json["keys"][0]["created"] + 90 * 86400, abs=1)

    with server.http() as http:
        assert http.get("/v1/models", headers=bearer(key)).status_code == 200
        newer = run(server, f"keys rotate acme {key_id} --overlap 1h").splitlines()[1]
        assert http.get("/v1/models", headers=bearer(key)).status_code == 200
        assert run(server, f"keys revoke acme {key_id}") == f"{key_id} is revoked\n"
        assert http.get("/v1/models", headers=bearer(key)).status_code == 401
        assert http.get("/v1/models", headers=bearer(newer)).status_code == 200
        told, key, *_ = run(server, "keys add acme --scope manage --scope infer").splitlines()
        assert told.split()[2] == "infer,manage"
        assert http.get("/v1/adapters", headers=bearer(key)).status_code == 200
        assert run(server, f"keys revoke acme {told.split()[0]} --end") == f"{told.split()[0]} is revoked\n"
        assert http.get("/v1/adapters", headers=bearer(key)).status_code == 401
        assert run(server, "tenants rm acme") == "acme is deleted, its keys revoked\n"
        assert http.get("/v1/models", headers=bearer(newer)).status_code == 401
    assert run(server, "tenants ls") == "trial: the base model alone\n"


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("tenants add a/b", 1, "letters"),
        ("tenants add b --adapter a+b", 1, "adapters"),
        ("tenants add b --note x", 2, "KEY=VALUE"),
        ("tenants set trial", 2, "nothing to change"),
        ("tenants show nobody", 1, "nobody"),
        ("tenants set trial --limit tokens=5", 1, "tokens"),
        ("tenants set trial --limit tokens_per_minute=x", 2, "WHAT=NUMBER"),
        ("keys add nobody", 1, "nobody"),
        ("keys add trial --expires-in soon", 2, "not a time"),
        ("keys revoke trial nothing", 1, "nothing"),
    ],
)
def test_what_can_not_be_done_is_told(server: Running, line: str, status: int, told: str) -> None:
    assert told in run(server, line, status)


def test_times() -> None:
    times = ("0", "90", "90s", "15m", "12h", "30d", None)
    assert [seconds_of(text) for text in times] == [0, 90, 90, 900, 43200, 2_592_000, None]
    for text in ("", "-1", "1.5h", "1w", "1 h", "9" * 13):
        with pytest.raises(Unusable):
            seconds_of(text)
