"""From what a run is given as its data to files and how each is read: a file, a folder, a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.parsing.layouts import Layout
from manylora.adapters.training.data.reading.files import ROW_SUFFIXES, suffix_of
from manylora.adapters.training.data.reading.strict_json import loads

INFO_NAME = "dataset_info.json"  # LLaMA-Factory's


@dataclass(frozen=True, slots=True)
class Source:
    """One file of rows."""

    path: Path
    layout: Layout = field(default_factory=Layout)
    limit: int | None = None  # rows that are taken of it, chosen by the run's seed; None for all


def description_in(path: Path, findings: Findings) -> tuple[Path, Any] | None:
    """The description that ``path`` is or, as a folder, holds: its file and its content. None: it is data."""
    file = path / INFO_NAME if path.is_dir() else path
    if not file.is_file() or not (file.name == INFO_NAME or file.suffix.lower() in (".yaml", ".yml")):
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        findings.fault(file, 0 if mark is None else mark.line + 1, f"is not YAML: {_one_line(error)}")
        return file, None
    except (OSError, ValueError, RecursionError) as error:
        findings.fault(file, getattr(error, "lineno", 0), f"can't be read: {error}")
        return file, None
    if file.name == INFO_NAME and path.is_dir() and not is_llama_factory(content):
        return None  # that of a folder which the datasets library saved
    return file, content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def is_llama_factory(content: object) -> bool:
    """Whether ``content`` is a ``dataset_info.json``: names with where each data set lies."""
    places = {"file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"}
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(item, dict) and places & item.keys() for item in content.values())
    )


def files_in(path: Path, where: str, file: Path, findings: Findings) -> list[Path]:
    """``path``, or the files of rows in it where it is a folder; none is a fault of ``where`` in ``file``."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("*") if p.is_file() and is_data(p)) if path.is_dir() else []
    if not found:
        what = "has no file of rows in it" if path.is_dir() else "there is no such file"
        findings.fault(
            file,
            0,
            f"{where}: {what} ({path}); data sets of the Hub are not fetched here: download them first",
        )
    return found


def is_data(path: Path) -> bool:
    """Whether a file's name says that it has rows."""
    return suffix_of(path) in ROW_SUFFIXES and path.name not in (INFO_NAME, "state.json")


def folder_sources(path: Path, findings: Findings) -> Sequence[Source]:
    """The files of a folder without a description."""
    return [Source(file) for file in files_in(path, "is a folder", path, findings)]
