"""``vllm bench serve`` as it is: completions, chats and embeddings of adapters, mixes and the base in turn.

Arguments: the base URL, a model and a mix.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser

PROMPTS = 6
LENGTH = 12  # tokens of an answer


def main(url: str, model: str, mix: str) -> None:
    """Ask the server at ``url``."""
    with TemporaryDirectory() as directory:
        tokenizer = Path(directory) / "tokenizer"
        _bytes_as_tokens().save_pretrained(tokenizer)

        def bench(*arguments: str) -> dict[str, Any]:
            return run(Path(directory), url.removesuffix("/v1"), "--tokenizer", str(tokenizer), *arguments)

        for backend, path in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
            asked = ("--backend", backend, "--endpoint", path, "--random-output-len", str(LENGTH))
            writes(bench("--model", model, *asked))
            writes(bench("--model", "tiny", *asked, "--lora-modules", model, mix, "--request-rate", "50",
                         "--lora-assignment", "round-robin"))  # fmt: skip
        embeds = bench("--model", model, "--backend", "openai-embeddings", "--endpoint", "/v1/embeddings")
        assert embeds["completed"] == PROMPTS
        refused = bench("--model", "nobody", "--ready-check-timeout-sec", "0", "--backend", "openai")
        assert refused["completed"] == 0
        assert refused["failed"] == PROMPTS
        assert all("nobody" in error or "Not Found" in error for error in refused["errors"]), refused


def writes(result: dict[str, Any]) -> None:
    """All were answered, each with as many tokens as it was asked for, and streamed."""
    assert result["completed"] == PROMPTS, result["errors"]
    assert result["output_lens"] == [LENGTH] * PROMPTS
    assert result["total_output_tokens"] == LENGTH * PROMPTS
    assert result["mean_ttft_ms"] > 0
    assert all(map(len, result["itls"]))


def run(directory: Path, url: str, *arguments: str) -> dict[str, Any]:
    """What one run of the benchmark found; all in this process, which takes long to import it."""
    result = directory / "result.json"
    result.unlink(missing_ok=True)
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    serve.main(
        parser.parse_args(
            ["--base-url", url, "--dataset-name", "random", "--random-input-len", "16",
             "--num-prompts", str(PROMPTS), "--save-result", "--save-detailed", "--disable-tqdm",
             "--temperature", "0", "--result-dir", str(directory), "--result-filename", result.name,
             *arguments]
        )
    )  # fmt: skip
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def _bytes_as_tokens() -> PreTrainedTokenizerFast:
    """A token a byte: the benchmark writes its prompts with it and counts what comes back."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


if __name__ == "__main__":
    main(*sys.argv[1:])
