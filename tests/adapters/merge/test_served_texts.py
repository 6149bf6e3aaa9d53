"""What is exported or composed reads, writes and stops as it was served, in whatever form adapters say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, GenerationConfig

from manylora.adapters.base_models.generation import read_generation
from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.merge.compose import compose, save
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import plan_export
from manylora.adapters.merge.recipe import Member, recipe_of
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.adapters import write_adapter
from tests.support.members import LIMITS
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer, tiny_model

OWN = "{% for m in messages %}[{{ m['content'] }}]{{ eos_token }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def template_file(_: Path) -> None:
    """The base as transformers saves it."""


def inline(base: Path) -> None:
    (base / "chat_template.jinja").unlink()
    edit(base / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)


def named(base: Path) -> None:
    (base / "chat_template.jinja").unlink()
    templates = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": "tools"}]
    edit(base / "tokenizer_config.json", chat_template=templates)


def more_ends(base: Path) -> None:
    edit(base / "generation_config.json", eos_token_id=[258, 7], temperature=0.5, do_sample=True)


def no_generation_file(base: Path) -> None:
    (base / "generation_config.json").unlink()


BASES = [template_file, inline, named, more_ends, no_generation_file]


def nothing(_: Path) -> None:
    pass


def own_file(adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text(OWN)


def own_inline(adapter: Path) -> None:
    byte_tokenizer().save_pretrained(adapter)
    (adapter / "chat_template.jinja").unlink()
    edit(adapter / "tokenizer_config.json", chat_template=OWN)


def own_named(adapter: Path) -> None:
    templates = [{"name": "rag", "template": "rag"}, {"name": "default", "template": OWN}]
    edit(adapter / "tokenizer_config.json", chat_template=templates)


def only_template_key(adapter: Path) -> None:
    edit(adapter / "tokenizer_config.json", chat_template=OWN)


def only_end_key(adapter: Path) -> None:
    edit(adapter / "tokenizer_config.json", eos_token="<pad>")


def end_and_template(adapter: Path) -> None:
    edit(adapter / "tokenizer_config.json", eos_token={"content": "<|im_start|>"}, chat_template=OWN)


def added_tokens(adapter: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<end>", special=True), AddedToken("<x>")])
    tokenizer.eos_token = "<end>"
    tokenizer.chat_template = OWN
    tokenizer.save_pretrained(adapter)


ADAPTERS: dict[Callable[[Path], None], tuple[str, str, int]] = {  # template, end token and its id
    nothing: ("base", "<|im_end|>", 258),
    own_file: ("own", "<|im_end|>", 258),
    own_inline: ("own", "<|im_end|>", 258),
    own_named: ("own", "<|im_end|>", 258),
    only_template_key: ("own", "<|im_end|>", 258),
    only_end_key: ("base", "<pad>", 256),
    end_and_template: ("own", "<|im_start|>", 257),
    added_tokens: ("own", "<end>", 259),
}


class Case:
    """A base and an adapter of the forms given, and what the server makes of them."""

    def __init__(self, root: Path, base: Callable[[Path], None], adapter: Callable[[Path], None]) -> None:
        self.root = root
        self.directory = tiny_model(root / "base", num_hidden_layers=1)
        base(self.directory)
        self.stored = StoredModel(self.directory)
        self.described = self.stored.describe("base")
        self.member = self.read("adapter", adapter)
        ends = read_generation(self.directory, self.stored.config).eos_ids
        self.served = Tokenizer.load(self.directory, ends).with_text(self.member.artifact.text)
        self.template, self.end, self.end_id = ADAPTERS[adapter]

    def read(self, name: str, adapter: Callable[[Path], None]) -> Member:
        path = write_adapter(self.root / name, self.directory, scale=0.1, seed=len(name))
        adapter(path)
        return Member(name, read_artifact(path, self.described, LIMITS), 1.0)

    def check_prompt(self, found: Any) -> None:
        """The tokenizer ``found`` renders the ids that are served."""
        if self.template == "own":
            text = f"[Hello]{self.end}[Hi]{self.end}"
        else:
            text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
        ids = self.served.encode(text, add_special_tokens=False)
        assert found.apply_chat_template(MESSAGES, tokenize=False) == text
        assert found.apply_chat_template(MESSAGES, return_dict=False) == ids
        assert found.encode("a<x><end> b") == self.served.encode("a<x><end> b")
        assert (found.eos_token, found.eos_token_id) == (self.end, self.end_id)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("base", BASES)
def test_an_export(tmp_path: Path, base: Callable[[Path], None], adapter: Callable[[Path], None]) -> None:
    case = Case(tmp_path, base, adapter)
    export(plan_export(case.stored, "base", [case.member]), tmp_path / "out", compute_dtype=None)
    case.check_prompt(AutoTokenizer.from_pretrained(tmp_path / "out"))
    ends = ends_of(tmp_path / "out")
    assert ends == case.served.eos_ids
    assert case.end_id in ends
    if base is more_ends:
        assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.5


def ends_of(directory: Path) -> frozenset[int]:
    """Where transformers stops."""
    if not (directory / "generation_config.json").exists():
        return frozenset([json.loads((directory / "config.json").read_text())["eos_token_id"]])
    found = GenerationConfig.from_pretrained(directory).eos_token_id
    return frozenset([found] if isinstance(found, int) else found)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [a for a in ADAPTERS if a is not nothing])
@pytest.mark.parametrize("base", [template_file, named])
def test_a_composition(tmp_path: Path, base: Callable[[Path], None], adapter: Callable[[Path], None]) -> None:
    case = Case(tmp_path, base, adapter)
    save(compose([case.member], recipe_of("linear"), case.described), tmp_path / "out")
    case.check_prompt(AutoTokenizer.from_pretrained(tmp_path / "out"))
    again = read_artifact(tmp_path / "out", case.described, LIMITS).text
    assert again.template == case.member.artifact.text.template
    assert again.special == case.member.artifact.text.special
    assert again.tokenizer_digest == case.member.artifact.text.tokenizer_digest


@pytest.mark.slow
def test_one_brings_the_template_and_another_the_end(tmp_path: Path) -> None:
    """As the server answers with their mix."""
    case = Case(tmp_path, template_file, end_and_template)
    members = [case.read("template", only_template_key), case.read("end", only_end_key)]
    export(plan_export(case.stored, "base", members), tmp_path / "out", compute_dtype=None)
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (found.chat_template, found.eos_token) == (OWN, "<pad>")
    with pytest.raises(ArtifactError, match="different tokenizers or chat templates"):
        plan_export(case.stored, "base", [*members, case.member])
