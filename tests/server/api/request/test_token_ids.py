"""From messages to token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.server.api.request.schemas import Message
from manylora.server.api.request.token_ids import Rendering, chat_ids, prompt_ids
from manylora.server.errors import ContextTooLong, RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.model.text.tokenizer import Tokenizer
from manylora.server.service import Service
from tests.support.running_server import tiny_service
from tests.support.tiny_models import byte_tokenizer

NAMES = "{% for m in messages %}{{ m.name | default(m.role) }}: {{ m.content }}\n{% endfor %}"
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Service]:
    service = tiny_service(model, tmp_path_factory.mktemp("data"))
    yield service
    asyncio.run(service.adapters.close())


def _with_template(template: str | None) -> TextConventions:
    hf = byte_tokenizer()
    hf.chat_template = template
    return TextConventions(Tokenizer(hf))


def _message(role: str = "user", content: str = "Hi", **fields: Any) -> Message:
    return Message.model_validate({"role": role, "content": content, **fields})


async def _chat_ids(
    service: Service, conventions: TextConventions, messages: list[Message]
) -> tuple[int, ...]:
    """The ids of a conversation of which the template ignores nothing."""
    ignored: list[str] = []
    ids = await chat_ids(service, conventions, messages, rendering=Rendering(), ignored=ignored)
    assert ignored == []
    return ids


@pytest.mark.slow
async def test_a_name_reaches_a_template_that_uses_it(service: Service) -> None:
    named = _with_template(NAMES)
    ids = await _chat_ids(service, named, [_message(name="Bob"), _message()])
    assert named.tokenizer.decode(list(ids)) == "Bob: Hi\nuser: Hi\n"


@pytest.mark.slow
async def test_a_name_that_has_no_place_is_told(service: Service) -> None:
    base, ignored = service.conventions.base, list[str]()
    named = [_message(), _message(name="Bob")]
    ids = await chat_ids(service, base, named, rendering=Rendering(), ignored=ignored)
    assert ids == await _chat_ids(service, base, [_message(), _message()])
    assert ignored == ["messages[1].name"]


async def test_a_template_may_refuse(service: Service) -> None:
    with pytest.raises(RequestError, match="no system") as refused:
        await _chat_ids(service, _with_template(PICKY), [_message("system")])
    assert refused.value.param == "messages"


async def test_a_model_without_template(service: Service) -> None:
    with pytest.raises(RequestError, match="/v1/completions"):
        await _chat_ids(service, _with_template(None), [_message()])


async def test_long_texts_go_to_a_thread_and_come_back_the_same(service: Service) -> None:
    text = "long " * 8000
    assert await prompt_ids(service, service.conventions.base, text) == tuple(service.tokenizer.encode(text))
    with pytest.raises(ContextTooLong):
        await prompt_ids(service, service.conventions.base, text * 10)
