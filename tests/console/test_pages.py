"""``/console`` over HTTP: headers, caching, packing, and nothing but the files that are meant."""

from __future__ import annotations

import gzip
from pathlib import Path

import httpx
import pytest

from manylora.server.console.assets import Console
from tests.support.running_server import Running, serving, tiny_service
from tests.support.served_adapters import service_of
from tests.support.spelled_targets import Asker, Spelling, Told

FILES = Console()
FOLDER = f"/console/{FILES.version}"
ODD_NAMES = (
    *(
        "../../../../pyproject.toml",
        "..%2f..%2f..%2fpyproject.toml",
        "%2e%2e/assets.py",
        "%2e%2e%2fassets.py",
    ),
    *(
        "core/../../assets.py",
        "core/%2e%2e/%2e%2e/assets.py",
        "..\\assets.py",
        "core//main.js",
        "/core/main.js",
    ),
    *("//etc/passwd", "/etc/passwd", "file:///etc/passwd", "~root", "core", "core/", "", "CORE/main.js"),
    *("core/main.js%00", "core/main.js%0a", "core/main.js%0d%0a", "core/main.js.", "core/main.js "),
    *("core/main.js;x", "core/nothing.js", "core/main.js/..", "index.html"),
    *("vendor/vendor.json", "vendor/preact.d.mts", "vendor/preact.LICENSE"),
)


def test_headers_bind_the_browser(open_server: Running) -> None:
    with open_server.http() as http:
        for path in ("/console", "/console/", f"{FOLDER}/core/main.js", f"{FOLDER}/icon.svg"):
            answer = http.get(path)
            assert answer.status_code == 200
            told = answer.headers["content-security-policy"].split("; ")
            policy = dict(part.split(" ", 1) for part in told)
            assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "set-cookie" not in answer.headers


def test_every_file_comes_as_what_it_is(open_server: Running) -> None:
    with open_server.http() as http:
        for name, asset in FILES.assets.items():
            answer = http.get(f"{FOLDER}/{name}")
            assert (answer.status_code, answer.content) == (200, asset.plain)
            assert answer.headers["content-type"] == asset.kind
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        *[(header, True) for header in ("gzip", "br, gzip;q=0.5", "GZIP; q=1", "gzip;q=1.0")],
        *[(header, False) for header in ("gzip;q=0", "gzip; q=0.0", "br", "", "gzipped")],
    ],
)
def test_packed_for_who_takes_it(open_server: Running, accepted: str, packed: bool) -> None:
    headers = {"accept-encoding": accepted}
    with open_server.http() as http, http.stream("GET", "/console", headers=headers) as answer:
        content = b"".join(answer.iter_raw())
    assert ("content-encoding" in answer.headers) == packed
    assert answer.headers["vary"] == "accept-encoding"
    assert (gzip.decompress(content) if packed else content) == FILES.page("console/").plain


def test_what_is_known_is_not_sent_again(open_server: Running) -> None:
    with open_server.http() as http:
        first = http.get("/console")
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for header in (tag, f'"other", {tag}', tag.removeprefix("W/")):
            again = http.get("/console", headers={"if-none-match": header})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        assert http.get("/console", headers={"if-none-match": '"other"'}).status_code == 200
        head = http.head("/console")
        assert (head.status_code, head.content) == (200, b"")


def test_nothing_but_its_files_is_sent(open_server: Running) -> None:
    asker = Asker(open_server.url)
    for name in ODD_NAMES:
        for version in (FILES.version, "..", "%2e%2e", "nothing", "", FILES.version.upper()):
            told = asker.ask(Spelling("GET", f"/console/{version}/{name}".replace(" ", "%20")), None)
            meant = version == FILES.version and name == "core/main.js%0a"  # the router takes that off
            assert told == Told(200, None) if meant else told.status in {400, 404}, (version, name, told)
    for path in (
        "/console/..",
        "/console/%2e%2e/v1/models",
        "/console/../v1/models",
        "/consolex",
        "/console/x",
    ):
        assert asker.ask(Spelling("GET", path), None).status == 404, path
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert asker.ask(Spelling(method, "/console"), None) == Told(405, "method_not_allowed")
    asker.close()


def test_a_key_changes_nothing(keyed_server: Running) -> None:
    with keyed_server.http() as http:
        answers = [
            http.get("/console", headers=headers).content
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer the-admin-key"})
        ]
    assert len(set(answers)) == 1


def test_links_lead_to_the_files_with_a_slash_and_without(open_server: Running) -> None:
    for path in ("/console", "/console/"):
        page = httpx.get(open_server.url + path).text
        links = [part.split('"')[0] for part in page.split('href="')[1:]]
        assert len(links) > 20
        assert not any(link.startswith(("/", "http")) for link in links)
        base = httpx.URL(open_server.url + path)
        assert {str(base.join(link)).split(FOLDER)[0] for link in links} == {open_server.url}


@pytest.mark.slow
def test_behind_a_prefix(tmp_path: Path, console_model: Path) -> None:
    with serving(tiny_service(console_model, tmp_path, root_path="/llm")) as running, running.http() as http:
        assert http.get("/console").status_code == 200
        assert http.get(f"{FOLDER}/core/main.js").status_code == 200
        assert "llm" not in http.get("/console").text


@pytest.mark.slow
def test_it_can_be_left_out(tmp_path: Path, console_model: Path, console_adapters: Path) -> None:
    service = service_of(tmp_path, console_model, console_adapters, console=False)
    with serving(service) as running, running.http() as http:
        for path in ("/console", "/console/", f"{FOLDER}/core/main.js"):
            answer = http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "console" not in http.get("/", headers={"accept": "text/html"}).text
        assert "console" not in http.get("/").json()
        assert http.get("/v1/access").status_code == 200
