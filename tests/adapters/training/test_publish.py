"""A finished adapter goes to a running server and answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.training.errors import PublishError
from manylora.adapters.training.run.upload import upload
from tests.support.engine_harness import hf_greedy
from tests.support.running_server import Running, serving, tiny_service
from tests.support.training_runs import config, run


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny_service(tiny_llama, tmp_path_factory.mktemp("data"))) as running:
        yield running


@pytest.mark.slow
def test_published_and_served(server: Running, tiny_llama: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    url = str(server.http().base_url)
    result = run(config(tiny_llama, tmp_path, name="fresh", publish=url))
    messages: Any = [{"role": "user", "content": "say 31"}]
    answer = server.client().chat.completions.create(
        model="fresh",
        messages=messages,
        max_tokens=8,
        temperature=0,
    )
    model = AutoPeftModelForCausalLM.from_pretrained(result.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.adapter)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = hf_greedy(model, prompt, 8)
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    assert answer.choices[0].message.content == tokenizer.decode(ids[:end])


@pytest.mark.slow
def test_what_a_server_refuses_is_told(server: Running, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    url = str(server.http().base_url)
    with pytest.raises(PublishError, match=r"/v1/adapters/bad: 4\d\d: .*peft_type"):
        upload(tmp_path, url, "bad")
    with pytest.raises(PublishError, match="the adapter is in"):
        upload(tmp_path, "http://127.0.0.1:1", "bad")
