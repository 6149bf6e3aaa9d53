"""What PEFT reaches in process, without HTTP: a mixed batch by ``adapter_names``, or one request at a time.

    python -m bench.peft_baseline --base DIR --adapters 8 --mode mixed

The last line printed is the result as one line of JSON; it is also kept in ``bench/results``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import machine, peers, report
from bench.adapters import write_adapters
from bench.run import RESULTS, resolve_base
from manylora.server.cli.loadgen.generated_prompts import PromptShape

Generate = Callable[[Sequence[str]], None]  # answers one prompt for each adapter


def load_model(base: Path, adapters: Sequence[Path]) -> Any:
    """The base in bf16 with all adapters added, named a0, a1, ..."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    wrapped = PeftModel.from_pretrained(model, adapters[0], adapter_name="a0")
    for number, path in enumerate(adapters[1:], start=1):
        wrapped.load_adapter(path, adapter_name=f"a{number}")
    return wrapped.eval()


def generator(model: Any, tokenizer: Any, mode: str, output_tokens: int) -> Generate:
    """How ``mode`` answers prompts: prompt i with adapter i, greedily, exactly ``output_tokens`` each."""
    options = {"max_new_tokens": output_tokens, "min_new_tokens": output_tokens, "do_sample": False}

    def mixed(prompts: Sequence[str]) -> None:
        names = [f"a{number}" for number in range(len(prompts))]
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
        model.generate(**inputs, adapter_names=names, **options)

    def one_by_one(prompts: Sequence[str]) -> None:
        for number, prompt in enumerate(prompts):
            model.set_adapter(f"a{number}")
            model.generate(**tokenizer(prompt, return_tensors="pt"), **options)

    return mixed if mode == "mixed" else one_by_one


def measure(generate: Generate, count: int, output_tokens: int, repeat: int) -> list[float]:
    """Output tokens per second of every repetition, after one for warming up."""
    rates: list[float] = []
    with torch.inference_mode():
        for repetition in range(-1, repeat):
            prompts = [PromptShape().prompt(f"peft/{repetition}/{number}") for number in range(count)]
            start = perf_counter()
            generate(prompts)
            rates.append(count * output_tokens / (perf_counter() - start))
    return rates[1:]


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")] = (
        "smollm2-135m"
    ),
    adapters: Annotated[int, typer.Option(min=1)] = 8,
    mode: Annotated[Literal["mixed", "set_adapter"], typer.Option()] = "mixed",
    rank: Annotated[int, typer.Option(min=1)] = 16,
    output_tokens: Annotated[int, typer.Option(min=2)] = 64,
    repeat: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Measure PEFT in this process."""
    started = datetime.now(UTC)
    directory = resolve_base(base)
    paths = write_adapters(directory, peers.cache() / "adapters", count=adapters, ranks=[rank], dtype="bf16")
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    generate = generator(load_model(directory, paths), tokenizer, mode, output_tokens)
    rates = measure(generate, adapters, output_tokens, repeat)
    about = {"started": f"{started:%Y-%m-%dT%H:%M:%SZ}", **machine.setting(), "base": base}
    result = {"mode": mode, "adapters": adapters, "rank": rank, "output_tokens": output_tokens}
    line = report.json_line("peft", {**about, **result, "output_tokens_per_second": median(rates)}, ())
    report.save(line, RESULTS, f"{started:%Y%m%d-%H%M%S}-peft-{mode}")
    print(line)


if __name__ == "__main__":
    typer.run(main)
