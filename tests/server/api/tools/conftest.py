"""A server whose models write what tests say, each adapter in a format of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import AddedToken

from tests.support import tool_templates as templates
from tests.support.adapters import write_adapter
from tests.support.running_server import tiny_service
from tests.support.scripted import Scripted, scripted
from tests.support.tiny_models import byte_tokenizer, tiny_model

OWN = {
    "coder": templates.CODER,
    "mistral": templates.MISTRAL,
    "deaf": templates.DEAF,
    "mute": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "thinking": templates.THINKING,
    "opened": templates.OPENED,
}


def _with_template(directory: Path, template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """A base that calls tools as Hermes does, and adapters with formats of their own."""
    model = tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)
    _with_template(model, templates.HERMES)
    root = tmp_path_factory.mktemp("adapters")
    paths = {
        name: write_adapter(root / name, model, seed=i) for i, name in enumerate([*OWN, "plain", "told"])
    }
    for name, template in OWN.items():
        (paths[name] / "chat_template.jinja").write_text(template)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    tokenizer.chat_template = templates.MISTRAL
    tokenizer.save_pretrained(paths["mistral"])
    spec = {
        "start_anchor": "assistant",
        "fields": {
            "tool_calls": {"open": "<c>", "close": "</c>", "repeats": True, "content": "json",
                           "transform": {"type": "function", "function": "{content}"}},
        },
    }  # fmt: skip
    config = {"chat_template": templates.HERMES, "response_template": spec}
    (paths["told"] / "tokenizer_config.json").write_text(json.dumps(config))
    service = tiny_service(model, tmp_path_factory.mktemp("data"), adapter=paths, kv_cache_memory=32 << 20)
    with pytest.MonkeyPatch.context() as patch, scripted(service, patch) as made:
        yield made
