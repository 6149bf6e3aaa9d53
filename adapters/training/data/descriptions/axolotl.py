"""Axolotl's configuration: the entries of ``datasets`` with path, type and the names of fields.

Only data sets are read from it; what it says about training is set by this trainer's own options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manylora.adapters.format.faults import shown
from manylora.adapters.training.data.descriptions.sources import Source, files_in
from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.parsing.layouts import ROLE_SPELLINGS, Layout, Turns

_USED = {
    "path", "type", "data_files", "ds_type", "split", "field", "field_messages", "field_system",
    "field_tools", "field_chosen", "field_rejected", "field_human", "field_model", "message_field_role",
    "message_field_content", "message_property_mappings", "message_field_training", "roles", "roles_to_train",
    "train_on_eos", "train_on_eot", "drop_system_message",
}  # fmt: skip
# What changes no row of a local file, or is decided by the base's own template.
_NOT_USED = {
    "chat_template", "chat_template_jinja", "conversation", "trust_remote_code", "revision",
    "preprocess_shards", "name", "input_format",
}  # fmt: skip
_SPELLED: Mapping[str, Layout] = {
    "alpaca": Layout("Alpaca", {}),
    "alpaca_chat.load_qa": Layout("Alpaca", {"instruction": "question", "output": "answer"}),
    "alpaca_w_system": Layout("Alpaca", {}),
    "alpaca_w_system.load_open_orca": Layout(
        "Alpaca", {"instruction": "question", "output": "response", "system": "system_prompt"}
    ),
    "alpaca_chat": Layout("Alpaca", {}),
    "alpaca_chat.load_concise": Layout("Alpaca", {"output": "response"}),
    "gpteacher": Layout("Alpaca", {"output": "response"}),
    "oasst": Layout("Alpaca", {"instruction": "INSTRUCTION", "output": "RESPONSE"}),
    "jeopardy": Layout("Alpaca", {"instruction": "question", "output": "answer"}),
    "metharme": Layout("prompt/completion", {"completion": "generation"}),
}
_PREFERENCES = ("chatml", "llama3", "zephyr", "passthrough")


def axolotl_sources(file: Path, content: Mapping[str, Any], key: str, findings: Findings) -> list[Source]:
    """The files of the entries under ``key`` (``datasets`` or ``test_datasets``)."""
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        findings.fault(file, 0, f"{key}: must be a list of data sets, and not empty (it is {shown(entries)})")
        return []
    if content.get("train_on_inputs"):
        findings.fault(file, 0, "train_on_inputs: prompts are not learned here; set it to false")
    if content.get("rl") not in (None, False, "dpo"):
        findings.fault(file, 0, f"rl: {shown(content['rl'])} is not trained here, only dpo")
    others = sorted(
        str(name) for name in content.keys() - {"datasets", "test_datasets", "rl", "train_on_inputs"}
    )
    if others:
        findings.warn(file, 0, f"only its data sets are read, not {', '.join(others)}")
    if key == "datasets" and content.get("test_datasets"):
        findings.warn(file, 0, "test_datasets: read where this file is given as --eval-path")
    found: list[Source] = []
    for index, entry in enumerate(entries):
        found += _sources(file, f"{key}[{index}]", entry, bool(content.get("rl")), findings)
    return found


def _sources(file: Path, where: str, entry: object, is_preference: bool, findings: Findings) -> list[Source]:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        findings.fault(file, 0, f"{where}: must be an object with path and type, not {shown(entry)}")
        return []
    faults = [f"{key}: asks for what is not done here" for key in entry if key not in _USED | _NOT_USED]
    faults += _value_faults(entry)
    layout = _layout(entry, is_preference, faults)
    for fault in faults:
        findings.fault(file, 0, f"{where}.{fault}")
    for key in sorted(_NOT_USED & entry.keys()):
        findings.warn(file, 0, f"{where}.{key}: not used; rows are written with the base's chat template")
    if faults or layout is None:
        return []
    return [Source(path, layout) for path in _paths(file, where, entry, findings)]


def _value_faults(entry: Mapping[str, Any]) -> list[str]:
    faults = []
    for key in ("train_on_eos", "train_on_eot"):
        if entry.get(key) not in (None, "turn"):
            faults.append(f"{key}: {shown(entry[key])}: the end of every learned turn is learned here (turn)")
    if entry.get("split") not in (None, "train"):
        faults.append("split: a file has one split, train")
    for key in ("roles", "message_property_mappings"):
        if entry.get(key) is not None and not isinstance(entry[key], dict):
            faults.append(f"{key}: must be a mapping, not {shown(entry[key])}")
    learned = entry.get("roles_to_train")
    if learned is not None and (not isinstance(learned, list) or {*map(str, learned)} - {"assistant", "gpt"}):
        faults.append(f"roles_to_train: {shown(learned)}: only the assistant's turns are learned here")
    return faults


def _paths(file: Path, where: str, entry: Mapping[str, Any], findings: Findings) -> Sequence[Path]:
    """The files: from the working directory as Axolotl has it, or from that of the description."""
    chosen = entry.get("data_files") or []
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    root = Path(entry["path"]).expanduser()
    is_folder = root.is_dir() or (file.parent / root).is_dir()
    wanted = [root / name if is_folder else Path(name) for name in names] or [root]
    found: list[Path] = []
    for path in wanted:
        beside = file.parent / path
        found += files_in(path if path.exists() else beside, f"{where}.path", file, findings)
    return found


def _layout(entry: Mapping[str, Any], is_preference: bool, faults: list[str]) -> Layout | None:
    kind = entry.get("type")
    if isinstance(kind, dict):
        return _user_defined(kind, is_preference, faults)
    name = str(kind or "chat_template")
    head = name.partition(".")[0].partition(":")[0]
    if is_preference or name.startswith(("chat_template.argilla", "chat_template.default")):
        if head in (*_PREFERENCES, "chat_template"):
            return Layout("prompt/chosen/rejected", _preference_columns(entry, head), _turns(entry))
    elif head in ("chat_template", "sharegpt"):
        field = entry.get("field_messages") or ("messages" if head == "chat_template" else "conversations")
        columns = {"conversations": field, "system": entry.get("field_system") or "system"}
        return Layout("ShareGPT", columns | {"tools": entry.get("field_tools") or "tools"}, _turns(entry))
    elif head in ("completion", "pretrain"):
        return Layout("text", {"text": entry.get("field") or "text"})
    elif name in _SPELLED or head == "alpaca":
        return _SPELLED.get(name, _SPELLED["alpaca"])
    faults.append(f"type: {shown(kind)} is not read here; describe the fields in type, as a mapping")
    return None


def _preference_columns(entry: Mapping[str, Any], head: str) -> dict[str, str | None]:
    columns = {name: entry.get(f"field_{name}") for name in ("chosen", "rejected", "messages")}
    given: dict[str, str | None] = {name: value for name, value in columns.items() if value}
    return given | ({} if head != "chat_template" else {"prompt": None})


def _user_defined(kind: Mapping[str, Any], is_preference: bool, faults: list[str]) -> Layout | None:
    """A mapping of fields; formats of prompts are left to the base's chat template."""
    ours = (
        ("prompt", "chosen", "rejected", "system")
        if is_preference
        else ("instruction", "input", "output", "system")
    )
    formats = {
        "format",
        "no_input_format",
        "prompt_format",
        "chosen_format",
        "rejected_format",
        "system_format",
    }
    for key in kind:
        if key not in {f"field_{name}" for name in ours} | formats | {"system_prompt"}:
            faults.append(f"type.{key}: not a key of a mapping of fields")
    for key in formats & kind.keys():
        text = str(kind[key] or "").strip()
        if text not in ("", "{instruction}", "{prompt}", "{chosen}", "{rejected}", "{system}"):
            faults.append(f"type.{key}: rows are written with the base's chat template; remove it")
    if kind.get("system_prompt"):
        faults.append("type.system_prompt: put it into a field of the rows")
    columns: dict[str, str | None] = {name: kind.get(f"field_{name}") or name for name in ours}
    return Layout("prompt/chosen/rejected" if is_preference else "Alpaca", columns)


def _turns(entry: Mapping[str, Any]) -> Turns:
    mapping = entry.get("message_property_mappings")
    mapping = mapping if isinstance(mapping, dict) else {}
    usual = Turns()
    role = mapping.get("role") or entry.get("message_field_role") or usual.role[0]
    content = mapping.get("content") or entry.get("message_field_content") or usual.content[0]
    roles = dict(ROLE_SPELLINGS)
    described = entry.get("roles")
    for target, sources in described.items() if isinstance(described, dict) else ():
        for source in [sources] if isinstance(sources, str) else sources or []:
            roles[str(source)] = ROLE_SPELLINGS.get(str(target).lower(), str(target))
    trained = entry.get("message_field_training")
    learned = entry.get("roles_to_train")
    return Turns(
        role=(role, *(key for key in usual.role if key != role)),
        content=(content, *(key for key in usual.content if key != content)),
        roles=roles,
        learned=usual.learned if not trained else (trained, *(k for k in usual.learned if k != trained)),
        by_default=learned is None or bool(learned),
        drop_system=bool(entry.get("drop_system_message")),
    )
