"""Permissions of checkpoints, as OpenAI's client gives them: the sharing of adapters between tenants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.tenants import ADMIN, bearer, chat, manager, publish, tenant_key

pytestmark = pytest.mark.slow

MODEL = "ft:tiny:acme:support:a1b2"
CHECKPOINT = f"{MODEL}:ckpt-step-88"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    service = service_of(tmp_path_factory.mktemp("data"), model, adapters, admin_api_key=[ADMIN])
    with serving(service) as server:
        yield server


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    with running.http() as client:
        yield client


@pytest.fixture
def acme(running: Running, http: httpx.Client, adapters: Path) -> Iterator[Any]:
    """Acme's permissions, which has a fine-tuned model and a checkpoint of it."""
    key = manager(http, "acme")
    for name in (MODEL, CHECKPOINT):
        assert publish(http, key, name, adapters / "alpha").status_code == 201
    token = key["authorization"].removeprefix("Bearer ")
    yield running.client(api_key=token).fine_tuning.checkpoints.permissions
    http.delete("/v1/tenants/acme?adapters=true", headers=bearer(ADMIN))


@pytest.fixture
def globex(http: httpx.Client) -> Iterator[dict[str, str]]:
    yield bearer(tenant_key(http, "globex"))
    http.delete("/v1/tenants/globex", headers=bearer(ADMIN))


def asks(http: httpx.Client, key: dict[str, str], model: str) -> int:
    return http.post("/v1/chat/completions", json=chat(model), headers=key).status_code


def test_who_is_given_a_checkpoint_may_use_it_and_no_more_after(
    acme: Any, http: httpx.Client, globex: dict[str, str]
) -> None:
    assert asks(http, globex, f"acme/{CHECKPOINT}") == 404
    (made,) = acme.create(CHECKPOINT, project_ids=["globex"]).data
    assert (made.object, made.project_id) == ("checkpoint.permission", "globex")
    assert asks(http, globex, f"acme/{CHECKPOINT}") == 200
    assert asks(http, globex, f"acme/{MODEL}") == 404
    assert [each.id for each in acme.list(CHECKPOINT).data] == [made.id]
    assert list(acme.list(MODEL)) == []
    shared = http.get(f"/v1/adapters/acme/{CHECKPOINT}", headers=bearer(ADMIN)).json()["shared_with"]
    assert shared == ["globex"]
    gone = acme.delete(made.id, fine_tuned_model_checkpoint=CHECKPOINT)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "checkpoint.permission")
    assert asks(http, globex, f"acme/{CHECKPOINT}") == 404
    with pytest.raises(openai.NotFoundError):
        acme.delete(made.id, fine_tuned_model_checkpoint=CHECKPOINT)


def test_permissions_are_listed_in_pages(acme: Any) -> None:
    names = [f"tenant-{n}" for n in range(5)]
    first = acme.create(MODEL, project_ids=names[:3]).data
    acme.create(MODEL, project_ids=names[2:])  # one has it already
    listed = list(acme.list(MODEL, order="ascending", limit=2))  # the client asks for all pages
    assert sorted(each.project_id for each in listed) == names
    assert [each.id for each in acme.list(MODEL)] == [each.id for each in listed][::-1]
    kept = {each.id: each.created_at for each in listed}
    assert all(kept[each.id] == each.created_at for each in first)
    (one,) = acme.list(MODEL, project_id="tenant-3").data
    assert one.project_id == "tenant-3"
    with pytest.warns(DeprecationWarning, match="paginated"):
        page = acme.retrieve(MODEL, limit=4)
    assert page.has_more
    assert page.last_id == page.data[-1].id
    with pytest.raises(openai.BadRequestError):
        acme.list(MODEL, after="cp_none")


def test_what_can_not_be_is_refused(acme: Any, http: httpx.Client, globex: dict[str, str]) -> None:
    for ids in ([], ["a b"], ["../x"], ["x"] * 257, [f"t{n}" for n in range(257)]):
        with pytest.raises(openai.BadRequestError) as refused:
            acme.create(MODEL, project_ids=ids)
        assert refused.value.param is not None
        assert refused.value.param.startswith("project_ids")
    acme.create(MODEL, project_ids=[f"t{n}" for n in range(200)])
    with pytest.raises(openai.BadRequestError, match="256"):
        acme.create(MODEL, project_ids=[f"u{n}" for n in range(57)])
    assert len(list(acme.list(MODEL, limit=100))) == 200
    with pytest.raises(openai.NotFoundError):
        acme.create("ft:tiny:acme::none", project_ids=["globex"])
    with pytest.raises(openai.NotFoundError):
        acme.list(f"globex/{MODEL}")
    told = http.get(f"/v1/fine_tuning/checkpoints/acme/{MODEL}/permissions", headers=globex)
    assert told.status_code == 403  # a key that asks for answers does not manage


def test_a_deleted_tenant_leaves_no_permission_to_the_next_of_its_name(acme: Any, http: httpx.Client) -> None:
    tenant_key(http, "initech")
    acme.create(MODEL, project_ids=["initech", "globex"])
    http.delete("/v1/tenants/initech", headers=bearer(ADMIN))
    assert [each.project_id for each in acme.list(MODEL).data] == ["globex"]
