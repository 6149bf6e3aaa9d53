"""A PEFT directory read, validated against a base model, and ready to be loaded: all faults in one error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from manylora.adapters.errors import SourceMissing
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.classes import Classes, read_classes
from manylora.adapters.format.config.config import AdapterConfig, parse_config
from manylora.adapters.format.config.reader import MAX_RANK
from manylora.adapters.format.config.targets import Target, select_targets
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.files import (
    CLASSES_NAME,
    CONFIG_NAME,
    PICKLES,
    WEIGHTS_NAME,
    FileFault,
    add_text_files,
    artifact_digest,
    enum_name,
    pickle_fault,
    read_config,
    read_text_files,
)
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES, OPTIONS
from manylora.adapters.format.pooling import PoolingConfig, parse_pooling
from manylora.adapters.format.tensor_check import check_tensors
from manylora.adapters.format.text.conventions import AdapterText
from manylora.adapters.format.text.read_text import read_text
from manylora.adapters.format.vocabulary.changes import VocabularyDelta
from manylora.adapters.format.vocabulary.layout import VocabularyLayout, lay_out_vocabulary
from manylora.adapters.format.vocabulary.tensors import class_count, read_vocabulary, vocabulary_size
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.format.weights.expected_tensors import Layout, lay_out
from manylora.adapters.format.weights.read_deltas import read_deltas
from manylora.adapters.format.weights.soft_prompt import SoftPrompt, check_soft_prompt, read_soft_prompt
from manylora.adapters.format.weights.tensors import TensorFile, read_tensors

MAX_ENTRIES = 1000  # of a directory that are looked at


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest rank and the most bytes that an operator allows an adapter."""

    max_rank: int  # of any one module
    max_bytes: int  # of all tensors, as stored
    max_virtual_tokens: int = MAX_RANK  # of a soft prompt: what the context leaves room for


@dataclass(frozen=True)
class Artifact:
    """A validated adapter in memory."""

    directory: Path
    digest: str  # hex SHA-256 of exactly the bytes that this was made from
    delta: Mapping[str, ModuleDelta]  # module name -> its change, in the base's forward order
    vocabulary: VocabularyDelta | None = field(default=None, kw_only=True)  # of embeddings and head
    classes: Classes | None = field(default=None, kw_only=True)  # of an adapter that classifies, complete
    pooling: PoolingConfig | None = field(default=None, kw_only=True)  # of one that embeds, where it says so
    prompt: SoftPrompt | None = field(default=None, kw_only=True)  # virtual tokens before every text
    text: AdapterText  # its chat template and tokenizer, where they are not the base's
    kind: str  # "LORA", "LORA+DORA", "IA3", ...: the peft_type and what is added to it
    nbytes: int  # of all tensors, as stored
    rank: int  # in rank pages, the largest of any module and table; 0 where none has A and B
    activation: tuple[int, ...] | None  # the tokens that switch it on (aLoRA)
    base_model_name: str | None  # what the config says it was trained on: only a hint
    peft_version: str | None  # that wrote it, where recorded
    experts: bool = False  # whether it changes some
    notes: tuple[str, ...] = ()  # sentences about what of its config was left alone


def read_artifact(directory: Path, base: BaseModel, limits: Limits) -> Artifact:
    """Read ``directory`` and check that ``base`` can serve it. Blocks on the disk; touches no device.

    Each file is read exactly once, so what was checked is what is returned and what the digest names.

    Raises:
        SourceMissing: there is no such directory, or nothing of an adapter in it.
        ArtifactError: with every fault found.
    """
    names = _names(directory)
    faults = Faults()
    config, parsed = _read_config(directory, faults)
    targets = _targets(parsed, base, limits, faults) if parsed is not None else None
    layout = lay_out(parsed, targets, base, faults) if parsed is not None and targets is not None else None
    tables = lay_out_vocabulary(parsed, base, faults) if parsed is not None else None
    digest = artifact_digest(config)
    file = None
    if WEIGHTS_NAME not in names and names != {CONFIG_NAME}:
        faults.add(pickle_fault(min(names - {CONFIG_NAME})))
    else:
        file = read_tensors(
            directory / WEIGHTS_NAME,
            digest,
            faults,
            max_header=header_bound(base, layout),
            max_bytes=limits.max_bytes,
            indices=[] if layout is None else [slot.key for slot in layout.slots() if slot.integers],
        )
    texts = _read_text_files(directory, config, faults)
    add_text_files(digest, texts)
    if file is not None and _may_be_served(config):
        check_tensors(file, layout, base, limits.max_rank, faults, tables=tables)
    classes = read_classes(texts, faults)
    pooling = _pooling(texts, faults)
    text = read_text(texts, base.text, _vocab_size(file, tables), faults)
    count = None if tables is None or file is None else class_count(file, tables)
    if count is not None and classes.labels is not None and len(classes.labels) != count:
        faults.add(f"{CLASSES_NAME} names {len(classes.labels)} classes, the head has {count}")
    faults.raise_any()
    assert layout is not None, "a fault was not recorded"
    assert file is not None, "a fault was not recorded"
    artifact = _artifact(directory, digest.hexdigest(), layout, base, file=file, text=text, tables=tables)
    if tables is not None:
        vocabulary = read_vocabulary(file, tables)
        rank = artifact.rank if vocabulary is None else max(artifact.rank, vocabulary.rank)
        artifact = replace(artifact, vocabulary=vocabulary, rank=rank)
    artifact = replace(artifact, pooling=pooling)
    return artifact if count is None else replace(artifact, classes=classes.complete(count))


def _targets(
    config: AdapterConfig, base: BaseModel, limits: Limits, faults: Faults
) -> dict[str, Target] | None:
    """The modules that the config selects, of a soft prompt none; None (and a fault) if it can't be said."""
    if config.prompt is None:
        return select_targets(config, base, faults)
    before = len(faults)
    check_soft_prompt(config.prompt, base, limits.max_virtual_tokens, faults)
    return {} if len(faults) == before else None


def _vocab_size(file: TensorFile | None, tables: VocabularyLayout | None) -> int | None:
    """Tokens that the adapter's embeddings have a row for, as far as that can be said."""
    if tables is None:
        return None
    return tables.size if file is None else vocabulary_size(file, tables)


def _read_config(directory: Path, faults: Faults) -> tuple[dict[str, Any], AdapterConfig | None]:
    """The config as written ({} if it can't be read) and as parsed (None if that can't be done)."""
    try:
        config = read_config(directory / CONFIG_NAME)
    except FileFault as fault:
        faults.add(str(fault))
        return {}, None
    return config, parse_config(config, faults, KINDS_OF_UPDATES)


def _read_text_files(directory: Path, config: Mapping[str, Any], faults: Faults) -> dict[str, bytes]:
    try:
        return read_text_files(directory, config)
    except FileFault as fault:
        faults.add(str(fault))
        return {}


def _pooling(files: Mapping[str, bytes], faults: Faults) -> PoolingConfig | None:
    try:
        return parse_pooling(files)
    except FileFault as fault:
        faults.add(str(fault))
        return None


def _names(directory: Path) -> frozenset[str]:
    """The files of an adapter, and pickles, that ``directory`` holds.

    Raises:
        SourceMissing: it is not a directory that can be read, or holds neither.
    """
    try:
        with os.scandir(directory) as entries:
            names = {entry.name for entry in islice(entries, MAX_ENTRIES)}
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
        raise SourceMissing(f"no adapter at {shown(str(directory))}: {reason.lower()}") from None
    files = {name for name in (CONFIG_NAME, WEIGHTS_NAME) if os.path.lexists(directory / name)}
    pickles = {name for name in names if name.endswith(PICKLES)}
    if not files and not pickles:
        missing = f"it holds neither {CONFIG_NAME} nor {WEIGHTS_NAME}"
        raise SourceMissing(f"no adapter at {shown(str(directory))}: {missing}")
    return frozenset(files | pickles)


def _may_be_served(config: Mapping[str, object]) -> bool:
    """Other kinds name their tensors otherwise: comparing those would only repeat the one fault."""
    name = enum_name(config.get("peft_type", "LORA"))
    return isinstance(name, str) and name in OPTIONS


def header_bound(base: BaseModel, layout: Layout | None = None) -> int:
    """Bytes of safetensors header that no adapter of ``base`` needs.

    Four times those of a LoRA on every module, or twice those of the tensors that the config asks for.
    """
    lora = 4 * sum(2 * (len(name) + 160) for name in base.modules)
    asked = 0 if layout is None else 2 * sum(len(slot.key) + 160 for slot in layout.slots())
    return 65536 + max(lora, asked)


def _artifact(
    directory: Path,
    digest: str,
    layout: Layout,
    base: BaseModel,
    *,
    file: TensorFile,
    text: AdapterText,
    tables: VocabularyLayout | None,
) -> Artifact:
    config = layout.config
    deltas = read_deltas(layout, base, file)
    return Artifact(
        directory=directory,
        digest=digest,
        delta=MappingProxyType(deltas),
        text=text,
        kind=config.served_on(
            vocabulary=tables is not None and tables.replaces, norms=bool(layout.saved_norms)
        ),
        nbytes=file.nbytes,
        rank=max((delta.rank for delta in deltas.values()), default=0),
        activation=config.activation,
        base_model_name=config.base_model_name,
        peft_version=config.peft_version,
        notes=config.notes,
        prompt=read_soft_prompt(config.prompt, file),
        experts=not layout.targets.keys().isdisjoint(base.experts.keys() | base.expert_layers.keys()),
    )
