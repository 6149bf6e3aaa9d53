"""What other people's suites are run against, and how their results are judged.

A check that fails is an error unless it is listed with the reason, and so is one that passes in spite of its
reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from manylora.server.service import Service
from tests.support import tool_templates
from tests.support.running_server import tiny_service
from tests.support.tiny_models import byte_tokenizer, tiny_model


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check."""

    name: str
    passed: bool
    told: str = ""


@contextmanager
def served_model() -> Iterator[Service]:
    """A tiny random model, ``tiny``, whose chat template has a place for tools."""
    with TemporaryDirectory(prefix="manylora-conformance-") as directory:
        model = tiny_model(Path(directory) / "model", max_position_embeddings=4096)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = tool_templates.HERMES
        tokenizer.save_pretrained(model)
        yield tiny_service(model, Path(directory) / "data")


def unexpected(results: Iterable[Result], expected: Mapping[str, str]) -> list[str]:
    """The results that are not as they should be; prints all. ``expected``: checks that fail, and why."""
    found = []
    for result in results:
        status = "passed" if result.passed else "failed"
        reason = f" (expected: {expected[result.name]})" if result.name in expected else ""
        print(f"{result.name:<32} {status}{reason}", flush=True)
        if result.passed == (result.name in expected):
            found.append(f"{result.name} {status}: {result.told}")
    return found
