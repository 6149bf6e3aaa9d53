"""Which tokenizer and chat template the result of merging has: one model or adapter has one of each."""

from __future__ import annotations

from collections.abc import Sequence

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.files import FileFault, read_text_files
from manylora.adapters.merge.recipe import Member


def texts_of(members: Sequence[Member], faults: Faults) -> dict[str, bytes]:
    """The tokenizer and template files that members bring along; none where all of them have the base's.

    Members that have different ones of their own are a fault.
    """
    own: dict[tuple[str | None, str | None], Member] = {}
    for member in members:
        text = member.artifact.text
        digests = (text.template_digest, text.tokenizer_digest)
        if digests != (None, None):
            own.setdefault(digests, member)
    if len(own) > 1:
        names = sorted(member.name for member in own.values())
        faults.add(
            f"{some(names, len(names))} bring different tokenizers or chat templates, and the result can "
            "have only one: remove the files that are not to be used"
        )
    if not own:
        return {}
    member = next(iter(own.values()))
    try:
        return read_text_files(member.artifact.directory, {})
    except FileFault as fault:
        raise ArtifactError([f"{member.name}: {fault}"]) from None
