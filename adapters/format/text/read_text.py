"""How an adapter writes conversations and reads text, where it brings ways of its own.

Files saved by a trainer are mostly copies of the base's: what does the same as the base counts as the
base's. What differs is checked, since it comes from a stranger, and in a bounded process: the template is
only parsed (it runs in a process of its own, later), and the tokenizer may add tokens to the base's but not
read text differently. So an adapter can bring no regular expressions, and every id of the base keeps its
meaning.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from typing import Any

from manylora.adapters.bounded_process import Bounds, ChildFailed, OutOfBounds, run_bounded
from manylora.adapters.format.answers import samples
from manylora.adapters.format.answers.finding import find_format
from manylora.adapters.format.answers.syntax import AnswerFormat
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.files import (
    SPECIAL_TOKENS_NAME,
    TEMPLATE_NAME,
    TEXT_NAMES,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCABULARY_NAMES,
    FileFault,
    parse_json_object,
)
from manylora.adapters.format.text import template_syntax, tokenizer_file
from manylora.adapters.format.text.conventions import AdapterText, BaseText, OwnTokenizer
from manylora.adapters.format.text.template_syntax import TemplateSearches
from manylora.adapters.format.text.tokenizer_file import SECTIONS

MAX_TEMPLATE = 1 << 17  # characters
MAX_ADDED_TOKENS = 65536
_BOUNDS = Bounds(seconds=10.0, memory=1 << 30)
_TOKENIZER_FILE = tokenizer_file.__name__
_TEMPLATE_SYNTAX = template_syntax.__name__
_SAMPLES = samples.__name__
_RENDERING = Bounds(seconds=1.0)  # of all samples
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_text(
    files: Mapping[str, bytes], base: BaseText | None, vocab_size: int | None, faults: Faults
) -> AdapterText:
    """What the ``files`` kept beside the weights say; nothing where they repeat the base.

    ``vocab_size``: rows of the embeddings that the adapter runs with; ids of added tokens lie below it.
    """
    if base is None:
        own = sorted(files.keys() & {*TEXT_NAMES})
        if own:
            faults.add(f"{some(own, len(own))}: the base was described without its tokenizer")
        return AdapterText()
    config = _object(files, TOKENIZER_CONFIG_NAME, faults)
    template, name = _template(files, config, faults)
    if template == base.template:
        template = None
    found: Mapping[str, Any] = {} if template is None else _examined(template, name, base, faults)
    used = frozenset(found.get("variables", base.variables)) | {"eos_token"}
    special = _special_tokens(config, _object(files, SPECIAL_TOKENS_NAME, faults), base, used, faults)
    tokenizer, top = _tokenizer(files, base, special.values(), faults)
    _check_special(special, tokenizer, base, faults)
    if vocab_size is not None and top >= vocab_size:
        faults.add(
            f"{TOKENIZER_NAME} adds a token with id {top}, but the embeddings have {vocab_size} rows: save "
            "the adapter with its resized embeddings (save_embedding_layers=True)"
        )
    return AdapterText(
        template=template,
        tokenizer=tokenizer,
        special=None if special == dict(base.special) else special,
        top_id=top,
        searches=None if template is None else _searches(template, found),
        answers=_answers(template, config.get("response_template"), special, base),
    )


def _answers(
    template: str | None, response_template: Any, special: Mapping[str, str], base: BaseText
) -> AnswerFormat | None:
    """How the adapter writes answers; None if as its base does."""
    if response_template == base.response_template:
        response_template = None if template is None else response_template
    if template is None and response_template is None:
        return None

    def render(template: str) -> Mapping[str, str | None]:
        argument = {"template": template, "special": dict(special)}
        found = _described(_SAMPLES, "render_samples", argument, base, _RENDERING)
        return {} if "fault" in found else found

    return find_format(base.template if template is None else template, response_template, render)


def _template(
    files: Mapping[str, bytes], config: Mapping[str, Any], faults: Faults
) -> tuple[str | None, str]:
    """The template file, or else what the tokenizer's config holds; and the name of the file."""
    name, template = TOKENIZER_CONFIG_NAME, config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
        if template is None:
            faults.add(f"chat_template in {TOKENIZER_CONFIG_NAME} has no template named 'default'")
    if TEMPLATE_NAME in files:
        try:
            name, template = TEMPLATE_NAME, files[TEMPLATE_NAME].decode()
        except UnicodeError:
            faults.add(f"{TEMPLATE_NAME} is not valid UTF-8")
            return None, name
    if template is not None and not isinstance(template, str):
        faults.add(f"chat_template in {TOKENIZER_CONFIG_NAME} is not a text")
        return None, name
    if template is not None and len(template) > MAX_TEMPLATE:
        faults.add(f"the template in {name} has {len(template):,} characters; the limit is {MAX_TEMPLATE:,}")
        return None, name
    return template, name


def _examined(template: str, name: str, base: BaseText, faults: Faults) -> Mapping[str, Any]:
    """What a template looks for; it is only parsed, not even its constant expressions are evaluated."""
    found = _described(_TEMPLATE_SYNTAX, "describe", template, base)
    if "fault" in found:
        faults.add(_fault(f"the chat template in {name}", found))
        return {}
    return found


def _searches(template: str, found: Mapping[str, Any]) -> TemplateSearches:
    return TemplateSearches(template, frozenset(found.get("words", ())), frozenset(found.get("cuts", ())))


def _special_tokens(
    config: Mapping[str, Any],
    mapping: Mapping[str, Any],
    base: BaseText,
    used: frozenset[str],
    faults: Faults,
) -> dict[str, str]:
    """The special tokens by role: the adapter's word on those that are ``used``, else the base's."""
    result = dict(base.special)
    for key in _SPECIAL:
        value = config.get(key, mapping.get(key))
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            if key in used:
                result[key] = text
        elif value is not None:
            faults.add(f"{key} in {TOKENIZER_CONFIG_NAME} is not a token: {shown(value)}")
    return result


def _check_special(
    special: Mapping[str, str], tokenizer: OwnTokenizer | None, base: BaseText, faults: Faults
) -> None:
    """A special token that the tokenizer does not know would be added to it under a new id."""
    added = base.facts["added"] if tokenizer is None else tokenizer.added_tokens
    known = {token["content"] for token in added}
    for key, text in special.items():
        if text not in known and base.special.get(key) != text and not base.has_piece(text):
            faults.add(f"{key} {shown(text)} is not a token of the tokenizer")


def _tokenizer(
    files: Mapping[str, bytes], base: BaseText, special: Iterable[str], faults: Faults
) -> tuple[OwnTokenizer | None, int]:
    """What ``tokenizer.json`` changes of the base's (None: nothing), and the top id."""
    parts = [name for name in VOCABULARY_NAMES if name in files]
    if TOKENIZER_NAME in files:
        name = TOKENIZER_NAME
        try:
            content = files[name].removeprefix(BOM_UTF8).decode()
        except UnicodeError:
            faults.add(f"{name} is not valid UTF-8")
            return None, -1
        found = _described(_TOKENIZER_FILE, "describe", content, base)
    elif parts:
        name = f"{some(parts, len(parts))} without {TOKENIZER_NAME}"
        older = _parts({part: files[part] for part in parts}, base, special)
        found = _described(_TOKENIZER_FILE, "describe_parts", older, base)
    else:
        return None, -1
    if "fault" in found:
        faults.add(_fault(name, found))
        return None, -1
    differing = [name for name in SECTIONS if found["sections"][name] != base.facts["sections"][name]]
    if differing:
        faults.add(
            f"{name} reads text in another way than the base's ({', '.join(differing)} differ): an "
            "adapter may add tokens to the tokenizer of its base, and nothing else"
        )
        return None, -1
    return _added(found, base, faults)


def _added(own: Mapping[str, Any], base: BaseText, faults: Faults) -> tuple[OwnTokenizer | None, int]:
    facts = base.facts
    theirs = {token["id"]: token for token in facts["added"]}
    ours = {token["id"]: token for token in own["added"]}
    moved = [t["content"] for i, t in theirs.items() if ours.get(i, {}).get("content") != t["content"]]
    if moved:
        names = some(moved, len(moved))
        faults.add(f"{TOKENIZER_NAME} lacks tokens of the base, or gives their ids to others: {names}")
    new = [token for token_id, token in ours.items() if token_id not in theirs]
    if len(new) > MAX_ADDED_TOKENS:
        faults.add(f"{TOKENIZER_NAME} adds {len(new)} tokens; the limit is {MAX_ADDED_TOKENS}")
    clashing = [token["content"] for token in new if base.has_gaps and base.has_id(token["id"])]
    if clashing:
        faults.add(f"{TOKENIZER_NAME} adds tokens under ids of the base: {some(clashing, len(clashing))}")
    around = [own[side] for side in ("before", "after")]
    wrapped = around != [facts[side] for side in ("before", "after")]
    if own["added"] == facts["added"] and not wrapped:
        return None, -1
    top = max([*(token["id"] for token in new), *around[0], *around[1]], default=-1)
    wrapper = json.dumps(own["post_processor"]) if wrapped else None
    return OwnTokenizer(json.dumps(own["added"]), wrapper, json.dumps(around)), top


def _parts(files: Mapping[str, bytes], base: BaseText, special: Iterable[str]) -> dict[str, Any]:
    """What :func:`tokenizer_file.describe_parts` takes."""
    encoded = {name: b64encode(content.removeprefix(BOM_UTF8)).decode() for name, content in files.items()}
    return {"base": base.load(), "files": encoded, "special": sorted(special)}


def _described(
    module: str, function: str, argument: Any, base: BaseText, bounds: Bounds = _BOUNDS
) -> Mapping[str, Any]:
    """What a bounded process finds in a file; it is asked once for the files that most adapters share."""
    key = hashlib.sha256(json.dumps([module, function, argument]).encode()).digest()
    known = base.known.get(key)
    if known is None:
        try:
            known = run_bounded(module, function, argument, bounds)
        except (ChildFailed, OutOfBounds) as error:
            return {"fault": "can't be examined", "reason": str(error)}
        base.known[key] = known
    return known


def _fault(what: str, found: Mapping[str, Any]) -> str:
    reason = shown(found["reason"])[1:-1]
    return f"{what} {found['fault']}" + (f": {reason}" if reason else "")


def _object(files: Mapping[str, bytes], name: str, faults: Faults) -> Mapping[str, Any]:
    if name not in files:
        return {}
    try:
        return parse_json_object(files[name].removeprefix(BOM_UTF8), name)
    except FileFault as fault:
        faults.add(str(fault))
        return {}
