"""From the body of a new job to what is recorded of it: the base, the adapter's options, the files."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from manylora.adapters.errors import AdapterError, AdapterNameError, AdapterNotFound
from manylora.adapters.mix import MixTerm, parse_mix
from manylora.adapters.registry.files import FileRecord
from manylora.adapters.registry.fine_tuned import NO_TENANT, fine_tuned_name
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import JobState, Need
from manylora.adapters.registry.whose import Whose
from manylora.server.api.files.files import found
from manylora.server.api.fine_tuning.body import MAX_SEED, JobBody, check
from manylora.server.api.fine_tuning.grading import check_grader, rows_to_sample
from manylora.server.errors import ModelNotFound, RequestError
from manylora.server.jobs.folder import TRAINING, VALIDATION, JobFolder
from manylora.server.jobs.hyperparameters import resolved
from manylora.server.jobs.publication import new_job_id
from manylora.server.jobs.training_config import LORA_OPTIONS, Place, train_config
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView

_PURPOSE = "fine-tune"
_ID_DIGITS = 8  # of the job's id, that its model's name ends with
_MAX_ROWS = 1_000  # that hyperparameters are checked with


async def new_job(
    service: Service, body: JobBody, whose: Whose, view: TenantView | None
) -> tuple[JobRecord, list[FileRecord]]:
    """What is to be recorded of a new job, and its files: that for training, and that for validation if any.

    Raises:
        RequestError, ModelNotFound, ObjectNotFound: the job can't be done; names the field.
    """
    check(body)
    await check_grader(service, body, view)
    files = [await _file(service, body.training_file, whose, TRAINING)]
    if body.validation_file is not None:
        files.append(await _file(service, body.validation_file, whose, VALIDATION))
        if files[1].digest == files[0].digest:
            raise RequestError("The validation file has the rows of the training file", VALIDATION)
    job_id = new_job_id()
    organization = NO_TENANT if view is None else view.tenant.name
    namespace = "" if view is None else view.tenant.namespace
    own_id = job_id.rpartition("-")[2][:_ID_DIGITS]
    try:
        name = str(fine_tuned_name(service.model_name, organization, body.suffix, own_id, namespace))
    except AdapterNameError as error:
        raise RequestError(str(error), "suffix") from None
    asked = {
        "model": body.model,
        "init": await _init(service, body.model, view),
        "method": body.kind,
        "task": body.task,
        "early_stopping_patience": body.early_stopping_patience,
        "samples": rows_to_sample(body),
        "sample_tokens": body.sample_tokens,
        "grader": body.grader,
        "hyperparameters": body.numbers,
        "lora": {} if body.lora is None else body.lora.model_dump(exclude_none=True),
        "suffix": body.suffix,
        "seed": secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed,
        "metadata": body.metadata,
        "organization": organization,
        "namespace": namespace,
        "name": name,
        "registered": namespace + name,
    }
    _check_options(service, asked, job_id, validation=len(files) > 1)
    record = JobRecord(
        id=job_id,
        created=time.time(),
        status=JobState.VALIDATING,
        needs=Need.VALIDATION,
        base=service.tuning.base,
        training_file=files[0].id,
        asked=asked,
        validation_file=files[1].id if len(files) > 1 else None,
        tenant=whose.tenant,
    )
    return record, files


async def bring_files(service: Service, files: list[FileRecord], folder: JobFolder) -> None:
    """Put a job's files into its directory.

    Raises:
        ObjectNotFound: their bytes are on another server, or gone.
        StorageUnreachable: they can't be read for now.
        OSError: they can't be written.
    """

    def bring() -> None:
        folder.root.mkdir(parents=True, exist_ok=True)
        for record, which in zip(files, (TRAINING, VALIDATION), strict=False):
            with service.files.local(record.id) as path:
                _copy(path, folder.data(which))

    await asyncio.to_thread(bring)


def _copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # on another disk
        shutil.copyfile(path, target)


async def _file(service: Service, file_id: str, whose: Whose, param: str) -> FileRecord:
    record = await found(service, file_id, whose, param)
    if record.purpose != _PURPOSE:
        raise RequestError(f"File '{record.id}' is for {record.purpose}, not for '{_PURPOSE}'", param)
    return record


async def _init(service: Service, model: str, view: TenantView | None) -> str | None:
    """The revision that a job goes on from; None: the base.

    Raises:
        ModelNotFound: there is no such model, or they may not use it.
        RequestError: it is no single LoRA adapter.
    """
    resolver = service.adapters.resolver
    try:
        terms = () if model == service.model_name else parse_mix(model)
        await service.adapters.admin.catch_up()
        seen = terms if view is None else resolver.visible_terms(terms, view)
        if not terms:
            return None
        (term,) = terms if len(terms) == 1 else (MixTerm("", weight=0.0),)
        if term.weight != 1.0 or term.merged:
            raise RequestError("A job goes on from one adapter, not from a mix", "model")
        digests = resolver.digests(seen)
    except AdapterNotFound as error:
        raise ModelNotFound(error.public or str(error)) from error
    except AdapterError as error:
        raise ModelNotFound(f"The model '{model[:200]}' does not exist") from error
    if len(digests) != 1:
        raise RequestError("A job goes on from one adapter, not from a mix", "model")
    digest = digests[0][1]
    facts = await asyncio.to_thread(lambda: service.adapters.registry.revisions.find([digest]).get(digest))
    if facts is None or not facts.kind.startswith("LORA"):
        raise RequestError(f"The model '{model[:200]}' is no LoRA, which is what jobs go on from", "model")
    return digest


def _check_options(service: Service, asked: dict[str, Any], job_id: str, *, validation: bool) -> None:
    """Raise RequestError for options of the adapter that can't be trained, or not be served afterwards."""
    numbers = resolved(asked["hyperparameters"], _MAX_ROWS, dpo=asked["method"] == "dpo")
    place = Place(str(service.tuning.model_dir), service.tuning.data_dir)
    init = None if asked["init"] is None else Path(asked["init"])
    try:
        config = train_config(
            asked, numbers, service.tuning.folder(job_id), place, validation=validation, init_adapter=init
        )
    except ValidationError as error:
        raise _refusal(error) from None
    rank = config.lora_r * (2 if config.converted else 1)
    if init is None and rank > service.config.max_lora_rank:
        most = service.config.max_lora_rank
        raise RequestError(f"lora.r: adapters here have ranks up to {most}, and this has {rank}", "lora.r")


def _refusal(error: ValidationError) -> RequestError:
    """What the trainer says of its options, by the names that they have in a job."""
    names = {option: f"lora.{name}" for name, option in LORA_OPTIONS.items()}
    names |= {"num_train_epochs": "hyperparameters.n_epochs", "dpo_beta": "method.dpo.hyperparameters.beta"}
    fault = error.errors(include_url=False, include_input=False)[0]
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["loc"]:
        option = str(fault["loc"][0])
    else:
        first = message.splitlines()[0]
        option, _, message = first.partition(": ")
    param = names.get(option, option)
    return RequestError(f"{param}: {message}", param)
