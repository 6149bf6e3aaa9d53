"""What a config says about the tables of the vocabulary: the input embeddings and the output head.

PEFT changes them by LoRA (``target_modules``), replaces them (``modules_to_save``), or replaces some rows
(``trainable_token_indices``). Where the base ties both tables, the last also changes the head, and so do
the others under ``ensure_weight_tying``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from manylora.adapters.format.base import BaseModel, BaseVocabulary
from manylora.adapters.format.config.config import CLASS_HEADS, AdapterConfig
from manylora.adapters.format.config.targets import (
    Target,
    saved_modules,
    saves_embeddings,
    table_targets,
    targets_embeddings,
    token_tables,
)
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.weights.expected_tensors import PREFIX


@dataclass(frozen=True, slots=True)
class TableLayout:
    """What a config says about one table [V', width]."""

    name: str  # of the module in the base
    width: int
    is_head: bool
    lora: Target | None = None
    saved: bool = False  # replaced as a whole
    tokens: tuple[int, ...] = ()  # whose rows are replaced
    tied: bool = False  # what changes it is what changes the embeddings
    wrapper: str = "token_adapter."  # what stands before the names of its trained tokens

    def key(self, ending: str) -> str:
        """The name of the table's tensor that ends like this."""
        return f"{PREFIX}{self.name}.{ending}"

    @property
    def tokens_option(self) -> str:
        """The option of the config that names its trained tokens."""
        return "trainable_token_indices" if self.wrapper else "token_indices"

    @property
    def changes(self) -> list[str]:
        """The options of the config that change the table."""
        found = {
            "target_modules": self.lora is not None,
            "modules_to_save": self.saved,
            self.tokens_option: bool(self.tokens),
        }
        return [name for name, used in found.items() if used]


@dataclass(frozen=True, slots=True)
class VocabularyLayout:
    """What a config says about both tables of a base with ``size`` tokens; ``tied``: they are one tensor."""

    embedding: TableLayout
    head: TableLayout
    size: int
    tied: bool
    class_heads: tuple[str, ...] = ()  # where the head over classes may be, which then is the only one

    @property
    def tables(self) -> tuple[TableLayout, ...]:
        """Embeddings and head, or the embeddings alone of what classifies."""
        return (self.embedding,) if self.class_heads else (self.embedding, self.head)

    @property
    def changes(self) -> bool:
        """Whether the config names either table."""
        return any(table.changes for table in self.tables)

    @property
    def replaces(self) -> bool:
        """Whether a table, or rows of one, take the place of the base's."""
        return any(table.saved or table.tokens for table in self.tables)


def lay_out_vocabulary(config: AdapterConfig, base: BaseModel, faults: Faults) -> VocabularyLayout | None:
    """What ``config`` says about the tables of ``base``; None where it has none that can be changed."""
    vocabulary = base.vocabulary
    saved = saved_modules(config, base)
    _check_saved(config, saved, base, faults)
    if vocabulary is None:
        if config.tokens:
            faults.add("trainable_token_indices is not served on this base's embeddings")
        if config.classifies:
            faults.add("classification heads are not served on this base")
        return None
    lora = table_targets(config, base)
    tokens = _tokens(config, base, vocabulary, faults)
    wrapper = "" if config.kind == "TRAINABLE_TOKENS" else "token_adapter."
    embedding = TableLayout(vocabulary.embedding, vocabulary.width, is_head=False, wrapper=wrapper)
    head = TableLayout(vocabulary.head, vocabulary.head_width, is_head=True, wrapper=wrapper)
    embedding, head = (
        replace(t, lora=lora.get(t.name), saved=t.name in saved, tokens=tokens.get(t.name, ()))
        for t in (embedding, head)
    )
    prefix = PREFIX if config.prompt is None else "base_model."  # PEFT wraps no tuner around the base then
    heads = tuple(f"{prefix}{name}.weight" for name in CLASS_HEADS) if config.classifies else ()
    tied = vocabulary.tied and not heads  # a classification model has no output head to share them with
    if tied:
        embedding, head = _tie(config, embedding, head, faults)
    layout = VocabularyLayout(embedding, head, vocabulary.size, tied, heads)
    _check_combinations(config, layout, vocabulary, faults)
    return layout


def _check_saved(config: AdapterConfig, saved: frozenset[str], base: BaseModel, faults: Faults) -> None:
    """Of the modules replaced as a whole, norms are laid out with the other modules of the blocks."""
    everything = (*base.modules, *base.others)
    for ending in config.modules_to_save:
        if not any(name.endswith(ending) for name in everything):
            faults.add(
                f"modules_to_save names {shown(ending)}, which is not in the base ({base.architecture})"
            )
    tables = base.vocabulary
    served = base.norms.keys() | (frozenset() if tables is None else {tables.embedding, tables.head})
    others = sorted(saved - served)
    if others:
        faults.add(
            f"modules_to_save selects {some(others, len(others))}: only norms that scale what they "
            "normalize, and the input embeddings and the output head where a base's can be changed, are "
            "served as whole replaced modules (merge the adapter into the base with PEFT instead)"
        )


def _tokens(
    config: AdapterConfig, base: BaseModel, vocabulary: BaseVocabulary, faults: Faults
) -> Mapping[str, tuple[int, ...]]:
    """The tokens whose rows are replaced, by table."""
    if config.kind == "TRAINABLE_TOKENS":
        if len(set(config.tokens[""])) < len(config.tokens[""]):
            faults.add("token_indices holds a token twice")
            return {}
        if not config.tokens[""]:
            faults.add("token_indices is missing or empty: name the tokens whose rows the adapter replaces")
            return {}
        return dict.fromkeys(token_tables(config, base), config.tokens[""])
    result: dict[str, tuple[int, ...]] = {}
    for ending, tokens in config.tokens.items():
        names = [n for n in (vocabulary.embedding, vocabulary.head) if n.endswith(ending or n)]
        name = names[0] if names else None
        if name is None:
            faults.add(f"trainable_token_indices names {shown(ending)}: only embeddings and head are served")
        elif len(set(tokens)) < len(tokens):
            faults.add("trainable_token_indices holds a token twice")
        else:
            result[name] = tokens
    return result


def _tie(
    config: AdapterConfig, embedding: TableLayout, head: TableLayout, faults: Faults
) -> tuple[TableLayout, TableLayout]:
    """On a base that ties both tables: what PEFT makes the head share with the embeddings."""
    if embedding.tokens:
        if not head.tokens or head.tokens == embedding.tokens:
            if head.lora is not None or head.saved:
                faults.add("trainable_token_indices is not served beside other changes to a tied head")
            head = replace(head, tokens=embedding.tokens, tied=True)
        elif config.ensure_weight_tying:
            faults.add("ensure_weight_tying needs the same trainable_token_indices for embeddings and head")
    if config.ensure_weight_tying and saves_embeddings(config):
        embedding, head = replace(embedding, saved=True), replace(head, saved=True, tied=True)
    elif config.ensure_weight_tying and targets_embeddings(config):
        lora = embedding.lora or head.lora
        embedding, head = replace(embedding, lora=lora), replace(head, lora=lora, tied=True)
    return embedding, head


def _check_combinations(
    config: AdapterConfig, layout: VocabularyLayout, vocabulary: BaseVocabulary, faults: Faults
) -> None:
    for table in layout.tables:
        if len(table.changes) > 1:
            faults.add(f"{' and '.join(table.changes)} both change {shown(table.name)}")
    lora = any(table.lora for table in layout.tables)
    if lora and config.use_dora:
        faults.add("use_dora is not served on embeddings and output head")
    if lora and config.lora_bias:
        faults.add("lora_bias is not served on embeddings and output head")
    if layout.changes and config.activation is not None:
        faults.add("alora_invocation_tokens cannot be used with changes to embeddings or output head")
    if layout.class_heads and config.activation is not None:
        faults.add("alora_invocation_tokens cannot be used with a classification head")
    if vocabulary.head_bias and (layout.head.saved or layout.head.tokens):
        faults.add("the output head of this base has a bias: only LoRA is served on it")
