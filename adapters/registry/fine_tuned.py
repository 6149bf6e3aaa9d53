"""What fine-tuned models are called: ``ft:BASE:ORG:SUFFIX:ID``, and checkpoints ``…:ID:ckpt-step-N``.

SUFFIX may be empty, the other parts are not. Only BASE may hold ":" and "/", as served names do (``qwen:7b``,
``org/model``), so that a name is read from its end in one way. All of them are names of adapters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from manylora.adapters.errors import AdapterNameError
from manylora.adapters.mix import MAX_NAME, is_name

MAX_SUFFIX: Final = 64  # characters
NO_TENANT: Final = "local"  # ORG of models that are no tenant's
MAX_STEP: Final = 2**31 - 1

_LENGTHS: Final = ((MAX_NAME, MAX_NAME), (32, 24), (12, 8))  # of base and org, as far as is needed
CHECKPOINT: Final = ":ckpt-step-"  # between a model's name and a step
_CHECKPOINT = re.compile(rf"{CHECKPOINT}(0|[1-9][0-9]{{0,9}})\Z")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_ORG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEPT = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"})  # what of other scripts stays in a suffix


@dataclass(frozen=True, slots=True)
class FineTunedName:
    """The parts of such a name. ``str()`` is the name."""

    base: str
    org: str
    suffix: str  # "" for none
    id: str
    step: int | None = None  # of a checkpoint

    def __str__(self) -> str:
        return self.model if self.step is None else checkpoint_name(self.model, self.step)

    @property
    def model(self) -> str:
        """The name without the checkpoint."""
        return f"ft:{self.base}:{self.org}:{self.suffix}:{self.id}"

    def at(self, step: int) -> FineTunedName:
        """The model's checkpoint after a step."""
        return FineTunedName(self.base, self.org, self.suffix, self.id, step)


def checkpoint_name(model: str, step: int) -> str:
    """What ``model`` is called as it was after a step."""
    return f"{model}{CHECKPOINT}{step}"


def fine_tuned_name(
    base: str, org: str, suffix: str | None, model_id: str, namespace: str = ""
) -> FineTunedName:
    """The name of a new model.

    Args:
        base: what clients call the base model; what can't stand in an adapter's name becomes "-".
        org: the tenant's name, or ``NO_TENANT``. Base and tenant are cut short where both are long.
        suffix: as its owner wrote it, up to 64 characters; likewise, and ":" and "/" as well.
        model_id: letters and digits that no other model has.
        namespace: what the registry writes before names of its owner.

    Raises:
        AdapterNameError: the suffix is too long, or the name is, with that of its longest checkpoint.
    """
    if suffix is not None and len(suffix) > MAX_SUFFIX:
        raise AdapterNameError(f"a suffix has at most {MAX_SUFFIX} characters, not {len(suffix)}")
    for most_base, most_org in _LENGTHS:
        first = _base(base) if len(base) <= most_base else _base(base.rpartition("/")[2])[:most_base]
        name = FineTunedName(first, org[:most_org], _suffix(suffix or ""), model_id)
        longest = len(f"{namespace}{name.at(MAX_STEP)}")
        if longest <= MAX_NAME:
            break
    assert parse_fine_tuned(str(name)) == name, "org and id are as they have to be"
    if longest > MAX_NAME:
        raise AdapterNameError(
            f"the model's checkpoints would have names of {longest} characters, and {MAX_NAME} are allowed: "
            f"give a suffix that is {longest - MAX_NAME} shorter"
        )
    return name


def parse_fine_tuned(text: str) -> FineTunedName | None:
    """The parts of a name; None if it is not one of a fine-tuned model."""
    if not text.startswith("ft:") or not is_name(text):
        return None
    found = _CHECKPOINT.search(text)
    step = None if found is None else int(found[1])
    parts = text[3 : None if found is None else found.start()].rsplit(":", 3)
    if len(parts) < 4 or (step is not None and step > MAX_STEP):
        return None
    base, org, suffix, model_id = parts
    sound = _ORG.fullmatch(org) and _ID.fullmatch(model_id) and base and "/" not in suffix
    return FineTunedName(base, org, suffix, model_id, step) if sound and len(suffix) <= MAX_SUFFIX else None


def _base(text: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9._:/-]", "-", text)
    return re.sub(r"/(?![A-Za-z0-9])", "-", kept) or "-"


def _suffix(text: str) -> str:
    normal = unicodedata.normalize("NFC", text)
    kept = "".join(each if _stays(each) else "-" for each in normal)
    return kept if is_name(f"ft:{kept}:x") else re.sub(r"[^A-Za-z0-9._-]", "-", kept)


def _stays(character: str) -> bool:
    if character.isascii():
        return character.isalnum() or character in "._-"
    return unicodedata.category(character) in _KEPT
