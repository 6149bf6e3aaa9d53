"""Two servers and a worker elsewhere on one registry: who trains, and where the model answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from sqlalchemy import create_engine, text

from tests.support.postgres import binaries
from tests.support.postgres import running as postgres_running
from tests.support.running_server import serving, tiny_service
from tests.support.tuning import begin, ended, step_of, when
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.sweep]

NOTICED = 2.0  # seconds after which a model answers on every server


@contextmanager
def worker(model: Path, data: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """``manylora worker``, as on another machine."""
    command = [sys.executable, "-m", "manylora", "worker", "--model", str(model), "--data-dir", str(data)]
    environment = {**os.environ, "MANYLORA_REGISTRY_URL": url, "MANYLORA_DTYPE": "fp32"}
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
        return
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_running(found) as server:
        engine = create_engine(
            server.replace("postgresql", "postgresql+psycopg") + "/postgres", isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text('CREATE DATABASE "jobs"'))
        engine.dispose()
        yield f"{server}/jobs"


def test_a_model_answers_on_every_server(tmp_path: Path, model: Path, url: str) -> None:
    options = {"registry_url": url, "training": "external"}
    data = tmp_path / "data"
    with (
        serving(tiny_service(model, data, **options)) as one,
        serving(tiny_service(model, data, **options)) as two,
    ):
        client, other = one.client(), two.client()
        job = begin(client)
        assert one.service.tuning.worker is two.service.tuning.worker is None  # neither trains
        assert client.fine_tuning.jobs.retrieve(job.id).status == "validating_files"
        with worker(model, data, url):
            done = ended(client, job)
        since = time.monotonic()
        assert done.status == "succeeded", done.error
        for each in (client, other):
            wait_until(lambda each=each: _answers(each, done.fine_tuned_model))  # type: ignore[misc]
        assert time.monotonic() - since < NOTICED
        assert other.fine_tuning.jobs.retrieve(job.id).status == "succeeded"


def test_a_dead_workers_job_is_taken_up_once(tmp_path: Path, model: Path, url: str) -> None:
    """By another, when the lease is over: it goes on from the checkpoint, with every step once."""
    data = tmp_path / "data"
    with serving(tiny_service(model, data, registry_url=url, training="external")) as server:
        client = server.client()
        job = begin(client, hyperparameters={"n_epochs": 40, "batch_size": 2, "learning_rate_multiplier": 20})
        with worker(model, data, url) as first:
            when(client, job.id, lambda found: step_of(found) >= 60)
            first.send_signal(signal.SIGKILL)
        with worker(model, data, url), worker(model, data, url):
            done = ended(client, job)
        assert done.status == "succeeded", done.error
        rows = client.files.content(done.result_files[0]).text.splitlines()[1:]
        assert [int(row.split(",")[0]) for row in rows] == list(range(1, 481))
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
        assert messages.count("Fine-tuning job started") == 1  # the client asks for page after page


def test_all_jobs_of_a_dead_worker_go_on_elsewhere(tmp_path: Path, model: Path, url: str) -> None:
    """Two in one pass: each from its own checkpoint, with every step once."""
    data = tmp_path / "data"
    with serving(tiny_service(model, data, registry_url=url, training="external")) as server:
        client = server.client()
        numbers = {"n_epochs": 40, "batch_size": 2, "learning_rate_multiplier": 20}
        jobs = [begin(client, hyperparameters=numbers, seed=seed) for seed in (1, 2)]
        with worker(model, data, url) as first:
            for job in jobs:
                when(client, job.id, lambda found: step_of(found) >= 60)
            first.send_signal(signal.SIGKILL)
        with worker(model, data, url), worker(model, data, url):
            done = [ended(client, job) for job in jobs]
        for each in done:
            assert each.status == "succeeded", each.error
            rows = client.files.content(each.result_files[0]).text.splitlines()[1:]
            assert [int(row.split(",")[0]) for row in rows] == list(range(1, 481))
            messages = [event.message for event in client.fine_tuning.jobs.list_events(each.id, limit=100)]
            assert messages.count("Fine-tuning job started") == 1


def test_a_server_that_is_killed_loses_no_job(tmp_path: Path, model: Path) -> None:
    """Nor does its worker run on without it; the next server's goes on from where it was."""
    data = tmp_path / "data"
    with serving(tiny_service(model, data, training="local")) as server:
        client = server.client()
        job = begin(client, hyperparameters={"n_epochs": 40, "batch_size": 2, "learning_rate_multiplier": 20})
        when(client, job.id, lambda found: step_of(found) >= 40)
    with serving(tiny_service(model, data, training="local")) as server:  # it ended properly
        client = server.client()
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
        assert ended(client, job).status == "succeeded"


def _answers(client: openai.OpenAI, model: str) -> bool:
    try:
        client.completions.create(model=model, prompt="a", max_tokens=1)
    except openai.NotFoundError:
        return False
    return True
