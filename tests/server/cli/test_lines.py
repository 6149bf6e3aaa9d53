"""How answers are put for people: sizes, times, shares, and the arguments of an alias."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from manylora.server.cli.admin.lines import arms_of, share, size
from manylora.server.cli.admin.session import first_key
from manylora.server.cli.admin.tables import adapter_table, ago, composition_text
from manylora.server.client.errors import Unusable


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (9_857_000, "9.4 MiB"),
        (200 << 20, "200 MiB"),
        (1 << 40, "1.0 TiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (7200, "2 h ago"),
        (1e6, "11 d ago"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert ago(1e9, 1e9 + seconds) == text
    assert ago(None) == "never"


def listed(name: str) -> dict[str, Any]:
    """An adapter as the server lists it."""
    return {
        "id": name,
        "state": "draining",
        "revision": "0123abcd",
        "kind": "LORA+VOCABULARY",
        "rank": 64,
        "residency": {"device": 14 << 10, "memory": 0, "disk": 1},
        "pinned": True,
        "traffic": {"requests": 12345, "running": 16},
        "last_used": None,
        "tags": ["prod", "team=a"],
    }


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (None, "name state revision kind rank where requests running used tags"),
        (110, "name state revision kind rank where requests used"),
        (90, "name state revision kind where"),
        (60, "name state revision where"),
        (30, "name state revision where"),
    ],
)
def test_a_list_leaves_out_columns_rather_than_cut_them(width: int | None, headings: str) -> None:
    console = Console(width=width or 1000, color_system=None)
    with console.capture() as shown:
        console.print(adapter_table([listed("support"), listed("a-name-of-twenty-one")], width))
    first, *lines = shown.get().splitlines()
    if width != 30:  # where nothing fits any more
        assert first.split() == headings.split()
        assert "draining  0123abcd" in lines[0]
        assert "device 14.0 KiB (pinned)" in lines[0]
        assert len(lines) == (2 if width != 60 else 3), "only a name is broken"


def test_shares() -> None:
    assert [share(part) for part in (0.9, 1 / 3, 0.005, 1.0)] == ["90%", "33.3%", "0.5%", "100%"]


def test_arms() -> None:
    assert arms_of(["support"]) == "support"
    assert arms_of(["a=0.9", "b@12ab*0.5+c=1e-1"]) == [("a", 0.9), ("b@12ab*0.5+c", 0.1)]
    for bad in (["a", "b"], ["a=", "b=1"], ["=1"], ["a=x"], ["a=1", "b"]):
        with pytest.raises(Unusable, match="is not TARGET=SHARE"):
            arms_of(bad)


@pytest.mark.parametrize(
    ("keys", "first"), [(None, None), ("", None), ("a", "a"), ("a, b", "a"), ('["a,b", "c"]', "a,b")]
)
def test_the_first_key_is_taken(keys: str | None, first: str | None) -> None:
    assert first_key(keys) == first


def test_what_a_composed_adapter_says_of_itself() -> None:
    members = [
        {"name": "a", "digest": "0123456789", "weight": 0.7},
        {"name": "b", "digest": "f" * 64, "weight": -1},
    ]
    svd = {"method": "svd", "rank": 5, "energy_lost": 0.08318, "members": members}
    assert composition_text(svd).split("\n") == [
        "svd, rank 5, 8.32% of the energy lost",
        "a@01234567*0.7",
        "b@ffffffff*-1",
    ]
    exact = composition_text({"method": "linear", "energy_lost": 0.0, "members": members[:1]})
    assert exact == "linear, exact\na@01234567*0.7"
    assert composition_text(None) == ""


@pytest.mark.parametrize(
    ("lineage", "shown"),
    [
        ({"by": "hand", "of": ["a", {"b": 1}]}, "by hand, of a\nb 1"),
        ({"method": 3, "members": 5}, "method 3, members 5"),
        ({"method": "svd", "energy_lost": "x", "members": []}, "method svd, energy_lost x, members "),
    ],
)
def test_what_somebody_else_wrote_there_is_shown_as_it_is(lineage: dict[str, object], shown: str) -> None:
    assert composition_text(lineage) == shown
