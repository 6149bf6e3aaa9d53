"""Does every tensor belong to a module of the base, with the right shape, and does the whole do anything?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.config import CLASS_HEADS
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES
from manylora.adapters.format.update import Slot
from manylora.adapters.format.vocabulary.layout import VocabularyLayout
from manylora.adapters.format.vocabulary.tensors import check_vocabulary, claimed, does_something
from manylora.adapters.format.weights.expected_tensors import PREFIX, Layout, tensor_keys
from manylora.adapters.format.weights.soft_prompt import COLUMNS, ROWS, TABLE
from manylora.adapters.format.weights.tensors import TensorFile

_ENDINGS = "|".join(re.escape(ending) for kind in KINDS_OF_UPDATES.values() for ending in kind.endings)
_SHARED = tuple(name for kind in KINDS_OF_UPDATES.values() for name in kind.shared)
_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)\."
    r"(lora_[AB]\.weight|lora_B\.bias|lora_magnitude_vector|ia3_l|vera_lambda_[bd]|base_layer\.bias|bias"
    rf"|ln_tuning_layers\.(?:weight|bias)|{_ENDINGS})",
    re.DOTALL,
)
_NAMED_KEY = re.compile(r".*\.lora_[AB]\.[^.]+\.weight", re.DOTALL)
_OPTION_OF = {  # the endings of tensors that belong to an option, and how to say that it is not set
    ".lora_magnitude_vector": "the config does not set use_dora",
    ".lora_B.bias": "the config does not set lora_bias",
    ".base_layer.bias": "the config's bias does not select them",
}
_CLASS_HEADS = tuple(f"{PREFIX}{name}.weight" for name in CLASS_HEADS)
_PLACED = ("base_model.vera_A", "base_model.vera_B", TABLE, COLUMNS, ROWS, *_CLASS_HEADS)  # on any base
_EXAMPLES = 4  # tensors or modules named in one fault


def check_tensors(
    file: TensorFile,
    layout: Layout | None,
    base: BaseModel,
    max_rank: int,
    faults: Faults,
    *,
    tables: VocabularyLayout | None = None,
) -> None:
    """Compare the file with what the config asks for; ``layout`` is None if that is not known.

    ``tables`` is what it says about embeddings and head, None where the base's can't be changed.
    """
    _check_strays(file, layout, base, frozenset() if tables is None else claimed(tables), faults)
    if tables is not None:
        check_vocabulary(file, tables, base, max_rank, faults)
    if layout is None:
        _check_pairs(file, base, faults)
    else:
        _check_missing(file, layout, faults)
        _check_shapes(file, layout, faults)
    _check_ranks(file, layout, base, max_rank, faults)
    if file.complete:
        _check_finite(file, faults)
        if tables is None or not does_something(file, tables):
            _check_effect(file, layout, base, faults)
            if tables is not None and tables.changes and layout is not None and not layout.modules:
                faults.add(
                    "the adapter would do nothing: A or B of each table is all zeros (was it trained?)"
                )


def _check_strays(
    file: TensorFile, layout: Layout | None, base: BaseModel, tables: frozenset[str], faults: Faults
) -> None:
    """Every tensor without a place is a fault, told by kind."""
    expected = None if layout is None else {slot.key for slot in layout.slots()}
    strays: dict[str, list[str]] = {}
    for key in file.infos:
        if key in tables or (expected is not None and key in expected):
            continue
        name = _module_of(key, base)
        reason = _why_stray(key, name, base) or ("" if layout is None else _why_unasked(key, name, layout))
        if reason:
            strays.setdefault(reason, []).append(key)
    for reason, keys in strays.items():
        faults.add(f"unexpected tensors {some(keys, len(keys), _EXAMPLES)}: {reason}")


def _module_of(key: str, base: BaseModel) -> str:
    """The module whose tensor the key names; empty if it names none that is served."""
    match = _KEY.fullmatch(key)
    if match:
        return match["module"]
    norm = key.removeprefix(PREFIX).removesuffix(".weight")  # in modules_to_save
    return norm if norm in base.norms else ""


def _why_stray(key: str, module: str, base: BaseModel) -> str:
    """Why no config could place the tensor on this base; empty if one could."""
    known = module in base.modules or module in base.norms or module in base.expert_layers
    if known or key in _PLACED or key.startswith(_SHARED):
        return ""
    if module.removesuffix(".base_layer") in {stack.module for stack in base.experts.values()}:
        return "target_parameters does not name the weights of those experts"
    tables = () if base.vocabulary is None else (base.vocabulary.embedding, base.vocabulary.head)
    if any(key.startswith(f"{PREFIX}{table}.") for table in tables):
        return "the config does not change the embeddings or the output head in that way"
    if module in base.others or ".lora_embedding_" in key:
        return "outside the decoder blocks only the input embeddings and the output head can be changed"
    return _why_unknown(key, module, base)


def _why_unknown(key: str, module: str, base: BaseModel) -> str:
    if _NAMED_KEY.fullmatch(key):
        return "their names hold an adapter's name; save the adapter with PEFT's save_pretrained"
    if not module:
        return f"they are not named {PREFIX}<module>.lora_A.weight or as another tensor that is served"
    return f"no such linear layers in the base model ({base.architecture})"


def _why_unasked(key: str, module: str, layout: Layout) -> str:
    if key in (TABLE, COLUMNS, ROWS):
        return "the virtual tokens of another kind of adapter"
    if key in _CLASS_HEADS:
        return 'the head of a classification adapter, whose task_type is "SEQ_CLS"'
    if module and module not in layout.modules and not key.endswith(f"{module}.bias"):
        whole = key == f"{PREFIX}{module}.weight"
        selects = (
            "neither target_modules nor modules_to_save selects"
            if whole
            else "target_modules does not select"
        )
        return f"{selects} their modules"
    for ending, reason in _OPTION_OF.items():
        if key.endswith(ending):
            return reason
    if key.startswith("base_model.vera_"):
        return "the config does not set save_projection"
    return f"a {layout.config.kind} adapter with this config has no such tensors"


def _check_missing(file: TensorFile, layout: Layout, faults: Faults) -> None:
    bare, missing = [], []
    for name, parts in layout.modules.items():
        absent = [slot.key for slot in parts.values() if slot.key not in file.infos]
        if name in layout.targets and parts and len(absent) == len(parts):
            bare.append(name)
        else:
            missing += absent
    missing += [slot.key for slot in layout.shared.values() if slot.key not in file.infos]
    if bare:
        faults.add(f"the config selects modules that have no tensors: {some(bare, len(bare), _EXAMPLES)}")
    if missing:
        faults.add(f"missing tensors: {some(missing, len(missing), _EXAMPLES)}")


def _check_shapes(file: TensorFile, layout: Layout, faults: Faults) -> None:
    wrong = []
    for name, parts in layout.modules.items():
        stacked = "a" in parts and parts["a"].shape[0] != layout.targets[name].rank  # of experts
        other = None if layout.plans or stacked else _other_rank(file, parts)
        if other is not None:
            here, rank = parts.items(), layout.targets[name].rank
            wrong.append(f"rank of {shown(name)} is {other} in its tensors and {rank} in the config")
            wrong += _mismatches(file, [slot for part, slot in here if part not in ("a", "b")])
        else:
            wrong += _mismatches(file, list(parts.values()))
    wrong += _mismatches(file, list(layout.shared.values()))
    _add_some(wrong, faults)


def _other_rank(file: TensorFile, parts: Mapping[str, Slot]) -> int | None:
    """The rank of A and B if they agree with each other and the base, but not with the config."""
    if "a" not in parts or any(parts[part].key not in file.infos for part in ("a", "b")):
        return None
    a, b = file.infos[parts["a"].key].shape, file.infos[parts["b"].key].shape
    rank = a[0] if a else 0
    (wanted, width_in), (width_out, _) = parts["a"].shape, parts["b"].shape
    agree = rank > 0 and (a, b) == ((rank, width_in), (width_out, rank))
    return rank if agree and rank != wanted else None


def _check_pairs(file: TensorFile, base: BaseModel, faults: Faults) -> None:
    """The shapes of A and B alone, when the config does not say more."""
    pairs = _pairs(file, base)
    _add_some([fault for pair in pairs for fault in _mismatches(file, list(pair.values()))], faults)


def _pairs(file: TensorFile, base: BaseModel) -> list[dict[str, Slot]]:
    """The modules that have A and B, with the rank that A has."""
    pairs = []
    for name, module in base.modules.items():
        a, b = tensor_keys(name)
        if a in file.infos and b in file.infos:
            rank = max(1, next(iter(file.infos[a].shape), 0))
            pair = {"a": Slot(a, (rank, module.in_features)), "b": Slot(b, (module.out_features, rank))}
            pairs.append(pair)
    return pairs


def _mismatches(file: TensorFile, slots: Sequence[Slot]) -> list[str]:
    return [
        f"size mismatch for {shown(slot.key)}: the file has {list(info.shape)}, {list(slot.shape)} is needed"
        for slot in slots
        if (info := file.infos.get(slot.key)) is not None and info.shape not in (slot.shape, *slot.others)
    ] + [
        f"{shown(slot.key)} holds {file.infos[slot.key].dtype}, integers are needed"
        for slot in slots
        if slot.integers
        and not slot.as_floats
        and slot.key in file.infos
        and not file.holds_integers(slot.key)
    ]


def _add_some(wrong: list[str], faults: Faults) -> None:
    if len(wrong) > _EXAMPLES:
        wrong[_EXAMPLES:] = [f"and {len(wrong) - _EXAMPLES} more tensors of wrong shape"]
    for sentence in wrong:
        faults.add(sentence)


def _check_ranks(
    file: TensorFile, layout: Layout | None, base: BaseModel, max_rank: int, faults: Faults
) -> None:
    if layout is not None and layout.plans:
        _check_rank(*max((plan.stated_rank, name) for name, plan in layout.plans.items()), max_rank, faults)
        return
    if layout is not None and layout.config.kind == "VERA":
        if layout.config.r > max_rank:
            faults.add(
                f"rank {layout.config.r} is above the limit of {max_rank}: VeRA is served as LoRA of its "
                f"rank, so start the server with --max-lora-rank {layout.config.r}"
            )
        return
    if layout is not None:
        stacked = [(layout.targets[name].rank, name) for name in base.experts if name in layout.targets]
        _check_rank(*max(stacked, default=(0, "")), max_rank, faults)
    keys = {name: tensor_keys(name) for name in (*base.modules, *base.expert_layers)}
    ranks = [
        (file.infos[a].shape[:1], name)
        for name, (a, b) in keys.items()
        if a in file.infos and b in file.infos
    ]
    rank, name = max(ranks, default=((), ""))
    _check_rank(rank[0] if rank else 0, name, max_rank, faults)


def _check_rank(rank: int, name: str, max_rank: int, faults: Faults) -> None:
    if rank > max_rank:
        faults.add(f"rank {rank} of {shown(name)} is above the limit of {max_rank} (--max-lora-rank)")


def _check_finite(file: TensorFile, faults: Faults) -> None:
    broken = file.not_finite()
    if broken:
        faults.add(f"NaN or infinite values in {some(broken, len(broken), _EXAMPLES)}")


def _check_effect(file: TensorFile, layout: Layout | None, base: BaseModel, faults: Faults) -> None:
    """Magnitudes, biases and the updates of further kinds are judged when they meet the base's weights."""
    if layout is not None and layout.plans:
        return
    known = _pairs(file, base) if layout is None else layout.modules.values()
    parts = [p for p in known if all(slot.key in file.infos for slot in p.values())]
    if not parts or any({"magnitude", "bias", "scale"} & p.keys() for p in parts):
        return
    if not any(_does_something(file, p) for p in parts):
        faults.add(f"the adapter would do nothing: {_idle(layout)} (was it trained?)")


def _does_something(file: TensorFile, parts: Mapping[str, Slot]) -> bool:
    if any(file.holds_only(parts[p].key, 1.0) for p in ("input_scale", "output_scale") if p in parts):
        return False
    if "b_bias" in parts and not file.holds_only(parts["b_bias"].key, 0.0):
        return True
    factors = [parts[p].key for p in ("a", "b", "a_scale", "b_scale") if p in parts]
    return not any(file.holds_only(key, 0.0) for key in factors)


def _idle(layout: Layout | None) -> str:
    kind = "LORA" if layout is None else layout.config.kind
    return {
        "IA3": "every scale is 1",
        "VERA": "vera_lambda_b or vera_lambda_d of every module is all zeros",
    }.get(kind, "lora_A or lora_B of every module is all zeros")
