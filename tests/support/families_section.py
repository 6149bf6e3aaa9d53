"""The section of ``docs/models.md`` on families of the fused decoder; run as a module it is rewritten."""

from __future__ import annotations

from manylora.server.model.decoders.families import FAMILIES, Family
from tests.support.page_section import PageSection
from tests.support.paths import DOCS

SECTION = PageSection(DOCS / "models.md", "families")


def table() -> str:
    """What the code says."""
    lines = ["| family | `model_type` | beyond Llama |", "|---|---|---|"]
    for name, family in FAMILIES.items():
        lines.append(f"| {family.title} | `{name}` | {'; '.join(_features(family)) or 'nothing'} |")
    return "\n".join(lines)


def _features(family: Family) -> list[str]:
    attributes = {
        "embeddings times": family.embedding_scale,
        "what layers add times": family.residual_scale,
        "logits divided by": family.logit_divisor,
        "logits bounded by": family.logit_cap,
        "attention scores bounded by": family.score_cap,
        "a window in all layers:": family.window,
    }
    said = {
        "one module for q, k and v, one for gate and up": len(family.modules["qkv"]) == 1,
        "routed experts in place of the MLP": family.experts is not None,
        "no norms before attention and MLP": "input_norm" not in family.norms,
        "norms behind attention and MLP": "mlp_norm" in family.norms,
        "norms of queries and keys": "q_norm" in family.norms,
        "norms multiply by 1 + weight": family.norm_offset == 1,
        "embeddings times the root of their width": family.scaled_embeddings,
        "a rotary table for each type of layer": family.rope_by_layer_type,
        "layers without positions": family.skips_rope,
    }
    named = [f"{words} `{attribute}`" for words, attribute in attributes.items() if attribute is not None]
    return [words for words, there in said.items() if there] + named


if __name__ == "__main__":
    SECTION.rewrite(table())
