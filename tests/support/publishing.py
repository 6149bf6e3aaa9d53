"""Publishing adapters of a made-up base, in this process and in ones that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, models

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    FileFault,
    add_text_files,
    artifact_digest,
    read_config,
    read_text_files,
)
from manylora.adapters.format.text.conventions import BaseText
from manylora.adapters.registry.publish_revision import PublishedRevision, publish_revision
from manylora.adapters.registry.records import RevisionRecord
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.copying import copy_artifact
from manylora.adapters.store.store import RevisionStore
from tests.support.adapters import write_adapter

STEPS = ("announce", "half", "fetch", "validate", "prepare", "move in", "register")
TOKENIZER = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
BASE = BaseModel(
    name="base",
    architecture="LlamaForCausalLM",
    model_type="llama",
    fingerprint="0",
    modules={n: TargetModule(n, 8, 12) for n in ("model.layers.0.q_proj", "model.layers.0.v_proj")},
    others=frozenset({"lm_head"}),
    text=BaseText(template="base", special={}, load=TOKENIZER.to_str),
)


def write(path: Path, seed: int = 0) -> Path:
    """Write a valid adapter, with a file that a revision keeps and one that it does not."""
    write_adapter(path, BASE, seed=seed)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "README.md").write_text("not part of the artifact")
    return path


def examine(directory: Path) -> RevisionRecord:
    """The record of the adapter in a directory, validated as a server does."""
    artifact = read_artifact(directory, BASE, Limits(64, 1 << 20))
    return RevisionRecord(
        digest=artifact.digest,
        nbytes=artifact.nbytes,
        rank=artifact.rank,
        modules=len(artifact.delta),
        total_modules=len(BASE.modules),
        kind="LORA",
        base_model_name=artifact.base_model_name,
        base_fingerprint=BASE.fingerprint,
        source=str(directory),
        created=1.0,
    )


def copy_from(source: Path, on_half: Callable[[], None] = lambda: None) -> Callable[[Path], None]:
    """A fetch of every file of ``source``; ``on_half`` is called after the first."""

    def fetch(into: Path) -> None:
        shutil.copy(source / CONFIG_NAME, into)
        on_half()
        shutil.copytree(source, into, dirs_exist_ok=True)

    return fetch


def digest_of(directory: Path) -> str:
    """The digest of an artifact, without validating it."""
    config = read_config(directory / CONFIG_NAME)
    digest = artifact_digest(config)
    digest.update((directory / WEIGHTS_NAME).read_bytes())
    add_text_files(digest, read_text_files(directory, config))
    return digest.hexdigest()


def add_revision(store: RevisionStore, source: Path) -> tuple[str, Path]:
    """Copy an artifact into the store as a publication does, without a registry and without validating it."""
    with store.temporary() as temporary:
        try:
            copy_artifact(source, temporary)
        except FileFault as fault:
            raise ArtifactError([str(fault)]) from None
        digest = digest_of(temporary)
        store.prepare(temporary)
        return digest, store.move_in(temporary, digest)


def bring_in(
    registry: Registry,
    store: RevisionStore,
    name: str,
    source: Path,
    on_step: Callable[[str], None] = lambda _: None,
    *,
    replace: bool = True,
) -> PublishedRevision:
    """Publish the adapter at ``source``; among the steps is "half", with a part of the files there."""
    fetch = copy_from(source, lambda: on_step("half"))
    return publish_revision(
        registry,
        store,
        name,
        fetch=fetch,
        validate=examine,
        source=str(source),
        replace=replace,
        on_step=on_step,
    )


def _publish_and_die(url: str, root: str, name: str, source: str, last: str) -> None:
    """Publish, and be killed at the step ``last``."""

    def die(step: str) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    store = RevisionStore(Path(root))
    bring_in(Registry(url, owner=store.owner), store, name, Path(source), die)


def main() -> None:
    """For each line of tab-separated arguments, run them in a child and print how that ended."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _publish_and_die(*line.rstrip("\n").split("\t"))
            os._exit(0)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
