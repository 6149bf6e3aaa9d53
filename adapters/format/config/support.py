"""What of PEFT is served: one table that the config parser enforces and a test compares with the docs.

Every ``PeftType`` and every field of the configs of the served kinds has a row, here or in the kind's own
module (``format/kinds/``); a test compares with the installed PEFT, so a new release can't add an option
that is then silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

OFF: tuple[object, ...] = (None, False)  # the values that switch most options off
EMPTY: tuple[object, ...] = (None, [], {})  # the values that leave most lists and mappings unused


class Treatment(StrEnum):
    """What the server does with an option that is set."""

    SERVED = "served"
    NO_EFFECT = "no effect"  # accepted: it changes training or bookkeeping, never what the model computes
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Option:
    """One key of ``adapter_config.json``, and what the server does where it is set."""

    key: str
    treatment: Treatment
    note: str  # served: how; no effect: why; refused: the reason
    remedy: str = ""  # what to do instead, where there is something
    off: tuple[object, ...] = OFF  # for refused ones: the values with which the option is not in use

    def is_off(self, value: object) -> bool:
        """Whether ``value`` leaves the option unused (``0`` is not ``False`` here)."""
        return any(type(value) is type(off) and value == off for off in self.off)


@dataclass(frozen=True, slots=True)
class Kind:
    """One ``peft_type``, and whether it is served or what to do instead."""

    peft_type: str
    note: str
    remedy: str = ""
    treatment: Treatment = Treatment.REFUSED


@dataclass(frozen=True, slots=True)
class Init:
    """One value of ``init_lora_weights``; ``prefix`` where PEFT accepts longer strings (pissa_niter_16)."""

    value: str
    treatment: Treatment
    note: str
    remedy: str = ""
    prefix: bool = False

    def matches(self, value: str) -> bool:
        """Whether PEFT would read ``value`` as this initialization."""
        return value.startswith(self.value) if self.prefix else value == self.value


_SERVED, _NO_EFFECT, _REFUSED = Treatment.SERVED, Treatment.NO_EFFECT, Treatment.REFUSED
_MERGE = "merge it into the base with PEFT and serve the merged model"
_CONVERT_INIT = "save it with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
_PLAIN = "retrain with plain LoRA"
_ROUTING = "routing among adapters is not served"
_MIX = "name a mix of the members, with fixed weights"

COMMON: tuple[Option, ...] = (
    Option("peft_type", _SERVED, "the kinds are in the table below"),
    Option(
        "task_type",
        _SERVED,
        "CAUSAL_LM or null; SEQ_CLS to classify; FEATURE_EXTRACTION to embed; the others have another head",
    ),
    Option("base_model_name_or_path", _NO_EFFECT, "a hint: the base is matched by modules and shapes"),
    Option("revision", _NO_EFFECT, "of the base model, a hint like its name"),
    Option("peft_version", _NO_EFFECT, "recorded with the adapter"),
    Option("inference_mode", _NO_EFFECT, "training only"),
    Option(
        "auto_mapping",
        _SERVED,
        "PEFT writes it when task_type is missing: a ...ForSequenceClassification classifies; refused "
        "unless it names a class of transformers, and never imported",
    ),
)

TARGETS: tuple[Option, ...] = (
    Option(
        "target_modules",
        _SERVED,
        'a list, a regular expression or "all-linear", of the linear layers in the blocks; of LoRA also '
        "the input embeddings and the output head, by name",
    ),
    Option("layers_to_transform", _SERVED, "a layer index or a list of them"),
    Option("layers_pattern", _SERVED, "names of lists of blocks, with layers_to_transform only, as in PEFT"),
)

EXCLUDE = Option("exclude_modules", _SERVED, "a list or a regular expression")

MODULES_TO_SAVE = Option(
    "modules_to_save",
    _SERVED,
    "the input embeddings and the output head: whole tables, of which the rows that differ from the base's "
    "take adapter memory; norms that scale what they normalize, as in LN tuning, but not beside bias "
    '"all" where they have biases, nor in an aLoRA; of an adapter that classifies its head (score or '
    "classifier); other modules are refused",
)

BIAS = Option(
    "bias",
    _SERVED,
    "the trained biases take the place of the base's, in the rows that run the adapter: those of the target "
    "modules (..._only), or of all linear layers in the blocks and all norms that have one (all)",
)

_LORA: tuple[Option, ...] = (
    *COMMON,
    Option("r", _SERVED, "1 up to the server's --max-lora-rank"),
    Option("lora_alpha", _SERVED, "any positive number; the scaling is alpha / r"),
    Option("use_rslora", _SERVED, "the scaling is alpha / √r"),
    Option("rank_pattern", _SERVED, "per module, with PEFT's matching: the first pattern that fits wins"),
    Option("alpha_pattern", _SERVED, "as rank_pattern"),
    *TARGETS,
    EXCLUDE,
    Option("init_lora_weights", _SERVED, "those that leave the base as it was; see the table below"),
    Option("fan_in_fan_out", _NO_EFFECT, "A is [r, in] and B is [out, r] on nn.Linear and Conv1D alike"),
    Option("lora_dropout", _NO_EFFECT, "training only"),
    Option("qalora_group_size", _NO_EFFECT, "read only with use_qalora"),
    Option("megatron_core", _NO_EFFECT, "read only with megatron_config"),
    Option("loftq_config", _NO_EFFECT, "read only when the adapter is initialized"),
    Option("eva_config", _NO_EFFECT, "read only when the adapter is initialized"),
    Option("corda_config", _NO_EFFECT, "read only when the adapter is initialized"),
    Option("lora_ga_config", _NO_EFFECT, "read only when the adapter is initialized"),
    Option("runtime_config", _NO_EFFECT, "never saved by PEFT, and dropped by it on loading"),
    Option(
        "ensure_weight_tying",
        _SERVED,
        "on a base with tied embeddings, what changes them changes the output head as well",
    ),
    Option(
        "trainable_token_indices",
        _SERVED,
        "rows of the embeddings and, on a base with tied embeddings, of the output head",
    ),
    Option(
        "target_parameters",
        _SERVED,
        "weights of nn.Linear layers in the blocks (q_proj.weight), which is LoRA on the layers, and the "
        "stacked weights of routed experts (mlp.experts.gate_up_proj) where the fused decoder runs the base; "
        "refused by name: routers, embeddings, head and norms, and experts of other bases",
    ),
    Option(
        "layer_replication",
        _REFUSED,
        "it changes the depth of the base",
        "serve the expanded model as the base",
        EMPTY,
    ),
    Option(
        "alora_invocation_tokens",
        _SERVED,
        "aLoRA: runs from the last place in the prompt where these tokens begin, and not at all without "
        "them; blocks before it are shared with the base",
    ),
    Option("arrow_config", _REFUSED, _ROUTING, _MIX, (None,)),
    Option("use_bdlora", _REFUSED, "block-diagonal factors are not served", _PLAIN, (None,)),
    Option("use_qalora", _REFUSED, "pooled inputs (QALoRA) are not served", _PLAIN),
    Option("kasa_config", _REFUSED, "KaSA changes the base's weights and has no conversion", _PLAIN, (None,)),
    Option("velora_config", _REFUSED, "VeLoRA's extra tensors are not served", _PLAIN, (None,)),
    Option(
        "monteclora_config", _REFUSED, "Monte Carlo sampling over the weights is not served", _PLAIN, (None,)
    ),
    Option(
        "megatron_config",
        _REFUSED,
        "Megatron's parallel layers are not served",
        "export to a Hugging Face model",
        EMPTY,
    ),
    Option("use_dora", _SERVED, "the gain m / ‖W + BA‖ of every output is computed when it is loaded"),
    Option("lora_bias", _SERVED, "a bias on B, scaled as B is; not with use_dora, as in PEFT"),
    BIAS,
    MODULES_TO_SAVE,
)

_IA3: tuple[Option, ...] = (
    *COMMON,
    TARGETS[0],
    EXCLUDE,
    Option("feedforward_modules", _SERVED, "a list or a regular expression, with PEFT's matching"),
    Option("fan_in_fan_out", _NO_EFFECT, "the scales are those of inputs or outputs on Conv1D as well"),
    Option("init_ia3_weights", _NO_EFFECT, "training only"),
    MODULES_TO_SAVE,
)

_VERA: tuple[Option, ...] = (
    *COMMON,
    Option("r", _SERVED, "1 up to the server's --max-lora-rank: raise that for VeRA's usual 256"),
    *TARGETS,
    Option("save_projection", _SERVED, "without saved projections they are drawn anew, as PEFT does"),
    Option("projection_prng_key", _SERVED, "the seed of projections that are not saved"),
    Option("fan_in_fan_out", _NO_EFFECT, "the projections lie the same way on nn.Linear and Conv1D"),
    Option("vera_dropout", _NO_EFFECT, "training only"),
    Option("d_initial", _NO_EFFECT, "training only"),
    Option("init_weights", _NO_EFFECT, "training only"),
    BIAS,
    MODULES_TO_SAVE,
)

_TRAINABLE_TOKENS: tuple[Option, ...] = (
    *COMMON,
    Option("token_indices", _SERVED, "the rows of the tables that are replaced"),
    Option(
        "target_modules",
        _SERVED,
        "the input embeddings, the output head or both; without it the embeddings. On a base with tied "
        "embeddings the rows of the embeddings are the head's as well, as in PEFT",
    ),
    Option("init_weights", _NO_EFFECT, "training only"),
)

_LN_TUNING: tuple[Option, ...] = (
    *COMMON,
    Option(
        "target_modules",
        _SERVED,
        "a list or a regular expression, of the norms: of the blocks, of queries and keys, and the last one",
    ),
    EXCLUDE,
    MODULES_TO_SAVE,
)

OPTIONS: Mapping[str, tuple[Option, ...]] = {  # of the kinds that are no further one of format/kinds/
    "LORA": _LORA,
    "IA3": _IA3,
    "VERA": _VERA,
    "TRAINABLE_TOKENS": _TRAINABLE_TOKENS,
    "LN_TUNING": _LN_TUNING,
}

INITS: tuple[Init, ...] = (
    Init("true", _SERVED, "the default, and what PEFT writes for a converted adapter"),
    Init("false", _SERVED, "random A and B, base unchanged"),
    Init("gaussian", _SERVED, "base unchanged"),
    Init("eva", _SERVED, "base unchanged; its ranks arrive as rank_pattern"),
    Init("orthogonal", _SERVED, "base unchanged"),
    Init("mica", _SERVED, "base unchanged"),
    Init("pissa", _REFUSED, "PiSSA subtracts its start from the base", _CONVERT_INIT, prefix=True),
    Init("corda", _REFUSED, "CorDA subtracts its start from the base", _CONVERT_INIT, prefix=True),
    Init("olora", _REFUSED, "OLoRA subtracts its start from the base", _CONVERT_INIT),
    Init("lora_ga", _REFUSED, "LoRA-GA subtracts its start from the base", _CONVERT_INIT),
    Init("loftq", _REFUSED, "LoftQ fits the adapter to its own quantized base and has no conversion", _PLAIN),
)

_PROMPT = "its table takes the place of the first embeddings; nothing is added to any module"
_PREFIX = "its keys and values are copied into the cache, as saved: without rotary embedding"

KINDS: tuple[Kind, ...] = (
    Kind("LORA", "LoRA, rsLoRA, DoRA and aLoRA, as in the table above", treatment=_SERVED),
    Kind(
        "IA3",
        "scales of outputs, and of inputs of feedforward modules; a mix adds up the changes",
        treatment=_SERVED,
    ),
    Kind(
        "VERA",
        "as LoRA: every module gets its part of the shared projections as rank pages",
        treatment=_SERVED,
    ),
    Kind(
        "TRAINABLE_TOKENS",
        "rows of the embeddings and of the head, as LoRA's trainable_token_indices",
        treatment=_SERVED,
    ),
    Kind(
        "LN_TUNING",
        "weights (and biases) of norms, wherever they are; a mix adds up the changes",
        treatment=_SERVED,
    ),
    Kind(
        "ADAMSS",
        "which outputs its subspaces change is not saved: PEFT clusters the base's weights anew to find them",
        _MERGE,
    ),
    Kind("LILY", "its experts are mixed by a mean over all tokens of a batch, whosever they are", _PLAIN),
    Kind("ADAPTION_PROMPT", "its layers attend a second time, to prompts of their own behind a gate"),
    Kind("SHADOW", "a second network runs beside the base and changes what enters every block"),
    Kind(
        "XLORA",
        "for each token it first runs the base over the whole text, without a cache, to weigh adapters "
        "that lie elsewhere",
        _MIX,
    ),
    *(Kind(name, _PREFIX, treatment=_SERVED) for name in ("CARTRIDGE", "PREFIX_TUNING")),
    *(Kind(name, _PROMPT, treatment=_SERVED) for name in ("CPT", "P_TUNING", "PROMPT_TUNING")),
    Kind(
        "MULTITASK_PROMPT_TUNING",
        "as PROMPT_TUNING, of the table times the prompt of its one task; several tasks are refused",
        treatment=_SERVED,
    ),
)  # fmt: skip
