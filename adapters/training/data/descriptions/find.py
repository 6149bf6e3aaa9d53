"""What a run is given as its data, as the files that it stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from manylora.adapters.training.data.descriptions.axolotl import axolotl_sources
from manylora.adapters.training.data.descriptions.llama_factory import llama_factory_sources
from manylora.adapters.training.data.descriptions.sources import (
    Source,
    description_in,
    folder_sources,
    is_llama_factory,
)
from manylora.adapters.training.data.faults import Findings


def find_sources(
    path: Path, names: Sequence[str], findings: Findings, *, is_eval: bool = False
) -> Sequence[Source]:
    """The files that ``path`` stands for: itself, those of a folder, or those that a description names.

    Args:
        names: data sets of a LLaMA-Factory description.
        is_eval: rows to evaluate on, which an Axolotl description may name apart.
    """
    described = description_in(path, findings)
    if described is None:
        return folder_sources(path, findings) if path.is_dir() else [Source(path)]
    file, content = described
    if content is None:
        return []
    if is_llama_factory(content):
        return llama_factory_sources(file, content, names, findings)
    if isinstance(content, dict) and ("datasets" in content or "test_datasets" in content):
        key = "test_datasets" if is_eval and content.get("test_datasets") else "datasets"
        return axolotl_sources(file, content, key, findings)
    findings.fault(
        file, 0, "describes no data sets: an Axolotl file has datasets, LLaMA-Factory's a file_name for each"
    )
    return []


def description_digest(path: Path) -> str | None:
    """The digest of the description that ``path`` is, by which a run knows that it was changed."""
    described = description_in(path, Findings())
    return None if described is None else hashlib.sha256(described[0].read_bytes()).hexdigest()
