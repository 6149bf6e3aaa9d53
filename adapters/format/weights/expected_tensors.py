"""The tensors that an artifact must hold: their names, and the shapes they must have on this base.

A slot's part is the field of :class:`ModuleDelta` that its tensor becomes. VeRA's modules share one A and
one B, as large as the largest of them needs, of which each takes its share.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.config.config import AdapterConfig
from manylora.adapters.format.config.reader import Bias
from manylora.adapters.format.config.targets import Target, saved_modules
from manylora.adapters.format.experts import ExpertStack
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.update import ModulePlan, Slot
from manylora.adapters.format.weights.soft_prompt import soft_prompt_shapes

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Layout:
    """Every tensor that an artifact must hold."""

    config: AdapterConfig
    targets: Mapping[str, Target]
    modules: Mapping[str, Mapping[str, Slot]]  # module -> part -> slot; targets, then others with a bias
    shared: Mapping[str, Slot]  # part -> slot, of what modules share, or of virtual tokens
    plans: Mapping[str, ModulePlan] = field(default_factory=dict)  # of the targets, for a further kind
    saved_norms: frozenset[str] = frozenset()  # replaced as a whole, of modules_to_save

    def slots(self) -> list[Slot]:
        """Every tensor of the layout."""
        return [slot for parts in (*self.modules.values(), self.shared) for slot in parts.values()]


def tensor_keys(module: str) -> tuple[str, str]:
    """The names under which PEFT saves A and B of ``module``."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def lay_out(
    config: AdapterConfig, targets: Mapping[str, Target], base: BaseModel, faults: Faults
) -> Layout | None:
    """The tensors that a config with those target modules needs on ``base``.

    None, and faults, where a further kind does not fit the modules.
    """
    if config.prompt is not None:
        shapes = soft_prompt_shapes(config.prompt, base)
        return Layout(config, {}, {}, {key: Slot(key, shape) for key, shape in shapes.items()})
    plans: Mapping[str, ModulePlan] = {}
    shared = _projections(config, targets, base)
    if config.settings is not None:
        before = len(faults)
        laid_out = config.settings.lay_out([base.modules[name] for name in targets], faults)
        if len(faults) != before:
            return None
        plans, shared = laid_out.modules, dict(laid_out.shared)
    modules: dict[str, Mapping[str, Slot]]
    if config.kind == "LN_TUNING":
        modules = {name: _norm_parts(base.norms[name], "ln_tuning_layers.") for name in targets}
    else:
        modules = {
            name: _slots(config, base, name, targets)
            if config.settings is None
            else {**plans[name].slots, **_bias(config, base.modules[name])}
            for name in targets
        }
    norms = saved_modules(config, base) & base.norms.keys()
    _check_saved_norms(config, norms, targets, base, faults)
    modules |= {name: _norm_parts(base.norms[name]) for name in norms - targets.keys()}
    if config.bias is Bias.ALL:
        for module in (*base.modules.values(), *base.norms.values()):
            if module.bias and module.name not in modules:
                modules[module.name] = {"bias": Slot(f"{PREFIX}{module.name}.bias", (module.out_features,))}
    return Layout(config, targets, modules, shared, plans, norms)


def projection_shapes(
    config: AdapterConfig, targets: Mapping[str, Target], base: BaseModel
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of VeRA's shared A and B: as large as the largest of the target modules needs them."""
    modules = [base.modules[name] for name in targets]
    width_in, width_out = max(m.in_features for m in modules), max(m.out_features for m in modules)
    return (config.r, width_in), (width_out, config.r)


def _parts(config: AdapterConfig, module: TargetModule, target: Target) -> dict[str, Slot]:
    prefix, width_in, width_out = f"{PREFIX}{module.name}", module.in_features, module.out_features
    parts = {}
    if config.kind == "IA3" and target.feedforward:
        parts["input_scale"] = Slot(f"{prefix}.ia3_l", (1, width_in))
    elif config.kind == "IA3":
        parts["output_scale"] = Slot(f"{prefix}.ia3_l", (width_out, 1))
    elif config.kind == "VERA":
        parts["b_scale"] = Slot(f"{prefix}.vera_lambda_b", (width_out,))
        parts["a_scale"] = Slot(f"{prefix}.vera_lambda_d", (target.rank,))
    else:
        a, b = tensor_keys(module.name)
        parts["a"], parts["b"] = Slot(a, (target.rank, width_in)), Slot(b, (width_out, target.rank))
    if config.use_dora:
        parts["magnitude"] = Slot(f"{prefix}.lora_magnitude_vector", (width_out,))
    if config.lora_bias:
        parts["b_bias"] = Slot(f"{prefix}.lora_B.bias", (width_out,))
    return {**parts, **_bias(config, module)}


def _slots(
    config: AdapterConfig, base: BaseModel, name: str, targets: Mapping[str, Target]
) -> Mapping[str, Slot]:
    """The tensors of one target: a linear layer, or experts under either of their names."""
    if name in base.experts:
        return _expert_parts(base, name, targets)
    target, layer = targets[name], base.expert_layers.get(name)
    if layer is None:
        return _parts(config, base.modules[name], target)
    a, b = tensor_keys(name)
    return {
        "a": Slot(a, (target.rank, layer.in_features)),
        "b": Slot(b, (layer.out_features, target.rank)),
    }


def _expert_parts(base: BaseModel, name: str, targets: Mapping[str, Target]) -> dict[str, Slot]:
    """A and B of all experts together, as PEFT stacks them: [E r, in] by expert, and [out, r E] by rank."""
    stack = base.experts[name]
    ranks = stack.experts * targets[name].rank
    a, b = stack_keys(stack, targets, base)
    return {"a": Slot(a, (ranks, stack.in_features)), "b": Slot(b, (stack.out_features, ranks))}


def stack_keys(stack: ExpertStack, targets: Container[str], base: BaseModel) -> tuple[str, str]:
    """The names under which PEFT saves A and B of a stack of experts, which is one of the ``targets``.

    Of the parameters of one module PEFT wraps the first one in the next: what is within is named so.
    """
    beside = [other.name for other in base.experts.values() if other.module == stack.module]
    wrapped = [other for other in beside if other in targets]
    return tensor_keys(stack.module + ".base_layer" * (len(wrapped) - 1 - wrapped.index(stack.name)))


def _bias(config: AdapterConfig, module: TargetModule) -> dict[str, Slot]:
    """The bias that a target module has in the place of the base's."""
    if config.bias is Bias.NONE or not module.bias:
        return {}
    return {"bias": Slot(f"{PREFIX}{module.name}.base_layer.bias", (module.out_features,))}


def _norm_parts(norm: TargetModule, wrapper: str = "") -> dict[str, Slot]:
    """The parameters of a norm that is replaced, as PEFT saves them under its name and ``wrapper``."""
    prefix, shape = f"{PREFIX}{norm.name}.{wrapper}", (norm.out_features,)
    parts = {"scale": Slot(f"{prefix}weight", shape)}
    return parts | {"bias": Slot(f"{prefix}bias", shape)} if norm.bias else parts


def _check_saved_norms(
    config: AdapterConfig,
    norms: frozenset[str],
    targets: Mapping[str, Target],
    base: BaseModel,
    faults: Faults,
) -> None:
    """What does not go together with norms in ``modules_to_save``."""
    both = sorted(norms & targets.keys())
    if both:
        faults.add(f"target_modules and modules_to_save both select {some(both, len(both))}")
    if norms and config.activation is not None:
        faults.add(
            "norms in modules_to_save cannot be used with alora_invocation_tokens: they act before too"
        )
    if config.bias is Bias.ALL and any(base.norms[name].bias for name in norms):
        faults.add('bias "all" and modules_to_save both replace biases of norms: leave one of them out')


def _projections(config: AdapterConfig, targets: Mapping[str, Target], base: BaseModel) -> dict[str, Slot]:
    if config.kind != "VERA" or config.projection_key is not None:
        return {}
    a, b = projection_shapes(config, targets, base)
    return {"a": Slot("base_model.vera_A", a), "b": Slot("base_model.vera_B", b)}
