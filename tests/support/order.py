"""In which order files of tests are handed out: long ones first, so that all processes end together."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

# Files that take a processor for long, the longest first. Only the order depends on it: what is missing, or
# has become quicker, costs some seconds at the end.
LONG = (
    "server/kernels/test_coded_weights.py",  # compiles the kernels, if it comes first
    "real/test_python_docs.py",
    "server/kernels/test_sanitizers.py",
    "real/test_training.py",
    "project/test_wheel.py",
    "real/test_peft_parity.py",
    "server/api/http/test_openapi_fuzz.py",
    "adapters/training/test_run.py",
    "server/cli/test_shutdown.py",
    "adapters/training/test_methods.py",
    "real/test_readme.py",
    "adapters/training/test_keep.py",
    "adapters/training/test_embedding.py",
    "adapters/training/test_resume.py",
    "server/api/admin/test_mutated_uploads.py",
    "real/test_quantized.py",
    "adapters/training/test_full.py",
    "adapters/training/test_tasks.py",
    "server/kernels/test_triton_step.py",
    "server/engine/kinds/test_weight_kinds.py",
    "server/kernels/test_triton_layers.py",
    "server/cli/test_main.py",
    "adapters/training/test_jobs.py",
    "project/test_examples.py",
    "server/api/generate/test_structured_output.py",
    "server/api/admin/test_churn.py",
)


def longest_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """``items`` with those of :data:`LONG` before the others; within a file nothing moves."""
    places = {f"tests/{file}": place for place, file in enumerate(LONG)}
    return sorted(items, key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONG)))
