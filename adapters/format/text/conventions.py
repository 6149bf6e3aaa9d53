"""How an adapter writes conversations and reads text, where it brings ways of its own.

Files saved by a trainer are mostly copies of the base's: what says the same as the base counts as the
base's. What differs is checked here, since it comes from a stranger: the template is only parsed (it runs
in a process of its own, later), and the tokenizer may add tokens to the base's but not read text
differently. So an adapter can bring no regular expressions, and every id of the base keeps its meaning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

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
from manylora.adapters.format.text.template_syntax import syntax_error

MAX_TEMPLATE = 1 << 17  # characters
MAX_ADDED_TOKENS = 65536
_MAX_KNOWN = 8  # megabytes each where they are not the base's
_SECTIONS = ("normalizer", "pre_tokenizer", "model", "decoder")  # of tokenizer.json: how text is read
_OTHERS = ("added_tokens", "post_processor")  # the parts that may differ
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class BaseText:
    """The base model's tokenizer and template, as far as adapters are compared with them."""

    template: str | None
    special: Mapping[str, str]  # "eos_token" -> "</s>", …
    load: Callable[[], str] = field(compare=False)  # tokenizer.json of the tokenizer in use
    # What the last few tokenizer.json of adapters came to, by digest: most are copies of one another.
    known: dict[bytes, tuple[str | None, int]] = field(default_factory=dict, compare=False)

    @cached_property
    def tokenizer(self) -> Mapping[str, Any]:
        """``tokenizer.json`` parsed."""
        return json.loads(self.load())  # type: ignore[no-any-return]

    @cached_property
    def sections(self) -> Mapping[str, str]:
        """Digest of each part of the tokenizer that decides how text is read."""
        return _sections(self.tokenizer)


@dataclass(frozen=True)
class AdapterText:
    """What an adapter brings; None where it leaves that to the base."""

    template: str | None = None
    tokenizer: str | None = None  # tokenizer.json, the base's with tokens added
    special: Mapping[str, str] | None = None  # its special tokens, the base's where it names none
    top_id: int = -1  # the largest id of an added token

    @property
    def template_digest(self) -> str | None:
        """The digest that names the template."""
        return None if self.template is None else _sha(self.template)

    @property
    def tokenizer_digest(self) -> str | None:
        """The digest that names the tokenizer with its special tokens."""
        if self.tokenizer is None and self.special is None:
            return None
        return _sha(json.dumps([self.tokenizer, sorted((self.special or {}).items())]))

    def details(self) -> dict[str, str]:
        """For people and for the registry: which template and tokenizer answer."""
        template, tokenizer = self.template_digest, self.tokenizer_digest
        return {
            "chat_template": "base" if template is None else f"adapter:{template}",
            "tokenizer": "base" if tokenizer is None else f"adapter:{tokenizer}",
        }


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
    template = _template(files, config, faults)
    special = _special_tokens(config, _object(files, SPECIAL_TOKENS_NAME, faults), base, faults)
    tokenizer, top = _tokenizer(files, base, faults)
    _check_special(special, tokenizer, base, faults)
    if vocab_size is not None and top >= vocab_size:
        faults.add(
            f"{TOKENIZER_NAME} adds a token with id {top}, but the embeddings have {vocab_size} rows: save "
            "the adapter with its resized embeddings (save_embedding_layers=True)"
        )
    return AdapterText(
        template=None if template == base.template else template,
        tokenizer=tokenizer,
        special=None if special == dict(base.special) else special,
        top_id=top,
    )


def _template(files: Mapping[str, bytes], config: Mapping[str, Any], faults: Faults) -> str | None:
    """The template file, or else what the tokenizer's config holds."""
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
            return None
    if template is None:
        return None
    if not isinstance(template, str):
        faults.add(f"chat_template in {TOKENIZER_CONFIG_NAME} is not a text")
        return None
    if len(template) > MAX_TEMPLATE:
        faults.add(f"the template in {name} has {len(template):,} characters; the limit is {MAX_TEMPLATE:,}")
        return None
    reason = syntax_error(template)
    if reason is not None:
        faults.add(f"the chat template in {name} is not valid Jinja: {reason}")
    return template


def _special_tokens(
    config: Mapping[str, Any], mapping: Mapping[str, Any], base: BaseText, faults: Faults
) -> dict[str, str]:
    """The special tokens by role: the adapter's word, else the base's."""
    result = dict(base.special)
    for key in _SPECIAL:
        value = config.get(key, mapping.get(key))
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            result[key] = text
        elif value is not None:
            faults.add(f"{key} in {TOKENIZER_CONFIG_NAME} is not a token: {shown(value)}")
    return result


def _check_special(special: Mapping[str, str], tokenizer: str | None, base: BaseText, faults: Faults) -> None:
    """A special token that the tokenizer does not know would be added to it under a new id."""
    if special == base.special:
        return
    own = base.tokenizer if tokenizer is None else json.loads(tokenizer)
    known = {token["content"] for token in own["added_tokens"]} | set(own["model"].get("vocab", ()))
    for key, text in special.items():
        if text not in known and base.special.get(key) != text:
            faults.add(f"{key} {shown(text)} is not a token of the tokenizer")


def _tokenizer(files: Mapping[str, bytes], base: BaseText, faults: Faults) -> tuple[str | None, int]:
    """``tokenizer.json`` with the base's way of reading text (None if it is the base's), and the top id."""
    if TOKENIZER_NAME not in files:
        lonely = [name for name in VOCABULARY_NAMES if name in files]
        if lonely:
            faults.add(f"{some(lonely, len(lonely))} without {TOKENIZER_NAME}: save the fast tokenizer")
        return None, -1
    content = files[TOKENIZER_NAME]
    digest = hashlib.sha256(content).digest()
    before = len(faults)
    if digest not in base.known:
        result = _read_tokenizer(content, base, faults)
        if len(faults) != before:
            return None, -1
        if len(base.known) >= _MAX_KNOWN:
            base.known.clear()
        base.known[digest] = result
    return base.known[digest]


def _read_tokenizer(content: bytes, base: BaseText, faults: Faults) -> tuple[str | None, int]:
    try:
        raw = parse_json_object(content, TOKENIZER_NAME)
        if _sections(raw) == base.sections and all(raw.get(k) == base.tokenizer.get(k) for k in _OTHERS):
            return None, -1
        own = _canonical(raw)
    except FileFault as fault:
        faults.add(str(fault))
        return None, -1
    differing = [name for name, digest in _sections(own).items() if digest != base.sections[name]]
    if differing:
        faults.add(
            f"{TOKENIZER_NAME} reads text in another way than the base's ({', '.join(differing)} differ): an "
            "adapter may add tokens to the tokenizer of its base, and nothing else"
        )
        return None, -1
    return _added(own, base, faults)


def _added(own: Mapping[str, Any], base: BaseText, faults: Faults) -> tuple[str | None, int]:
    theirs = {token["id"]: token for token in base.tokenizer["added_tokens"]}
    ours = {token["id"]: token for token in own["added_tokens"]}
    moved = [t["content"] for i, t in theirs.items() if ours.get(i, {}).get("content") != t["content"]]
    if moved:
        names = some(moved, len(moved))
        faults.add(f"{TOKENIZER_NAME} lacks tokens of the base, or gives their ids to others: {names}")
    new = [token for token_id, token in ours.items() if token_id not in theirs]
    if len(new) > MAX_ADDED_TOKENS:
        faults.add(f"{TOKENIZER_NAME} adds {len(new)} tokens; the limit is {MAX_ADDED_TOKENS}")
    taken = set(base.tokenizer["model"].get("vocab", {}).values()) if new else set()
    clashing = [token["content"] for token in new if token["id"] in taken]
    if clashing:
        faults.add(f"{TOKENIZER_NAME} adds tokens under ids of the base: {some(clashing, len(clashing))}")
    if all(own.get(key) == base.tokenizer.get(key) for key in _OTHERS):
        return None, -1
    reading = {name: base.tokenizer[name] for name in _SECTIONS}
    text = json.dumps({**own, **reading, "truncation": None, "padding": None})
    return text, _top_id(text, new)


def _top_id(text: str, new: Sequence[Mapping[str, Any]]) -> int:
    """The largest id that an added token has, or that is put around every text."""
    around = Tokenizer.from_str(text).encode("").ids
    return max([*(token["id"] for token in new), *around], default=-1)


def _canonical(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tokenizer as the library writes it, so that files of different ages compare.

    It gives added tokens the ids that follow the vocabulary, whatever the file says.

    Raises:
        FileFault: it is no tokenizer.
    """
    try:
        text = Tokenizer.from_str(json.dumps(raw)).to_str()
    except BaseException as error:  # the library's own panics derive from that
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise FileFault(f"{TOKENIZER_NAME} can't be read as a tokenizer: {shown(str(error))[1:-1]}") from None
    return json.loads(text)  # type: ignore[no-any-return]


def _sections(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    return {name: _sha(json.dumps(tokenizer.get(name), sort_keys=True)) for name in _SECTIONS}


def _object(files: Mapping[str, bytes], name: str, faults: Faults) -> Mapping[str, Any]:
    if name not in files:
        return {}
    try:
        return parse_json_object(files[name], name)
    except FileFault as fault:
        faults.add(str(fault))
        return {}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
