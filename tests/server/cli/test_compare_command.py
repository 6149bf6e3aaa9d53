"""``manylora compare`` against a real server, and the report it writes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from manylora.server.cli.compare.report import html_report
from manylora.server.cli.main import app
from tests.support.running_server import Running
from tests.support.served_adapters import compare

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too' </pre><img src=x onerror=alert(2)>"


def run(server: Running | None, *arguments: str) -> Result:
    """Run the command; without a server, against a port where nobody listens."""
    url = "http://127.0.0.1:1" if server is None else server.url
    env = {"MANYLORA_URL": url, "COLUMNS": "120", "NO_COLOR": "1"}
    return CliRunner(env=env).invoke(app, ["compare", *arguments])


def test_answers_numbers_and_verdict(server: Running) -> None:
    result = run(server, "-t", "tiny", "-t", "alpha", "-t", "tiny", "-p", "Hello", "--max-tokens", "8")
    assert result.exit_code == 0, result.output
    found = compare(
        server, "tiny", "alpha", "tiny", conversations=[[{"role": "user", "content": "Hello"}]], max_tokens=8
    )
    row = next(line for line in result.stdout.splitlines() if line.startswith("alpha ") and "%" in line)
    assert row.split()[-1] == "different"
    assert f"{found['summary'][1]['mean_kl']:.3g}" in row
    same = next(line for line in result.stdout.splitlines() if "equal up to rounding" in line)
    assert same.split()[:6] == ["tiny", "0", "0", "0", "0", "100%"]
    assert found["verdict"]["sentence"] in " ".join(result.stdout.split())
    assert "mean KL up to 0.001" in result.stdout


def test_json_is_the_servers_answer(server: Running) -> None:
    result = run(server, "-t", "tiny", "-t", "beta", "-p", "Hi", "--max-tokens", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["object"] == "comparison"
    assert [target["target"] for target in found["targets"]] == ["tiny", "beta"]


def test_prompts_from_files(server: Running, tmp_path: Path) -> None:
    lines, talks = tmp_path / "lines.txt", tmp_path / "talks.json"
    talk = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Who?"}]
    lines.write_text(f"What?\n\n{json.dumps({'messages': talk, 'id': 1})}\n")
    talks.write_text(json.dumps([talk, talk]))
    arguments = ("-t", "tiny", "-t", "alpha", "--max-tokens", "2", "--json", "-p", "One")
    result = run(server, *arguments, "--file", str(lines), "--messages", str(talks))
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["cases"]) == 5
    raw = run(server, *arguments, "--raw", "--reference", " two", "--seed", "3", "--one-by-one")
    case = json.loads(raw.stdout)["cases"][0]
    assert case["reference"]["text"] == " two"
    assert case["answers"][0]["prompt_tokens"] == len("One")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("-t", "tiny", "-t", "alpha"), 2, "nothing to ask"),
        (("-t", "tiny", "-t", "alpha", "--file", "/nowhere"), 2, "/nowhere can't be read: No such file"),
        (("-t", "tiny", "-t", "a", "-p", "x", "--reference", "y", "--baseline", "1"), 2, "--baseline"),
        (("-t", "tiny", "-t", "alpha", "-p", "x", "--baseline", "2"), 2, "--baseline 2: the targets"),
        (("-t", "tiny", "-t", "nobody", "-p", "x"), 1, "nobody"),
        (("-t", "tiny", "-p", "x"), 1, "targets: must hold at least 2 items, not 1"),
        (("-t", "tiny", "-t", "alpha", "-p", "x", "--html", "/nowhere/report.html"), 2, "can't be written"),
    ],
)
def test_what_can_not_be_done(server: Running, arguments: tuple[str, ...], status: int, said: str) -> None:
    result = run(server, *arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert said in result.stderr
    assert all(line.startswith("manylora: ") for line in result.stderr.splitlines()), result.stderr


@pytest.mark.parametrize("text", ["{not json", '{"messages": 3}', '{"prompt": "x"}'])
def test_lines_that_are_no_conversation(server: Running, tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f"fine\n{text}\n")
    result = run(server, "-t", "tiny", "-t", "alpha", "--file", str(path))
    assert result.exit_code == 2
    assert f"{path}:2" in result.stderr


def test_nobody_answers() -> None:
    result = run(None, "-t", "tiny", "-t", "alpha", "-p", "x")
    assert result.exit_code == 3
    assert "no server at http://127.0.0.1:1" in result.stderr


class _Page(HTMLParser):
    """Collects what a browser would see: elements, the text outside of styles, references to elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "img", "line", "circle"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"line", "circle"}:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def hostile(value: Any) -> Any:
    """A result whose texts all try to be markup."""
    if isinstance(value, dict):
        texts = {"text", "target", "model", "baseline", "top_tokens", "stop_reason"}
        return {
            k: HOSTILE
            if k in texts and isinstance(v, str)
            else [HOSTILE] * len(v)
            if k == "top_tokens"
            else hostile(v)
            for k, v in value.items()
        }
    return [hostile(item) for item in value] if isinstance(value, list) else value


def test_the_report_is_one_file_that_fetches_nothing(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    result = run(
        server,
        "-t",
        "tiny",
        "-t",
        "alpha",
        "-t",
        "tiny",
        "-p",
        "Hi",
        "--max-tokens",
        "9",
        "--html",
        str(path),
    )
    assert result.exit_code == 0, result.output
    page = _Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    names = [name for tag, attributes in page.tags for name in attributes]
    assert not {"src", "href", "srcset"} & set(names)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe"}
    assert "url(" not in path.read_text()
    assert sum(tag == "svg" for tag, _ in page.tags) == 1
    spans = [a for tag, a in page.tags if tag == "span" and "KL" in (a.get("title") or "")]
    assert len(spans) == 2 * 9
    assert sum(tag == "circle" for tag, _ in page.tags) == 2 * 9
    assert "alpha: different." in page.text
    assert "mean KL up to" in page.text


def test_markup_in_any_text_stays_text(server: Running) -> None:
    result = hostile(compare(server, "tiny", "alpha", max_tokens=5))
    source = html_report(result, [HOSTILE], HOSTILE)
    page = _Page(source)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.text.count(HOSTILE) >= 6
    assert not re.search(r"<script|<img", source)
