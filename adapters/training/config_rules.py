"""Which options do not go together, and why."""

from __future__ import annotations

from manylora.adapters.errors import AdapterNameError
from manylora.adapters.mix import check_name
from manylora.adapters.training.methods import PROMPTS, option_faults
from manylora.adapters.training.options.train_options import TrainOptions


def faults_of(config: TrainOptions) -> list[str]:
    """Every combination that can't be trained, ``option: reason``."""
    checks = (_full, _kind, _init_adapter, _inits, _tasks, _adapter, _output)
    return [fault for check in checks for fault in check(config)]


_LORA_ONLY = (
    "lora_r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora",
    "use_dora", "init", "loraplus_ratio", "modules_to_save", "quantization", "publish", "init_adapter",
    "method_option",
)  # fmt: skip
_NOT_OF_OTHERS = ("use_rslora", "use_dora", "init", "loraplus_ratio", "quantization", "init_adapter")


def _full(config: TrainOptions) -> list[str]:
    """What only an adapter has, and what full fine-tuning does not do here."""
    if not config.is_full:
        return []
    fields = type(config).model_fields
    faults = [
        f"{name}: only with method lora: method full trains every weight and saves a model of its own"
        for name in _LORA_ONLY
        if getattr(config, name) != fields[name].default
    ]
    if config.task != "sft":
        faults.append(f"method: full fine-tuning is for task sft, not {config.task}")
    if config.dtype == "bf16":
        faults.append("dtype: small updates are lost in bf16 weights; leave it at auto with method full")
    return faults


def _kind(config: TrainOptions) -> list[str]:
    """What only a LoRA has, and further options of another kind."""
    if config.is_full:
        return []
    faults = [f"method_option: {fault}" for fault in option_faults(config.method, config.method_option)]
    if config.is_lora:
        return faults
    fields = type(config).model_fields
    faults += [
        f"{name}: only with method lora, not {config.method}"
        for name in _NOT_OF_OTHERS
        if getattr(config, name) != fields[name].default
    ]
    if config.dtype == "bf16":
        faults.append(f"dtype: method {config.method} trains on an fp32 base; leave it at auto")
    if config.method in PROMPTS and (config.task != "sft" or config.packing):
        faults.append(f"method: {config.method} is for task sft, without packing")
    if config.method == "trainable_tokens" and not config.method_option.get("token_indices"):
        faults.append("method: trainable_tokens needs the tokens: --method-option 'token_indices=[1, 2]'")
    return faults


_COMES_WITH_ADAPTER = (
    "lora_r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "init", "modules_to_save",
)  # fmt: skip


def _init_adapter(config: TrainOptions) -> list[str]:
    """What the adapter that a run goes on from has decided already."""
    if config.init_adapter is None:
        return []
    fields = type(config).model_fields
    return [
        f"{name}: comes with the adapter that init_adapter names; leave it out"
        for name in _COMES_WITH_ADAPTER
        if getattr(config, name) != fields[name].default
    ]


def _inits(config: TrainOptions) -> list[str]:
    """PiSSA and OLoRA change the base's weights; the adapter is converted at the end, which has limits."""
    faults = []
    if config.init == "orthogonal":
        odd = [rank for rank in (config.lora_r, *config.rank_pattern.values()) if rank % 2]
        if odd:
            faults.append(f"init: orthogonal needs even ranks, not {odd[0]}")
    if config.init == "eva" and config.task != "sft":
        faults.append("init: eva reads the data as sequences; use it with task sft")
    if config.init == "eva" and config.quantization == "int8":
        faults.append("init: eva can't be loaded into an int8 base; use nf4 or none")
    if not config.converted:
        return faults
    reasons = {
        "modules_to_save": bool(config.modules_to_save),
        "use_dora": config.use_dora,
        "quantization": config.quantization != "none",
        "task dpo (its reference model would be the changed base)": config.task == "dpo",
        "task classification (its head is a module to save)": config.task == "classification",
        "dtype bf16 (its start must be subtracted in fp32; leave dtype at auto)": config.dtype == "bf16",
    }
    faults += [
        f"init: {config.init} changes the base's weights, so its adapter is converted at the end, which "
        f"does not work with {reason}"
        for reason, given in reasons.items()
        if given
    ]
    return faults


_SILENT = {"classification": "a classifier", "embedding": "an adapter that embeds"}
_HEAD = "lm_head"


def _tasks(config: TrainOptions) -> list[str]:
    faults = []
    if config.packing and config.task != "sft":
        faults.append(f"packing: only with task sft, not {config.task}")
    if config.chat_template is not None and config.task in _SILENT:
        faults.append(f"chat_template: {_SILENT[config.task]} reads no conversations")
    if config.sample_prompts and config.task in _SILENT:
        faults.append(f"sample_prompts: {_SILENT[config.task]} writes no answers")
    if config.sample_rows and config.task in _SILENT:
        faults.append(f"sample_rows: {_SILENT[config.task]} writes no answers")
    if config.task != "embedding":
        faults += [
            f"{name}: only with task embedding, not {config.task}"
            for name in sorted(config.model_fields_set)
            if name.startswith("embed_")
        ]
    if config.task == "embedding" and _HEAD in config.modules_to_save:
        faults.append(f"modules_to_save: {_HEAD} has no part in embeddings")
    if config.eval_path is not None and "eval_split" in config.model_fields_set and config.eval_split > 0:
        faults.append("eval_split: give either eval_path or eval_split")
    if config.early_stopping_patience is not None and config.eval_path is None and config.eval_split == 0:
        faults.append("early_stopping_patience: needs an evaluation: give eval_path or eval_split")
    if "dpo_beta" in config.model_fields_set and config.task != "dpo":
        faults.append("dpo_beta: only with task dpo")
    return faults


def _adapter(config: TrainOptions) -> list[str]:
    faults = []
    presets = {"all-linear", "attention", "mlp"} & set(config.target_modules)
    if presets and len(config.target_modules) > 1:
        faults.append(f"target_modules: {min(presets)} can't be mixed with other names")
    if config.loraplus_ratio is not None and config.optimizer == "adafactor":
        faults.append("loraplus_ratio: adafactor has its own step sizes; choose an AdamW")
    heads = {"lm_head", "embed_tokens"} & set(config.target_modules)
    if heads and config.task != "classification" and config.method != "trainable_tokens":
        faults.append(f"target_modules: {min(heads)} can't be trained here; give it in modules_to_save")
    return faults


def _output(config: TrainOptions) -> list[str]:
    if config.name is None and config.publish is not None:
        try:
            check_name(config.output_dir.name)
        except AdapterNameError as error:
            return [f"output_dir: its name is what the adapter would be called: {error}; give --name"]
    return []
