"""The scales of an adapter's modules: by alpha tensors, by a config, or by what a tool takes for granted."""

from __future__ import annotations

from collections.abc import Mapping

from manylora.adapters.format.config.config import AdapterConfig
from manylora.adapters.format.config.patterns import Deadline, PatternFault, assign
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.foreign.names import PREFIX, Part, Rule, Spelled
from manylora.adapters.format.foreign.spelling.named import Named
from manylora.adapters.format.weights.tensors import TensorFile

OWN_ALPHA = frozenset({Rule.DOWN_UP, Rule.DIFFUSERS})  # spellings of tools to which no alpha means alpha = r


def scales_of(
    parsed: AdapterConfig | None, named: Named, file: TensorFile, faults: Faults
) -> Mapping[str, float]:
    """What B A is multiplied with, by path, as far as it is known: by its alpha tensor, or by the config."""
    ranks = {path: _rank(parts, file) for path, parts in named.parts.items()}
    scales: dict[str, float] = {}
    if parsed is not None:
        scales |= _scales_by_config(parsed, named, ranks, faults)
    for path, parts in named.parts.items():
        if Part.ALPHA in parts and ranks[path]:
            alpha = _number(parts[Part.ALPHA].key, file, faults)
            scale = alpha / ranks[path]
            if path in scales and abs(scales[path] - scale) > 1e-3 * abs(scale):
                faults.add(f"{shown(parts[Part.ALPHA].key)} is {alpha:g}, and the config says otherwise")
            scales[path] = scale
        elif path not in scales and any(part.rule in OWN_ALPHA for part in parts.values()):
            scales[path] = 1.0
    missing = [path for path, parts in named.parts.items() if path not in scales and Part.A in parts]
    if missing and not len(faults):
        faults.add(
            f"alpha of {some(missing, len(missing))} is not known: put an adapter_config.json with "
            "peft_type, r, lora_alpha and target_modules beside the weights"
        )
    return scales


def _scales_by_config(
    parsed: AdapterConfig, named: Named, ranks: Mapping[str, int], faults: Faults
) -> dict[str, float]:
    names = {path: path.removeprefix(PREFIX) for path in named.parts}
    try:
        deadline = Deadline()
        own_ranks = assign(parsed.rank_pattern, list(names.values()), deadline)
        own_alphas = assign(parsed.alpha_pattern, list(names.values()), deadline)
    except PatternFault as fault:
        faults.add(f"rank_pattern or alpha_pattern: {fault}")
        return {}
    scales = {}
    for path, name in names.items():
        rank = parsed.rank_pattern[own_ranks[name]] if name in own_ranks else parsed.r
        alpha = parsed.alpha_pattern[own_alphas[name]] if name in own_alphas else parsed.alpha
        if ranks[path] and ranks[path] not in (rank, 2 * rank, 3 * rank):
            faults.add(f"rank of {shown(path)} is {ranks[path]} in its tensors and {rank} in the config")
        scales[path] = alpha / (rank**0.5 if parsed.use_rslora else rank)
    return scales


def _rank(parts: Mapping[Part, Spelled], file: TensorFile) -> int:
    """The rank by B, which fused projections share: 0 where B is missing or no matrix."""
    for part, axis in ((Part.B, 1), (Part.EMBEDDING_B, 1)):
        if part in parts and len(file.infos[parts[part].key].shape) >= 2:
            shape = file.infos[parts[part].key].shape
            a = parts.get(Part.A)
            turned = (
                a is not None
                and len(file.infos[a.key].shape) == 2
                and (file.infos[a.key].shape[0] != shape[1] and file.infos[a.key].shape[1] == shape[0])
            )
            return shape[0] if turned else shape[axis]
    return 0


def _number(key: str, file: TensorFile, faults: Faults) -> float:
    info = file.infos[key]
    if info.shape not in ((), (1,)) or not file.can_read(key):
        faults.add(f"{shown(key)} should hold one number in F32, F16 or BF16")
        return 1.0
    return float(file.tensor(key).float().reshape(()))
