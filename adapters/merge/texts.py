"""Tokenizer and template of what members are merged into: those that the server answers with.

An adapter may bring them in several forms: a template file, one or several templates inside of the
tokenizer's config, a config with a few keys only. What is written has one form, which the server and
transformers read alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.files import TEMPLATE_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from manylora.adapters.format.text.conventions import AdapterText, BaseText
from manylora.adapters.merge.recipe import Member

# Keys of a tokenizer's config that tell how its class builds it: what is written is built already.
_BUILDING = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder",
    "additional_special_tokens", "auto_map", "backend", "extra_special_tokens", "is_local", "legacy",
    "model_specific_special_tokens", "name_or_path", "special_tokens_map_file", "tokenizer_class",
    "tokenizer_file", "use_default_system_prompt",
)  # fmt: skip


def text_of(members: Sequence[Member], faults: Faults) -> AdapterText:
    """What the members' mix is served with: the tokenizer and the template that one of them brings.

    Members that have different ones of their own are a fault.
    """
    texts = {member.name: member.artifact.text for member in members}
    template = _one(texts, lambda text: text.template_digest, faults)
    tokenizer = _one(texts, lambda text: text.tokenizer_digest, faults)
    return AdapterText(template.template, tokenizer.tokenizer, tokenizer.special, tokenizer.top_id)


def _one(
    texts: Mapping[str, AdapterText], digest: Callable[[AdapterText], str | None], faults: Faults
) -> AdapterText:
    own = {name: text for name, text in texts.items() if digest(text) is not None}
    if len({digest(text) for text in own.values()}) > 1:
        names = sorted(own)
        faults.add(
            f"{some(names, len(names))} bring different tokenizers or chat templates, and the result can "
            "have only one: remove the files that are not to be used"
        )
    return next(iter(own.values()), AdapterText())


def text_files(text: AdapterText, base: BaseText | None) -> dict[str, bytes]:
    """The files of a whole tokenizer that reads and writes as ``text`` says; none if all is the base's."""
    if base is None or (text.template is None and text.tokenizer_digest is None):
        return {}
    template = base.template if text.template is None else text.template
    files = {} if template is None else {TEMPLATE_NAME: template.encode()}
    return files | tokenizer_files(text, base, {})


def tokenizer_files(text: AdapterText, base: BaseText, settings: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer of ``text`` and its config; ``settings``: the base's, kept where they still hold."""
    special = base.special if text.special is None else text.special
    kept = {key: value for key, value in settings.items() if key not in _BUILDING}
    config = {**kept, **special, "tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = base.load() if text.tokenizer is None else text.tokenizer.to_json(base)
    return {TOKENIZER_NAME: tokenizer.encode(), TOKENIZER_CONFIG_NAME: to_json(config)}


def to_json(content: Mapping[str, Any]) -> bytes:
    """A file of JSON as transformers writes them."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
