"""The tensors of an artifact that change the tables of the vocabulary, checked and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.classes import MAX_CLASSES
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.vocabulary.changes import TableDelta, VocabularyDelta
from manylora.adapters.format.vocabulary.layout import TableLayout, VocabularyLayout
from manylora.adapters.format.weights.tensors import TensorFile

_TOKENS = "trainable_tokens_delta"
_EXAMPLES = 4


def claimed(layout: VocabularyLayout) -> frozenset[str]:
    """The names of all tensors that the layout has a place for."""
    return frozenset(layout.class_heads) | frozenset(
        table.key(ending)
        for table in layout.tables
        for ending in (*_factors(table), *_rows(table), *_whole(table))
    )


def check_vocabulary(
    file: TensorFile, layout: VocabularyLayout, base: BaseModel, max_rank: int, faults: Faults
) -> None:
    """Every tensor that is needed is there, and all agree on the number of tokens."""
    before = len(faults)
    missing = [key for key in _needed(layout) if key not in file.infos]
    if missing:
        faults.add(f"missing tensors: {some(missing, len(missing), _EXAMPLES)}")
    sizes = {table.name: _check_shapes(file, table, layout, faults) for table in layout.tables}
    for table in layout.tables:
        if table.lora is not None and table.lora.rank > max_rank:
            where = f"rank {table.lora.rank} of {shown(table.name)}"
            faults.add(f"{where} is above the limit of {max_rank} (--max-lora-rank)")
    if len(faults) == before:
        _check_sizes(file, layout, sizes, base, faults)
    if len(faults) == before and file.complete:
        _check_copies(file, layout, faults)
    if layout.class_heads:
        _check_classes(file, layout, base, faults)


def read_vocabulary(file: TensorFile, layout: VocabularyLayout) -> VocabularyDelta | None:
    """The changes to both tables; None if there are none. Everything has been checked."""
    embedding = _read(file, layout.embedding, layout)
    if layout.class_heads:
        (key,) = _class_heads(file, layout)
        return VocabularyDelta(vocabulary_size(file, layout), embedding, classes=file.tensor(key).float())
    head = _read(file, layout.head, layout)
    if embedding is None and head is None:
        return None
    return VocabularyDelta(vocabulary_size(file, layout), embedding, head)


def vocabulary_size(file: TensorFile, layout: VocabularyLayout) -> int:
    """How many tokens the adapter knows."""
    return max([layout.size, *(size for table in layout.tables for size in _sizes(file, table))])


def does_something(file: TensorFile, layout: VocabularyLayout) -> bool:
    """Whether the tables may differ from the base's; what are mere copies is seen when they meet it."""
    if layout.class_heads or any(table.saved or table.tokens for table in layout.tables):
        return True
    factors = [_lora_keys(table, layout) for table in layout.tables if table.lora is not None]
    return any(not any(_is_zero(file, key) for key in keys) for keys in factors)


def _is_zero(file: TensorFile, key: str) -> bool:
    return key in file.infos and file.holds_only(key, 0.0)


def _factors(table: TableLayout) -> tuple[str, ...]:
    if table.lora is None:
        return ()
    return ("lora_A.weight", "lora_B.weight") if table.is_head else ("lora_embedding_A", "lora_embedding_B")


def _rows(table: TableLayout) -> tuple[str, ...]:
    return (table.wrapper + _TOKENS,) if table.tokens else ()


def _whole(table: TableLayout) -> tuple[str, ...]:
    """Endings of tensors that hold a whole table; the first that is there is the one that counts.

    "weight" stands for itself where the config does not name the table: PEFT saves resized tables so.
    """
    endings = ["weight"]
    endings += ["base_layer.weight"] * (table.lora is not None)
    endings += [f"{table.wrapper}base_layer.weight"] * bool(table.tokens)
    endings += ["modules_to_save.weight", "original_module.weight"] * table.saved
    return tuple(endings)


def _needed(layout: VocabularyLayout) -> Iterator[str]:
    for table in layout.tables:
        if not table.tied:
            yield from (table.key(ending) for ending in (*_factors(table), *_rows(table)))
            if table.saved:
                yield table.key("weight")


def _check_shapes(
    file: TensorFile, table: TableLayout, layout: VocabularyLayout, faults: Faults
) -> int | None:
    """The number of rows that the table's tensors have; None where the file has none that says it."""
    found = next(iter(_sizes(file, table)), None)
    size = layout.size if found is None else found
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(_whole(table), (size, table.width))
    if table.lora is not None:
        rank, (a, b) = table.lora.rank, _factors(table)
        expected |= {a: (rank, table.width), b: (size, rank)}
        if not table.is_head:
            expected |= {a: (rank, size), b: (table.width, rank)}
    expected |= {ending: (len(table.tokens), table.width) for ending in _rows(table)}
    for ending, shape in expected.items():
        info = file.infos.get(table.key(ending))
        if info is not None and info.shape != shape:
            has, wanted = list(info.shape), list(shape)
            faults.add(f"size mismatch for {shown(info.name)}: the file has {has}, {wanted} is needed")
    return found


def _sizes(file: TensorFile, table: TableLayout) -> Iterator[int]:
    """The number of tokens by each tensor that has a row (or column) for each."""
    for ending in (*_whole(table), *_factors(table)):
        info = file.infos.get(table.key(ending))
        if info is None or len(info.shape) != 2 or ending in ("lora_A.weight", "lora_embedding_B"):
            continue
        yield info.shape[1 if ending == "lora_embedding_A" else 0]


def _check_sizes(
    file: TensorFile,
    layout: VocabularyLayout,
    sizes: Mapping[str, int | None],
    base: BaseModel,
    faults: Faults,
) -> None:
    """Both tables have one number of rows: the base's, or more where the model was resized.

    Of tables that are one tensor, what says nothing of its rows has those of the other.
    """
    told = {name: size for name, size in sizes.items() if size is not None}
    short = {name: size for name, size in told.items() if size < layout.size}
    for name, size in short.items():
        what = "output head" if name == layout.head.name else "embeddings"
        faults.add(
            f"the {what} ({shown(name)}) has {size} rows, fewer than the base's {layout.size} ({base.name}): "
            "save it from a model with all of the base's rows"
        )
    if short:
        return
    unsaid = max(told.values(), default=layout.size) if layout.tied else layout.size
    embedding, head = (told.get(table.name, unsaid) for table in (layout.embedding, layout.head))
    if embedding != head and not layout.class_heads:
        faults.add(
            f"the embeddings have {embedding} rows and the output head {head}: save both of a resized model "
            "(save_embedding_layers=True)"
        )
        return
    if embedding > layout.size:
        bare = [t.name for t in layout.tables if _table_key(file, t, layout) is None]
        if bare:
            names = some(bare, len(bare))
            faults.add(f"the vocabulary was resized to {embedding}, but the file lacks the table of {names}")
    top = max((token for table in layout.tables for token in table.tokens), default=0)
    if top >= embedding:
        option = layout.embedding.tokens_option
        faults.add(f"{option} names token {top}; the vocabulary has {embedding}")


def _class_heads(file: TensorFile, layout: VocabularyLayout) -> list[str]:
    return [key for key in layout.class_heads if key in file.infos]


def _check_classes(file: TensorFile, layout: VocabularyLayout, base: BaseModel, faults: Faults) -> None:
    """One head [classes, width] that says something."""
    assert base.vocabulary is not None
    found, width = _class_heads(file, layout), base.vocabulary.head_width
    if len(found) != 1:
        which = "the file holds both" if found else "it is missing"
        names = some(layout.class_heads, len(layout.class_heads))
        faults.add(f"a classification adapter has its head in one of {names}: {which} (modules_to_save)")
        return
    info = file.infos[found[0]]
    if len(info.shape) != 2 or info.shape[1] != width or not 1 <= info.shape[0] <= MAX_CLASSES:
        faults.add(
            f"size mismatch for {shown(info.name)}: the file has {list(info.shape)}, [classes, {width}] is "
            f"needed with 1 to {MAX_CLASSES} classes"
        )
    elif file.complete and file.holds_only(info.name, 0.0):
        faults.add(f"{shown(info.name)} is all zeros: every class would always be equally likely")


def class_count(file: TensorFile, layout: VocabularyLayout) -> int | None:
    """How many classes the head has; None where that can't be said."""
    shapes = [file.infos[key].shape for key in _class_heads(file, layout)]
    return shapes[0][0] if len(shapes) == 1 and len(shapes[0]) == 2 else None


def _check_copies(file: TensorFile, layout: VocabularyLayout, faults: Faults) -> None:
    """What PEFT saves twice must be the same twice: it can't be said which one it would run with."""
    pairs = [(t.key("weight"), t.key("modules_to_save.weight")) for t in layout.tables if t.saved]
    if layout.head.tied:
        tables = (layout.embedding, layout.head)
        endings = (layout.embedding.wrapper + _TOKENS, "weight")
        pairs += [tuple(t.key(ending) for t in tables) for ending in endings]  # type: ignore[misc]
        pairs += list(zip(_keys(layout.embedding), reversed(_keys(layout.head)), strict=False))
    for one, other in pairs:
        if not file.can_read(one) or not file.can_read(other):
            continue
        first, second = file.tensor(one), file.tensor(other)
        transposed = one.endswith(("lora_embedding_A", "lora_embedding_B"))
        first = first.T if transposed else first
        if first.dtype != second.dtype or not torch.equal(first, second):
            faults.add(f"{shown(one)} and {shown(other)} are one tensor in PEFT, and differ in the file")


def _keys(table: TableLayout) -> list[str]:
    return [table.key(ending) for ending in _factors(table)]


def _lora_keys(table: TableLayout, layout: VocabularyLayout) -> list[str]:
    return _keys(layout.embedding if table.tied else table)


def _table_key(file: TensorFile, table: TableLayout, layout: VocabularyLayout) -> str | None:
    """The whole table that the file has for ``table``, or, where both are one tensor, for the other."""
    other = layout.embedding if table.is_head else layout.head
    keys = [table.key(ending) for ending in _whole(table) if ending != "original_module.weight"]
    if table.tied:
        keys += [other.key(ending) for ending in _whole(other)]
    elif layout.tied and not table.saved:
        keys += [other.key(e) for e in _whole(other) if not other.saved or e == "original_module.weight"]
    return next((key for key in keys if key in file.infos), None)


def _read(file: TensorFile, table: TableLayout, layout: VocabularyLayout) -> TableDelta | None:
    key = _table_key(file, table, layout)
    whole = None if key is None else file.tensor(key)
    if whole is None and not table.changes:
        return None
    source = layout.embedding if table.tied else table
    rows = file.tensor(source.key(*_rows(source))) if table.tokens else None
    if table.lora is None:
        return TableDelta(whole, table.tokens, rows)
    a, b = (file.tensor(key) for key in _lora_keys(table, layout))
    if table.tied:  # the head's A and B are the embeddings' B and A, transposed
        a, b = b.T, a.T
    return TableDelta(whole, table.tokens, rows, a, b, table.lora.scaling)
