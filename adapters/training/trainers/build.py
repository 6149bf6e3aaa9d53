"""The trainer of a run's task, with its model, data and arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from trl import DPOConfig, SFTConfig

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.data.prepare import Prepared
from manylora.adapters.training.decoder.choice import fused_peft
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.model.eva import initialize_eva
from manylora.adapters.training.model.lora import (
    InitialWeights,
    add_adapter,
    load_adapter,
    trainable_in_fp32,
)
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import Session
from manylora.adapters.training.trainers.adalora import PruningCallback
from manylora.adapters.training.trainers.arguments import common_arguments
from manylora.adapters.training.trainers.classify import (
    ClassificationTrainer,
    PaddedTexts,
    classification_dataset,
)
from manylora.adapters.training.trainers.dpo import PreferenceTrainer, dpo_dataset
from manylora.adapters.training.trainers.early_stop import EarlyStopCallback
from manylora.adapters.training.trainers.embed import (
    EmbeddingTrainer,
    PaddedContrasts,
    embedding_dataset,
)
from manylora.adapters.training.trainers.samples import sample_callbacks
from manylora.adapters.training.trainers.sft import SupervisedTrainer, sft_dataset


def build_trainer(
    session: Session, callbacks: Sequence[TrainerCallback], log: MetricsLog
) -> tuple[Any, InitialWeights]:
    """The trainer, and A and B before training where the init changes the base."""
    config, prepared = session.config, session.prepared
    _check_trackers(config.report_to)
    # TRL fills the pad token into the tokenizer and the model; it has to be one that exists.
    if session.base.tokenizer.pad_token_id is None:
        session.base.tokenizer.pad_token_id = session.base.pad_id
    model = session.loader.load()
    samples = sample_callbacks(model, session, log)  # the base answers before an init can change it
    model, initial = _trainable(model, session)
    train, held_out = _datasets(config, prepared)
    if config.init == "eva":
        initialize_eva(model, prepared.train.sequences, config, session.base.pad_id)
    arguments = common_arguments(
        config,
        session.loader.device,
        session.loader.dtype,
        session.folder.checkpoints,
        has_eval=held_out is not None,
    )
    options: dict[str, Any] = {
        "model": model,
        "train_dataset": train,
        "eval_dataset": held_out,
        "processing_class": session.base.tokenizer,
        "callbacks": [*callbacks, *samples, *_stopping(config, log), *_pruning(config, model)],
    }
    trainer = _trainer(session, arguments, options)
    # Not in the arguments, where transformers would ask for checkpoints at the evaluations and only there.
    # An earlier step of AdaLoRA has ranks that were pruned since.
    has_best = held_out is not None and config.method != "adalora"
    trainer.args.load_best_model_at_end = config.keep == "best" and has_best
    trainable_in_fp32(trainer.model)  # TRL rounds adapters on a quantized base to bf16
    if config.task == "sft":
        trainer.decoder = fused_peft(trainer.model, config, prepared.train.sequences)
        for each in samples:
            each.sampler.decoder = trainer.decoder
    trainer.loraplus_ratio = config.loraplus_ratio
    trainer.remove_callback(PrinterCallback)
    return trainer, initial


def _trainable(model: Any, session: Session) -> tuple[Any, InitialWeights]:
    """All of ``model``, or an adapter on it: a fresh one or the one to go on from."""
    config = session.config
    if config.is_full:
        return model.requires_grad_(True), {}
    if session.init_adapter is not None:
        return load_adapter(model, session.init_adapter, config), {}
    return add_adapter(model, config)


def _check_trackers(wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in get_available_reporting_integrations()]
    if missing:
        raise TrainingConfigError(f"--report-to {missing[0]}: not a tracker that is installed here")


def _trainer(session: Session, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    config, pad_id = session.config, session.base.pad_id
    if config.task == "sft":
        sft = SFTConfig(
            **arguments,
            max_length=config.max_length,
            packing=config.packing,
            packing_strategy="bfd",
            eval_packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        return SupervisedTrainer(args=sft, **options)
    if config.task == "dpo":
        dpo = DPOConfig(**arguments, max_length=config.max_length, beta=config.dpo_beta)
        return PreferenceTrainer(args=dpo, **options)
    plain = TrainingArguments(**arguments, include_num_input_tokens_seen="non_padding")
    if config.task == "embedding":
        plain.remove_unused_columns = False  # what the collator takes is not what the model does
        collate = PaddedContrasts(pad_id)
        return EmbeddingTrainer(config, session.pooling.pooling, args=plain, data_collator=collate, **options)
    return ClassificationTrainer(args=plain, data_collator=PaddedTexts(pad_id), **options)


_DATASETS = {"dpo": dpo_dataset, "classification": classification_dataset, "embedding": embedding_dataset}


def _datasets(config: TrainConfig, prepared: Prepared) -> tuple[Any, Any]:
    """The data of both sides as the task's trainer takes it; evaluation rows are never packed."""
    held_out = () if prepared.eval is None else prepared.eval.sequences
    if config.task == "sft":
        train = sft_dataset(prepared.train.sequences, config.max_length if config.packing else None)
        return train, sft_dataset(held_out, None) if held_out else None
    make = _DATASETS[config.task]
    return make(prepared.train.sequences), make(held_out) if held_out else None


def _pruning(config: TrainConfig, model: Any) -> list[TrainerCallback]:
    return [PruningCallback(model)] if config.method == "adalora" else []


def _stopping(config: TrainConfig, log: MetricsLog) -> list[TrainerCallback]:
    patience = config.early_stopping_patience
    return [] if patience is None else [EarlyStopCallback(patience, log)]
