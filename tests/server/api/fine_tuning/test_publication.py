"""What becomes of a job that was trained: its model answers, to those whose it is, or it fails."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import Need
from manylora.server.jobs import publication, tuning
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.tenants import ADMIN, answer, bearer, manager, models
from tests.support.tuning import ROWS, as_trained, packed
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    service = service_of(data, model, adapters, admin_api_key=[ADMIN], training="external")
    with serving(service) as made:
        yield made


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    with running.http() as client:
        yield client


def begin(http: httpx.Client, key: dict[str, str], **fields: Any) -> dict[str, Any]:
    form = {"file": ("rows.jsonl", packed(ROWS))}
    file = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}, headers=key).json()["id"]
    made = http.post(
        "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file, **fields}, headers=key
    )
    assert made.status_code == 200, made.text
    job: dict[str, Any] = made.json()
    return job


def train(running: Running, job: str, made: Path, checkpoint: Path) -> None:
    """Do as a worker that has trained ``job``, with adapters that are there already."""
    lines = [{"kind": "train", "step": step, "seconds": 1, "loss": 1 / step} for step in (1, 2, 3, 4)]
    as_trained(running, job, made, checkpoint, lines)


def ended(http: httpx.Client, key: dict[str, str], job: str) -> dict[str, Any]:
    def status() -> dict[str, Any]:
        found: dict[str, Any] = http.get(f"/v1/fine_tuning/jobs/{job}", headers=key).json()
        return found

    wait_until(lambda: status()["status"] in ("succeeded", "failed", "cancelled"))
    return status()


def test_a_tenants_model_is_its_own(running: Running, http: httpx.Client, adapters: Path) -> None:
    acme, globex = manager(http, "acme"), manager(http, "globex")
    job = begin(http, acme, suffix="mine")
    train(running, job["id"], adapters / "alpha", adapters / "beta")
    done = ended(http, acme, job["id"])
    name = done["fine_tuned_model"]
    assert name == f"ft:tiny:acme:mine:{job['id'][6:14]}"
    assert {name, f"{name}:ckpt-step-3"} <= set(models(http, acme))
    assert not [model for model in models(http, globex) if model.startswith("ft:")]
    assert answer(http, acme, name) != answer(http, acme, f"{name}:ckpt-step-3")
    table, *_ = done["result_files"]
    assert (
        http.get(f"/v1/files/{table}/content", headers=acme).text.splitlines()[3] == "3,0.3333333333333333,,,"
    )
    assert http.get(f"/v1/files/{table}", headers=globex).status_code == 404
    for path in (f"/v1/models/{name}", f"/v1/models/acme/{name}"):
        assert http.delete(path, headers=globex).status_code == 404
    goes_on = begin(http, acme, model=name)  # its own, by the name that it has there
    assert http.post(f"/v1/fine_tuning/jobs/{goes_on['id']}/cancel", headers=acme).status_code == 200
    assert http.delete(f"/v1/models/{name}", headers=acme).json()["deleted"]
    assert not [model for model in models(http, acme) if model.startswith("ft:")]
    wait_until(lambda: not running.service.tuning.folder(job["id"]).root.exists())
    for tenant in ("acme", "globex"):
        http.delete(f"/v1/tenants/{tenant}?adapters=true", headers=bearer(ADMIN))


def test_a_tenant_without_room_is_told(running: Running, http: httpx.Client, adapters: Path) -> None:
    acme = manager(http, "acme", limits={"adapter_bytes": 1000})
    job = begin(http, acme)
    train(running, job["id"], adapters / "alpha", adapters / "beta")
    done = ended(http, acme, job["id"])
    assert done["status"] == "failed"
    assert "your adapters take 0 bytes of 1000" in done["error"]["message"]
    assert not [model for model in models(http, acme) if model.startswith("ft:")]
    http.delete("/v1/tenants/acme?adapters=true", headers=bearer(ADMIN))


def test_a_deleted_tenants_job_leaves_nothing(
    running: Running, http: httpx.Client, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to another tenant that is called as it was."""
    acme, admin = manager(http, "acme"), bearer(ADMIN)
    first, second = begin(http, acme)["id"], begin(http, acme)["id"]
    running.service.tuning.jobs.pause(second)
    monkeypatch.setattr(running.service.tuning, "clean_up", lambda: None)
    http.delete("/v1/tenants/acme?adapters=true", headers=admin)
    other = manager(http, "acme")
    train(running, first, adapters / "alpha", adapters / "beta")
    done = ended(http, admin, first)
    assert done["status"] == "failed"
    assert not [model for model in models(http, other) if model.startswith("ft:")]
    assert http.get("/v1/fine_tuning/jobs", headers=other).json()["data"] == []
    running.service.tuning.jobs.cancel_of_nobody()
    assert ended(http, admin, second)["status"] == "cancelled"
    http.delete("/v1/tenants/acme?adapters=true", headers=admin)


def test_what_can_not_be_served_fails(running: Running, http: httpx.Client, adapters: Path) -> None:
    admin = bearer(ADMIN)
    job = begin(http, admin)
    broken = running.service.config.data_dir / "broken"
    shutil.copytree(adapters / "alpha", broken)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    train(running, job["id"], broken, adapters / "beta")
    done = ended(http, admin, job["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "publication_failed")
    assert str(running.service.config.data_dir) not in done["error"]["message"]
    assert not [model for model in models(http, admin) if model.startswith("ft:")]


def test_a_cancelled_job_leaves_nothing(
    running: Running, http: httpx.Client, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled after its model was published, before it was said to have succeeded."""
    admin, publications = bearer(ADMIN), running.service.tuning.publications
    job = begin(http, admin)
    results = publications.keep_results

    def cancelled(*args: Any) -> list[str]:
        running.service.tuning.jobs.cancel(job["id"])
        return results(*args)

    monkeypatch.setattr(publications, "keep_results", cancelled)
    train(running, job["id"], adapters / "alpha", adapters / "beta")
    assert ended(http, admin, job["id"])["status"] == "cancelled"
    wait_until(lambda: not [model for model in models(http, admin) if model.startswith("ft:")])

    def left() -> list[Any]:
        listed = http.get("/v1/files?purpose=fine-tune-results", headers=admin).json()["data"]
        return [file for file in listed if job["id"][6:] in file["id"]]

    wait_until(lambda: not left())


@pytest.mark.sweep
def test_an_unexpected_fault_ends_in_a_failure_that_says_so(
    running: Running, http: httpx.Client, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried a few times, later and later; meanwhile another job is published."""
    admin, publications = bearer(ADMIN), running.service.tuning.publications
    monkeypatch.setattr(publication, "PAUSES", (0.01, 5.0))
    broken, sound = begin(http, admin)["id"], begin(http, admin)["id"]
    results, tried = publications.keep_results, list[str]()

    def odd(job: JobRecord, *args: Any) -> list[str]:
        if job.id != broken:
            return results(job, *args)
        tried.append(job.id)
        raise KeyError("a fault that nobody thought of")

    monkeypatch.setattr(publications, "keep_results", odd)
    train(running, broken, adapters / "alpha", adapters / "beta")
    wait_until(lambda: len(tried) == 2)
    train(running, sound, adapters / "alpha", adapters / "beta")
    assert ended(http, admin, sound)["status"] == "succeeded"
    assert http.get(f"/v1/fine_tuning/jobs/{broken}", headers=admin).json()["status"] == "running"
    done = ended(http, admin, broken)
    assert len(tried) == 3
    assert (done["status"], done["error"]["code"]) == ("failed", "publication_failed")
    assert done["error"]["message"] == "The model can't be published: 3 attempts met an unexpected fault"
    events = http.get(f"/v1/fine_tuning/jobs/{broken}/events", headers=admin).json()["data"]
    assert (events[0]["level"], events[0]["message"]) == ("error", done["error"]["message"])
    assert not [model for model in models(http, admin) if model.endswith(broken[6:14])]
    assert not running.service.adapters.registry.tuning_leases("x").waiting(
        [Need.PUBLICATION], running.service.tuning.base
    )


def test_what_only_waits_is_looked_at_more_and_more_seldom(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that is gone is not asked, nor complained of, twice a second for ever; then all goes on."""
    assert [tuning.pause_after(faults) for faults in (0, 1, 2, 6, 7, 999)] == [
        0.5,
        1.0,
        2.0,
        32.0,
        32.0,
        32.0,
    ]
    counted: list[int] = []
    errors = iter([StoreError("gone"), OSError("gone"), ValueError("odd")])
    work = running.service.tuning.publications.work

    async def gone(ask_for: Any) -> None:
        error = next(errors, None)
        if error is not None:
            raise error
        await work(ask_for)

    def pause(faults: int) -> float:
        if asyncio.get_running_loop() is running.server.loop:  # servers of other tests pause as well
            counted.append(faults)
        return 0.001

    monkeypatch.setattr(running.service.tuning.publications, "work", gone)
    monkeypatch.setattr(tuning, "pause_after", pause)
    wait_until(lambda: len(counted) >= 5)
    assert counted[counted.index(1) :][:4] == [1, 2, 3, 0]
