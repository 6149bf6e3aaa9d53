"""The section of ``docs/gpu.md`` on what fits which card; run as a module it is rewritten."""

from __future__ import annotations

from manylora.adapters.training.model.loading import meta_model
from manylora.server.options.defaults import GPU_BATCH_TOKENS, GPU_SEQUENCES
from manylora.server.sizing.fits import Serving
from manylora.server.sizing.shape import BaseShape
from manylora.server.sizing.step import StepSize
from tests.support.page_section import PageSection
from tests.support.paths import DOCS
from tests.support.usual_bases import CONFIGS, LIKE

SECTION = PageSection(DOCS / "gpu.md", "sizing")
CARDS = (16, 24, 48, 80)  # GiB
CONTEXT, RANK = 8192, 16


def table() -> str:
    """What the code says."""
    lines = [
        f"| base | weights | {' | '.join(f'{card} GiB' for card in CARDS)} |",
        f"|---|---|{'---|' * len(CARDS)}",
    ]
    for name, config in CONFIGS.items():
        shape = BaseShape.of(config, meta_model(config))
        for form in ("bf16", "int8", "nf4"):
            serving = Serving(shape, form, StepSize(GPU_BATCH_TOKENS, GPU_SEQUENCES, CONTEXT, 64), RANK)
            cells = " | ".join(_cell(serving, card << 30) for card in CARDS)
            title = f"{LIKE[name]}" if form == "bf16" else ""
            lines.append(f"| {title} | {form}, {serving.weights / 2**30:.1f} GiB | {cells} |")
    return "\n".join(lines)


def _cell(serving: Serving, card: int) -> str:
    """Thousands of tokens in the KV cache, and adapters on the card."""
    division = serving.on(card)
    if division is None:
        return "-"
    return f"{division.tokens // 1000:,}k, {division.adapters // serving.adapter:,}"


if __name__ == "__main__":
    SECTION.rewrite(table())
