"""How well a base answers with keys and values in 8 bits, beside the same base with them in full.

Measured is what the model says next at every position of windows of prose and code: how often both rank the
same token first, and the KL divergence. The last line printed is the result as one line of JSON.

    python -m bench.kv_cache_quality --base smollm2-135m
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import AutoTokenizer

from bench import machine, report
from bench.int8_quality import WINDOW, Row, written_texts
from bench.run import RESULTS, resolve_base
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs, page_length
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.loading.loader import decoder_candidates, load_model


def decoder_of(base: Path, *, coded_cache: bool) -> Decoder:
    """The base in bf16, with room for one window and no adapters."""
    loaded = load_model(base, dtype="bf16", device="cpu", max_model_len=None)
    decoder = next(iter(decoder_candidates(loaded, coded_cache=coded_cache)))
    widest = max(max(m.in_features, m.out_features) for m in decoder.modules)
    decoder.allocate(torch.zeros(page_length(widest), dtype=loaded.dtype), 1 + WINDOW // BLOCK_SIZE, WINDOW)
    return decoder


def log_probabilities(decoder: Decoder, window: torch.Tensor) -> torch.Tensor:
    """What the decoder says after every token of ``window`` [1, n]: [n, V]."""
    count = window.shape[1]
    positions = np.arange(count)
    inputs = StepInputs(
        token_ids=window[0].numpy(),
        positions=positions,
        slots=BLOCK_SIZE + positions,
        query_start=np.array([0, count], np.int32),
        context=np.array([count], np.int32),
        block_tables=np.arange(1, 2 + (count - 1) // BLOCK_SIZE, dtype=np.int32)[None],
        logits_rows=positions,
        lora=None,
    )
    return decoder.step(inputs).float().log_softmax(-1)


def compared(name: str, full: Decoder, coded: Decoder, windows: Sequence[torch.Tensor]) -> Row:
    """``coded`` against ``full`` on ``windows``."""
    same, divergence, positions = 0, 0.0, 0
    for window in windows:
        wanted, found = (log_probabilities(decoder, window) for decoder in (full, coded))
        same += int((wanted.argmax(-1) == found.argmax(-1)).sum())
        divergence += float((wanted.exp() * (wanted - found)).sum())
        positions += len(wanted)
    return Row(name, positions, same / positions, divergence / positions)


def main(*, base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m") -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    path = resolve_base(base)
    full, coded = (decoder_of(path, coded_cache=on) for on in (False, True))
    texts = written_texts(AutoTokenizer.from_pretrained(path))
    rows = [
        compared(name, full, coded, windows) for name, windows in zip(("prose", "code"), texts, strict=True)
    ]
    for row in rows:
        print(row)
    share = coded.kv_bytes_per_block / full.kv_bytes_per_block
    figures = {"bytes": round(share, 3), "rows": [asdict(row) for row in rows], "kernels": coded.kernels}
    line = json.dumps({"bench": "kv-cache-quality", **machine.setting(), "base": base, **figures})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-kv-cache-quality")
    print(line)


if __name__ == "__main__":
    typer.run(main)
