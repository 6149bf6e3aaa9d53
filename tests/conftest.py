"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from manylora.adapters.base_models.catalog import resolve_model
from manylora.server.kernels.cpu.build import AMX_EMULATED, Variant, usable_variants
from manylora.server.options.settings import Settings
from tests.support.kernel_cases import variants_under_test
from tests.support.order import longest_first
from tests.support.tiny_models import tiny_model

if not torch.cuda.is_available():
    # Read when Triton is imported: its kernels run in its interpreter then, on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton"):
        from tests.support.interpreter import sum_rows_alike

        sum_rows_alike()


def pytest_report_header() -> str:
    """Which kernels the tests ran: those of level amx on real tile instructions, or in emulation alone."""
    levels = ", ".join(variant.name for variant in variants_under_test())
    return f"CPU kernels: {levels}"


def _seldom_levels() -> frozenset[Variant]:
    """Levels of kernels whose slow tests are sweeps; quick ones go through every level every time.

    Tiles in emulation, which take minutes for what the instructions do in seconds; and of levels that are
    compiled from the same lines for more or less of the processor, all but the first.
    """
    same_lines = [variant for variant in usable_variants() if "avx512_bf16" not in variant.cpu_flags]
    return frozenset((AMX_EMULATED, *same_lines[1:]))


SELDOM = _seldom_levels()
SLOW_CASES = 2  # of one slow test that are no sweep


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not ask for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the real model as such, whoever forgets it, and as sweeps slow tests of some levels and
    all but a few cases of a slow test that has many. What takes long comes first."""
    slow: dict[str, list[pytest.Item]] = {}
    for item in items:
        if "real_model_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)
        spec = getattr(item, "callspec", None)
        values = () if spec is None else spec.params.values()
        seldom = any(isinstance(value, Variant) and value in SELDOM for value in values)
        is_slow = item.get_closest_marker("slow") is not None
        if seldom and is_slow:
            item.add_marker(pytest.mark.sweep)
        if is_slow and item.get_closest_marker("sweep") is None:
            slow.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in slow.values():
        for item in _left_over(cases):
            item.add_marker(pytest.mark.sweep)
    items[:] = longest_first(items)


def _left_over(cases: list[pytest.Item]) -> list[pytest.Item]:
    """All but :data:`SLOW_CASES` of ``cases``, which are spread over their order."""
    last, steps = len(cases) - 1, SLOW_CASES - 1
    kept = {round(step * last / steps) for step in range(SLOW_CASES)} if len(cases) > SLOW_CASES else None
    return [] if kept is None else [case for index, case in enumerate(cases) if index not in kept]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte tokenizer."""
    return tiny_model(tmp_path_factory.mktemp("tiny-llama"), "llama")


@pytest.fixture(scope="session")
def real_model_dir() -> Path:
    """Directory of the real base model, fetched and converted if this machine does not have it yet."""
    return resolve_model("smollm2-135m", Settings().data_dir)


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of garbage collections from here on.

    Millions of objects: a collection that visits them takes a second, and every server and run collects.
    """
    gc.collect()
    gc.freeze()
