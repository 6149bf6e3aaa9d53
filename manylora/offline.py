"""Training, sizing, composing, merging and comparing without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from manylora.adapters.options.values import parse_size
from manylora.server.options.loading import load_settings

if TYPE_CHECKING:
    from manylora.adapters.base_models.stored import StoredModel
    from manylora.adapters.merge.compose import Composition
    from manylora.adapters.merge.export import Exported
    from manylora.adapters.training.estimate.memory import Memory, Method
    from manylora.adapters.training.run.train import TrainingResult

Weighted = Mapping[str, float] | Mapping[Path, float] | Sequence[str | Path]
"""Adapters by directory: a mapping to their weights, or a list whose weights are 1."""


def train(*, resume: bool = False, overwrite: bool = False, **options: Any) -> TrainingResult | None:
    """Train an adapter from a file of examples; needs the ``train`` extra.

    Args:
        resume: go on from the last checkpoint in ``output_dir``.
        overwrite: replace the run in ``output_dir``.
        options: any option of the trainer, as docs/training-options.md spells it: ``train_path`` and
            ``output_dir`` have to be given.

    Returns:
        Where the adapter is and how it did; None in the processes of a distributed run that write no files.

    Raises:
        AdapterError: what stops the run, as a sentence. Its subclasses are in ``manylora.adapters.errors``
            and ``manylora.adapters.training.errors``.
    """
    from manylora.adapters.training.config_load import load_config  # noqa: PLC0415
    from manylora.adapters.training.run.train import train as run  # noqa: PLC0415  (brings torch)

    return run(load_config(options), resume=resume, overwrite=overwrite)


def estimate(
    base_model: str = "smollm2-135m",
    *,
    r: int = 16,
    target: Literal["all-linear", "attention", "mlp"] = "all-linear",
    max_length: int = 1024,
    batch_size: int = 8,
    gradient_checkpointing: bool = False,
    methods: Sequence[Method] | None = None,
) -> list[Memory]:
    """Tell how much memory training would take, without loading any weights.

    Args:
        base_model: a name that ``manylora pull`` knows, a Hub id or a directory with a config.json.
        r: rank of the adapter.
        target: the modules that it changes.
        max_length: tokens of a sequence.
        batch_size: sequences in one forward and backward pass.
        gradient_checkpointing: whether activations are computed again.
        methods: of "full", "lora", "lora-8bit" and "qlora"; all of them by default.

    Raises:
        BaseModelError: there is no such model.
    """
    from manylora.adapters.training.estimate.memory import METHODS, Plan  # noqa: PLC0415  (brings torch)
    from manylora.adapters.training.estimate.memory import estimate as estimated  # noqa: PLC0415
    from manylora.adapters.training.model.base import find_shape  # noqa: PLC0415

    plan = Plan(r, target, max_length, batch_size, gradient_checkpointing=gradient_checkpointing)
    return estimated(find_shape(base_model), plan, METHODS if methods is None else methods)


def compose(
    adapters: Weighted,
    out: str | Path,
    *,
    base: str = "smollm2-135m",
    method: str = "linear",
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    sign_method: str | None = None,
    data_dir: str | Path | None = None,
) -> Composition:
    """Compose adapters into a new one that plain PEFT loads.

    Args:
        adapters: their directories, with weights.
        out: the directory to write; it must not exist.
        base: the model that they fit.
        method: "linear" (the exact sum), "svd", "ties", "dare_linear", "dare_ties" or "magnitude_prune".
        rank: of the result; for all methods but "linear".
        density: share of each member's changes that is kept.
        seed: of what DARE drops.
        sign_method: "total" or "frequency", for "ties" and "dare_ties".
        data_dir: where models are kept; by default where ``manylora`` keeps them.

    Raises:
        ArtifactError: with every fault of every member, or of the recipe.
        StoreError: there is something at ``out``, or the disk refused.
    """
    from manylora.adapters.merge.compose import compose as composed  # noqa: PLC0415  (brings torch)
    from manylora.adapters.merge.compose import save  # noqa: PLC0415
    from manylora.adapters.merge.directory import check_absent  # noqa: PLC0415
    from manylora.adapters.merge.members import read_members  # noqa: PLC0415
    from manylora.adapters.merge.recipe import recipe_of  # noqa: PLC0415

    check_absent(Path(out))
    recipe = recipe_of(method, rank=rank, density=density, seed=seed, sign_method=sign_method)
    name, stored = _open_base(base, data_dir)
    described = stored.describe(name)
    composition = composed(read_members(_weighted(adapters), described), recipe, described)
    save(composition, Path(out))
    return composition


def merge(
    adapters: Weighted,
    out: str | Path,
    *,
    base: str = "smollm2-135m",
    dtype: Literal["keep", "bf16", "fp16", "fp32"] = "keep",
    max_shard_size: int | str = "2GiB",
    verify: bool = True,
    data_dir: str | Path | None = None,
) -> Exported:
    """Merge adapters into their base: a standalone model for transformers.

    Args:
        adapters: their directories, with weights.
        out: the directory to write; it must not exist.
        base: the model that they fit.
        dtype: of the result; "keep" is the base's own.
        max_shard_size: bytes of one file, and of the memory that merging takes.
        verify: whether the result is loaded with transformers and its logits compared.
        data_dir: where models are kept; by default where ``manylora`` keeps them.

    Raises:
        ArtifactError: naming everything that can't be merged.
        StoreError: there is something at ``out``, or the disk refused.
        MergeFailed: the merged model does not answer like the base with the adapters.
    """
    from manylora.adapters.merge.directory import check_absent  # noqa: PLC0415
    from manylora.adapters.merge.export import export  # noqa: PLC0415  (brings torch)
    from manylora.adapters.merge.export_plan import DTYPES, plan_export  # noqa: PLC0415
    from manylora.adapters.merge.members import read_members  # noqa: PLC0415
    from manylora.server.memory_budget import verification_dtype  # noqa: PLC0415

    check_absent(Path(out))
    name, stored = _open_base(base, data_dir)
    members = read_members(_weighted(adapters), stored.describe(name))
    plan = plan_export(stored, name, members, DTYPES.get(dtype), parse_size(max_shard_size))
    compute_dtype = verification_dtype(plan.parameters, plan.loaded_bytes) if verify else None
    return export(plan, Path(out), compute_dtype=compute_dtype)


def compare(
    targets: Sequence[str],
    *,
    model: str = "smollm2-135m",
    adapters: Mapping[str, str | Path] | None = None,
    data_dir: str | Path | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Load a base and adapters for one comparison of what they answer; see :meth:`LLM.compare`.

    Args:
        targets: two or more of the base, adapters, revisions and mixes.
        model: the base model.
        adapters: PEFT directories by the name they are asked for.
        data_dir: where models and adapters are kept; by default where ``manylora`` keeps them.
        parameters: fields of ``POST /v1/compare``, such as ``prompt`` or ``messages``.

    Raises:
        RequestError: a parameter or a target is not right; ``param`` says which.
        ConfigError: an adapter can't be used; says every reason.
    """
    from manylora.llm import LLM  # noqa: PLC0415  (brings torch)

    kept = {} if data_dir is None else {"data_dir": data_dir}
    with LLM(model, adapters, **kept) as llm:
        return llm.compare(targets, **parameters)


def _weighted(adapters: Weighted) -> list[tuple[Path, float]]:
    if isinstance(adapters, Mapping):
        return [(Path(path).expanduser(), weight) for path, weight in adapters.items()]
    return [(Path(path).expanduser(), 1.0) for path in adapters]


def _open_base(base: str, data_dir: str | Path | None) -> tuple[str, StoredModel]:
    """The base's name and its files, fetched if need be."""
    from manylora.adapters.base_models.catalog import resolve_model  # noqa: PLC0415  (brings torch)
    from manylora.adapters.base_models.stored import StoredModel  # noqa: PLC0415

    settings = load_settings({"model": base, **({} if data_dir is None else {"data_dir": data_dir})})
    return settings.model, StoredModel(resolve_model(settings.model, settings.data_dir))
