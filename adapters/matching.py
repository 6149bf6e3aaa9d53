"""Does every tensor belong to a module of the base, with the right shape, and does the whole do anything?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adapters.base import BaseModel, TargetModule
from adapters.faults import Faults, shown, some
from adapters.targets import ModuleLora
from adapters.tensors import TensorFile

PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight", re.DOTALL)
_NAMED_KEY = re.compile(r".*\.lora_[AB]\.[^.]+\.weight", re.DOTALL)
_EXAMPLES = 4  # tensors or modules named in one fault


def tensor_keys(module: str) -> tuple[str, str]:
    """The names under which PEFT saves A and B of ``module``."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def check_tensors(
    file: TensorFile, targets: Mapping[str, ModuleLora] | None, base: BaseModel, max_rank: int, faults: Faults
) -> None:
    """Compare the file with the modules the config selects; ``targets`` is None if that is not known."""
    found = _sort_out(file, targets, base, faults)
    if targets is not None:
        _check_missing(file, targets, found, faults)
    complete = [name for name in base.modules if all(key in file.infos for key in tensor_keys(name))]
    _check_shapes(file, complete, targets, base, faults)
    _check_ranks(file, complete, max_rank, faults)
    if file.complete:
        _check_values(file, complete, faults)


def _sort_out(
    file: TensorFile, targets: Mapping[str, ModuleLora] | None, base: BaseModel, faults: Faults
) -> set[str]:
    """The modules that have tensors; every tensor without a place is a fault, told by kind."""
    found: set[str] = set()
    strays: dict[str, list[str]] = {}
    for key in file.infos:
        match = _KEY.fullmatch(key)
        name = match["module"] if match else ""
        if name not in base.modules:
            strays.setdefault(_why_stray(key, name, base), []).append(key)
        elif targets is not None and name not in targets:
            strays.setdefault("target_modules does not select their modules", []).append(key)
        else:
            found.add(name)
    for reason, keys in strays.items():
        faults.add(f"unexpected tensors {some(keys, len(keys), _EXAMPLES)}: {reason}")
    return found


def _why_stray(key: str, module: str, base: BaseModel) -> str:
    if module in base.others or ".lora_embedding_" in key:
        return (
            "only linear layers inside the decoder blocks are served yet, not embeddings or the output head"
        )
    if key.endswith(".lora_magnitude_vector"):
        return "DoRA's magnitudes are not served yet"
    if key.endswith(".lora_B.bias"):
        return "a bias on B (lora_bias) is not served"
    if _NAMED_KEY.fullmatch(key):
        return "their names hold an adapter's name; save the adapter with PEFT's save_pretrained"
    if not module:
        return f"they are not named {PREFIX}<module>.lora_A.weight or .lora_B.weight"
    return f"no such linear layers in the base model ({base.architecture})"


def _check_missing(
    file: TensorFile, targets: Mapping[str, ModuleLora], found: set[str], faults: Faults
) -> None:
    bare = [name for name in targets if name not in found]
    if bare:
        faults.add(f"the config selects modules that have no tensors: {some(bare, len(bare), _EXAMPLES)}")
    halves = [key for name in targets if name in found for key in tensor_keys(name) if key not in file.infos]
    if halves:
        faults.add(f"missing tensors: {some(halves, len(halves), _EXAMPLES)}")


def _check_shapes(
    file: TensorFile,
    modules: Sequence[str],
    targets: Mapping[str, ModuleLora] | None,
    base: BaseModel,
    faults: Faults,
) -> None:
    wrong: list[str] = []
    for name in modules:
        target = targets.get(name) if targets is not None else None
        wrong += _shape_faults(file, base.modules[name], target)
    if len(wrong) > _EXAMPLES:
        wrong[_EXAMPLES:] = [f"and {len(wrong) - _EXAMPLES} more tensors of wrong shape"]
    for sentence in wrong:
        faults.add(sentence)


def _shape_faults(file: TensorFile, module: TargetModule, target: ModuleLora | None) -> list[str]:
    keys = tensor_keys(module.name)
    a, b = (file.infos[key].shape for key in keys)
    rank = a[0] if a else 0
    expected = ((rank, module.in_features), (module.out_features, rank))
    if target is not None and rank > 0 and (a, b) == expected:
        if rank == target.rank:
            return []
        return [f"rank of {shown(module.name)} is {rank} in its tensors and {target.rank} in the config"]
    if target is not None:
        expected = ((target.rank, module.in_features), (module.out_features, target.rank))
    return [
        f"size mismatch for {shown(key)}: the file has {list(shape)}, {list(want)} is needed"
        for key, shape, want in zip(keys, (a, b), expected, strict=True)
        if shape != want or 0 in shape
    ]


def _check_ranks(file: TensorFile, modules: Sequence[str], max_rank: int, faults: Faults) -> None:
    ranks = [(file.infos[tensor_keys(name)[0]].shape[:1], name) for name in modules]
    rank, name = max(ranks, default=((), ""))
    if rank and rank[0] > max_rank:
        faults.add(f"rank {rank[0]} of {shown(name)} is above the limit of {max_rank} (--max-lora-rank)")


def _check_values(file: TensorFile, modules: Sequence[str], faults: Faults) -> None:
    broken = file.not_finite()
    if broken:
        faults.add(f"NaN or infinite values in {some(broken, len(broken), _EXAMPLES)}")
    if modules and not any(all(file.any_nonzero(key) for key in tensor_keys(name)) for name in modules):
        faults.add(
            "the adapter would do nothing: lora_A or lora_B of every module is all zeros (was it trained?)"
        )
