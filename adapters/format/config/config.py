"""``adapter_config.json``: parsed against the allow-list of its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from manylora.adapters.format.config.foreign_keys import Judgement, judge, note
from manylora.adapters.format.config.reader import Bias, ConfigReader, Selector, flag_of
from manylora.adapters.format.config.soft_prompts import (
    SOFT_PROMPT_OPTIONS,
    SoftPromptConfig,
    parse_soft_prompt,
)
from manylora.adapters.format.config.support import INITS, KINDS, OPTIONS, Option, Treatment
from manylora.adapters.format.config.weight_kind import Kinds, WeightKind
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.files import classifies, enum_name
from manylora.adapters.format.update import KindSettings

MAX_LAYERS_PATTERNS = 16
MAX_INVOCATION_TOKENS = 256
MAX_SAVED_MODULES = 16
MAX_TRAINED_TOKENS = 1 << 20
MAX_TARGET_PARAMETERS = 1000
CLASS_HEADS = ("score", "classifier")  # what transformers calls the head of a classification model
TASKS = ("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION")
_DEFAULT_RANK = {"LORA": 8, "VERA": 256}  # 1 of kinds that have none
_DEFAULT_ALPHA = 8
_NO_FURTHER: Kinds = MappingProxyType({})
_READ_FOR_ALL = frozenset(  # keys of further kinds that this parser reads, not they
    (
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias",
        "modules_to_save", "base_model_name_or_path", "peft_version",
    )
)  # fmt: skip
_LIBRARY = re.compile(r"[A-Za-z_]\w{0,99}(\.\w{1,100}){0,20}", re.ASCII)  # the path of a module of Python


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of the config that decides what the adapter computes. Absent keys have PEFT's defaults."""

    kind: str  # the peft_type: LORA, IA3, ...
    r: int  # of LORA and VERA
    alpha: float  # of LORA only
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    bias: Bias
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: Selector
    exclude_modules: Selector
    layers_to_transform: frozenset[int]  # empty: all of them
    layers_patterns: tuple[str, ...]
    activation: tuple[int, ...] | None  # the tokens that switch an aLoRA on; None for any other adapter
    classifies: bool  # it has a head over classes, where the base has one over tokens
    modules_to_save: tuple[str, ...]  # endings of the names of modules that are replaced as a whole
    tokens: Mapping[str, tuple[int, ...]]  # ending of a table's name ("": the embeddings) -> replaced rows
    ensure_weight_tying: bool
    feedforward_modules: Selector  # of IA3: those whose input is scaled
    projection_key: int | None  # of VERA: the seed of its projections; None where they are saved
    base_model_name: str | None  # only a hint
    peft_version: str | None
    target_parameters: tuple[str, ...] = ()  # endings of the names of weights that LoRA is put on
    settings: KindSettings | None = None  # of a further kind: its own keys, which no field above tells
    notes: tuple[str, ...] = ()  # sentences about keys that were left alone
    prompt: SoftPromptConfig | None = None  # virtual tokens, of an adapter that has nothing else

    @property
    def served_as(self) -> str:
        """The kind with what is added to it, as a config alone says it: "LORA", "LORA+DORA", "IA3", ..."""
        return self.served_on(vocabulary=bool(self.modules_to_save or self.tokens), norms=False)

    def served_on(self, *, vocabulary: bool, norms: bool) -> str:
        """The same on a base of which it is known whether tables and norms are replaced."""
        added = {
            "+DORA": self.use_dora,
            "+BIAS": self.lora_bias or self.bias is not Bias.NONE,
            "+NORMS": norms,
            "+VOCABULARY": vocabulary and self.kind != "TRAINABLE_TOKENS",
            "+CLASSES": self.classifies,
            "+ALORA": self.activation is not None,
        }
        return self.kind + "".join(name for name, used in added.items() if used)


def parse_config(
    config: Mapping[str, Any], faults: Faults, kinds: Kinds = _NO_FURTHER
) -> AdapterConfig | None:
    """Check every key of ``config``; ``kinds`` are served beside LoRA, IA3 and VeRA.

    None if it is of no kind that is served, or what it says about modules, ranks and alphas can't be read.
    Options that are refused are faults as well, but the rest of the config can then still be judged.
    """
    kind = _served_kind(config, faults, kinds)
    if kind is None:
        return None
    further = kinds.get(kind)
    options = {**OPTIONS, **SOFT_PROMPT_OPTIONS}[kind] if further is None else further.options
    notes = _check_options(config, options, faults)
    _check_init(config.get("init_lora_weights", True), faults)
    notes += _check_auto_mapping(config.get("auto_mapping"), faults)
    before = len(faults)
    known = {option.key for option in options}
    own = {key: value for key, value in config.items() if key in known}
    settings = None if further is None else further.parse(ConfigReader(own, faults))
    if further is not None:
        own = {key: value for key, value in own.items() if key in _READ_FOR_ALL}
    reader = ConfigReader(own, faults)
    targets = reader.selector("target_modules")
    parameters = reader.names("target_parameters", MAX_TARGET_PARAMETERS)
    prompt = parse_soft_prompt(kind, own, faults)
    nowhere = config.get("target_modules") in (None, "", []) and not parameters
    if nowhere and prompt is None and kind != "TRAINABLE_TOKENS":
        faults.add("target_modules is missing or empty: name the modules that the adapter changes")
    indices = reader.indices("layers_to_transform")
    patterns = reader.names("layers_pattern", MAX_LAYERS_PATTERNS)
    notes += _check_layers(targets, bool(indices), bool(patterns), further, faults)
    result = AdapterConfig(
        kind=kind,
        r=reader.rank("r", _given(own, "r", _DEFAULT_RANK.get(kind, 1))),
        alpha=reader.alpha("lora_alpha", _given(own, "lora_alpha", _DEFAULT_ALPHA)),
        use_rslora=reader.flag("use_rslora"),
        use_dora=reader.flag("use_dora"),
        lora_bias=reader.flag("lora_bias"),
        bias=reader.bias(),
        rank_pattern=reader.pattern("rank_pattern", reader.rank),
        alpha_pattern=reader.pattern("alpha_pattern", reader.alpha),
        target_modules=targets,
        exclude_modules=reader.selector("exclude_modules"),
        layers_to_transform=indices,
        layers_patterns=patterns,
        activation=reader.tokens("alora_invocation_tokens", MAX_INVOCATION_TOKENS),
        classifies=classifies(config),
        modules_to_save=_saved(reader, config),
        tokens=_tokens(reader, kind),
        ensure_weight_tying=reader.flag("ensure_weight_tying"),
        feedforward_modules=reader.selector("feedforward_modules"),
        projection_key=reader.seed("projection_prng_key", 0, saved="save_projection")
        if kind == "VERA"
        else None,
        base_model_name=reader.text("base_model_name_or_path"),
        peft_version=reader.text("peft_version"),
        target_parameters=parameters,
        settings=settings,
        notes=tuple(notes),
        prompt=prompt,
    )
    _check_combination(result, config, faults)
    return result if len(faults) == before else None


def _check_layers(
    targets: Selector, indices: bool, patterns: bool, further: WeightKind | None, faults: Faults
) -> list[str]:
    """Whether blocks may be selected beside those targets; notes on what PEFT does not read."""
    notes = []
    if isinstance(targets, str) and (indices or patterns):
        if further is not None and further.strings_ignore_layers:
            notes.append("layers_to_transform is not read where target_modules is a string, as in PEFT")
        else:
            faults.add(
                "layers_to_transform and layers_pattern cannot be used when target_modules is a string"
            )
    if patterns and not indices:
        faults.add("when layers_pattern is specified, layers_to_transform must also be specified")
    return notes


def _given(config: Mapping[str, Any], key: str, default: object) -> object:
    """The value of a key; PEFT's default where it is absent or null."""
    value = config.get(key)
    return default if value is None else value


def _tokens(reader: ConfigReader, kind: str) -> dict[str, tuple[int, ...]]:
    """The tokens whose rows are replaced, by the ending of their table's name."""
    if kind != "TRAINABLE_TOKENS":
        return reader.tokens_by_table("trainable_token_indices")
    tokens = reader.tokens("token_indices", MAX_TRAINED_TOKENS, least=0)
    return {"": () if tokens is None else tokens}


def _saved(reader: ConfigReader, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules to save of the base; a classification head is none of those, and always saved."""
    names = reader.names("modules_to_save", MAX_SAVED_MODULES)
    return tuple(name for name in names if name not in CLASS_HEADS) if classifies(config) else names


def _check_combination(result: AdapterConfig, config: Mapping[str, Any], faults: Faults) -> None:
    """What is served alone, but not together: PEFT has no meaning for it, or another one."""
    if result.use_dora and result.lora_bias:
        faults.add("lora_bias cannot be used with use_dora")
    if result.use_dora and result.activation is not None:
        faults.add("alora_invocation_tokens cannot be used with use_dora")
    if result.bias is not Bias.NONE and result.activation is not None:
        faults.add("bias cannot be used with alora_invocation_tokens: it would act before the activation too")
    if result.prompt is not None and result.modules_to_save:
        faults.add("modules_to_save is not served beside virtual tokens: only a classification head is")
    if result.target_parameters:
        others = {
            "use_dora": result.use_dora,
            "lora_bias": result.lora_bias,
            "bias": result.bias is not Bias.NONE,
            "alora_invocation_tokens": result.activation is not None,
        }
        for name in (name for name, used in others.items() if used):
            faults.add(f"{name} cannot be used with target_parameters")
    if result.kind == "IA3" and config.get("feedforward_modules") is None:
        faults.add("feedforward_modules is missing: name the modules whose input is scaled, or none ([])")


def _served_kind(config: Mapping[str, Any], faults: Faults, kinds: Kinds) -> str | None:
    peft_type, name = config.get("peft_type"), enum_name(config.get("peft_type"))
    if isinstance(name, str) and (name in OPTIONS or name in SOFT_PROMPT_OPTIONS or name in kinds):
        return name
    kind = next((kind for kind in KINDS if kind.peft_type == name), None)
    if peft_type is None:
        faults.add("peft_type is missing: this is not the config of a PEFT adapter")
    elif kind is None:
        served = ", ".join((*OPTIONS, *kinds, *SOFT_PROMPT_OPTIONS))
        faults.add(
            f"peft_type {shown(peft_type)} is not a kind of adapter this server knows; served: {served}"
        )
    else:
        faults.add(f"peft_type {kind.peft_type} is not served: {_because(kind.note, kind.remedy)}")
    return None


def _check_auto_mapping(value: Any, faults: Faults) -> list[str]:
    """Notes on it. Nothing it names is ever imported: the tensors say whether the base can run them."""
    if not value:  # null or empty
        return []
    library = value.get("parent_library") if isinstance(value, dict) else None
    if not isinstance(library, str) or not _LIBRARY.fullmatch(library):
        faults.add(f"auto_mapping={shown(value)} does not name a class of a library: set it to null")
        return []
    if library.partition(".")[0] == "transformers":
        return []
    return [f"auto_mapping names {shown(library)}, which is not imported: the base runs by its own class"]


def _check_options(config: Mapping[str, Any], known: Sequence[Option], faults: Faults) -> list[str]:
    """Notes on keys that were left alone."""
    options = {option.key: option for option in known}
    task = enum_name(config.get("task_type"))
    if task not in (None, "", *TASKS):
        shown_task = shown(config["task_type"])
        faults.add(f"task_type {shown_task} is not served: only {', '.join(TASKS)} are")
    noted = []
    for key, value in config.items():
        option = options.get(key)
        if option is not None:
            if option.treatment is Treatment.REFUSED and not _is_off(option, value):
                faults.add(_refusal(option, value))
            continue
        judgement = judge(key, value)
        if judgement is Judgement.REFUSED:
            faults.add(f"{shown(key)} is not an option this server knows, and it is set to {shown(value)}")
        elif judgement is Judgement.NOTED:
            noted.append(key)
    return [note(noted)] if noted else []


def _is_off(option: Option, value: object) -> bool:
    """Whether ``value`` leaves a refused option unused: 0 and "false" switch a flag off as false does."""
    return option.is_off(value) or value == "" or (False in option.off and flag_of(value) is False)


def _refusal(option: Option, value: object) -> str:
    return f"{option.key}={shown(value)} is not served: {_because(option.note, option.remedy)}"


def _because(reason: str, remedy: str) -> str:
    return f"{reason} ({remedy})" if remedy else reason


def _check_init(value: object, faults: Faults) -> None:
    if value is None or flag_of(value) is not None:  # PEFT treats null as false
        return
    text = value.lower() if isinstance(value, str) else ""
    init = next((init for init in INITS if init.matches(text)), None)
    if init is None or init.value in ("true", "false"):
        faults.add(f"init_lora_weights={shown(value)} is not an initialization this server knows")
    elif init.treatment is Treatment.REFUSED:
        faults.add(f"init_lora_weights={shown(value)} is not served: {_because(init.note, init.remedy)}")
