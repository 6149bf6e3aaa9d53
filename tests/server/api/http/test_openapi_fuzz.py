"""Generated requests to every route of the OpenAPI document: no fault, no status that it does not tell of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.support.running_server import PATIENCE, Running, serving
from tests.support.served_adapters import service_of

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))  # requests to each route; more with make fuzz
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
# What is asked for in place of a generated name; with None that stays, and is mostly unknown.
MODELS = (None, "tiny", "alpha", "alpha*0.5+beta*-0.5")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if EXAMPLES > 12 else 600)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """A server of its own: what is generated also deletes. Its context is short, so that answers are."""
    data = tmp_path_factory.mktemp("data")
    exports = tmp_path_factory.mktemp("exports")
    with serving(service_of(data, model, adapters, max_model_len=64, export_root=exports)) as running:
        yield running


def test_generated_requests(target: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 30
    found = [failure_of(operation, mode) for operation in operations for mode in schemathesis.GenerationMode]
    failures = [failure for failure in found if failure is not None]
    assert not failures, "\n".join(failures)
    target.wait_until_idle()


def failure_of(operation: Any, mode: Any) -> str | None:
    """What generated requests to ``operation`` have found, if anything; ``mode`` is valid ones or others."""
    schemathesis.checks.load_all_checks()
    wanted = schemathesis.checks.CHECKS.get_by_names(list(CHECKS))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=EXAMPLES <= 12,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.sampled_from(MODELS))
    def check(case: Any, model: str | None) -> None:
        if model is not None:
            _name(case, model)
        case.call_and_validate(checks=wanted, timeout=PATIENCE)

    try:
        check()
    except Unsatisfiable:  # a route without parameters has no invalid ones
        return None
    except BaseExceptionGroup as group:
        return f"{operation.label}: {group.exceptions}"
    except Exception as error:
        return f"{operation.label}: {error}"
    return None


def _name(case: Any, model: str) -> None:
    """Have ``case`` ask for ``model`` wherever it names one."""
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = model
        if "targets" in case.body:
            case.body["targets"] = ["tiny", model]
    if case.path_parameters and "name" in case.path_parameters:
        case.path_parameters["name"] = model
