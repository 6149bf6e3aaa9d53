"""LLaMA-Factory's ``dataset_info.json``: for each name a file, its format, and what its fields are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manylora.adapters.format.faults import shown
from manylora.adapters.training.data.descriptions.sources import Source, files_in
from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.parsing.layouts import FUNCTION_CALL, ROLE_SPELLINGS, Layout, Turns

_KEYS = {
    "file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting",
    "ranking", "subset", "split", "folder", "num_samples", "columns", "tags",
}  # fmt: skip
_COLUMNS = {"prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected"}
_UNTRAINED = ("images", "videos", "audios", "kto_tag")
_TAGS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", FUNCTION_CALL),
    "system_tag": ("system", "system"),
}


def llama_factory_sources(
    file: Path, content: Mapping[str, Any], wanted: Sequence[str], findings: Findings
) -> list[Source]:
    """The files of the data sets called ``wanted``; of a description of one it need not be named."""
    if not wanted and len(content) > 1:
        findings.fault(file, 0, f"describes {', '.join(content)}: choose with --dataset NAME")
    missing = [name for name in wanted if name not in content]
    if missing:
        findings.fault(file, 0, f"--dataset {missing[0]}: not described; there are {', '.join(content)}")
    if findings.faults:
        return []
    found = []
    for name in wanted or content:
        found += _sources(file, name, content[name], findings)
    return found


def _sources(file: Path, name: str, entry: Mapping[str, Any], findings: Findings) -> list[Source]:
    faults = [*_key_faults(entry)]
    if "file_name" not in entry:
        place = next(key for key in _KEYS if key in entry and key.endswith(("_url", "_file_name")))
        faults.append(f"{place}: {entry[place]} is not a file here: download it, and name it in file_name")
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    limit = entry.get("num_samples")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        faults.append(f"num_samples: must be a number of rows, not {shown(limit)}")
    for fault in faults:
        findings.fault(file, 0, f"{name}: {fault}")
    if faults:
        return []
    layout = _layout(entry, columns, tags)
    path = file.parent / str(entry["file_name"])
    return [Source(found, layout, limit) for found in files_in(path, f"{name}: file_name", file, findings)]


def _key_faults(entry: Mapping[str, Any]) -> list[str]:
    faults = [f"{key}: not a key of a data set" for key in entry if key not in _KEYS]
    if entry.get("formatting", "alpaca") not in ("alpaca", "sharegpt", "openai"):
        faults.append(f"formatting: {shown(entry['formatting'])} is none of alpaca, sharegpt, openai")
    if entry.get("split", "train") != "train":
        faults.append("split: a file has one split, train")
    known = {"columns": {*_COLUMNS, *_UNTRAINED}, "tags": {"role_tag", "content_tag", *_TAGS}}
    for part, names in known.items():
        held = entry.get(part) or {}
        if not isinstance(held, dict) or not all(isinstance(v, str | None) for v in held.values()):
            faults.append(f"{part}: must be names of keys, not {shown(held)}")
            continue
        faults += [f"{part}.{key}: none of {', '.join(sorted(names))}" for key in held if key not in names]
        faults += [f"{part}.{key}: not trained on here" for key in _UNTRAINED if held.get(key)]
    return faults


def _layout(entry: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Layout:
    """Columns that are not named do not exist, unless none is; tags that are not named are the usual ones."""
    usual = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
    named: Mapping[str, str] = columns or usual
    if entry.get("ranking"):
        return Layout("prompt/chosen/rejected", _ranking(entry, named), _turns(tags), "\n")
    if entry.get("formatting", "alpaca") != "alpaca":
        fields: dict[str, str | None] = {"conversations": named.get("messages", "conversations")}
        fields |= {key: named.get(key) for key in ("system", "tools")}
        return Layout("ShareGPT", fields, _turns(tags))
    if "response" not in named and not named.get("query"):
        return Layout("text", {"text": named.get("prompt", "instruction")})
    fields = {
        "instruction": named.get("prompt"),
        "input": named.get("query"),
        "output": named.get("response"),
    }
    return Layout("Alpaca", fields | {key: named.get(key) for key in ("system", "history")}, joiner="\n")


def _ranking(entry: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, str | None]:
    """The fields of a preference; where the prompt stands depends on the formatting."""
    is_turns = entry.get("formatting", "alpaca") != "alpaca"
    return {
        "chosen": named.get("chosen", "chosen"),
        "rejected": named.get("rejected", "rejected"),
        "conversations": named.get("messages", "conversations") if is_turns else None,
        "instruction": None if is_turns else named.get("prompt"),
        "input": None if is_turns else named.get("query"),
        "system": named.get("system"),
        "tools": named.get("tools"),
        "prompt": None,
        "messages": None,
        "question": None,
    }


def _turns(tags: Mapping[str, str]) -> Turns:
    roles = dict(ROLE_SPELLINGS)
    for tag, (usual, role) in _TAGS.items():
        roles[tags.get(tag) or usual] = role
    usual_turns = Turns()
    role_key, content_key = tags.get("role_tag") or "from", tags.get("content_tag") or "value"
    return Turns(
        role=(role_key, *(key for key in usual_turns.role if key != role_key)),
        content=(content_key, *(key for key in usual_turns.content if key != content_key)),
        roles=roles,
    )
