"""Uploads, their parts and what they count for, and with whom adapters are shared."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from manylora.adapters.errors import OverQuota
from manylora.adapters.registry.files import FileRecord
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.uploads import PartRecord, TooManyParts, UploadRecord

UPLOAD = UploadRecord("upload_1", 10.0, 100.0, 6, "a.jsonl", "fine-tune", "text/jsonl", 3600, tenant="t")
FILE = FileRecord("file-1", 20.0, 6, "a.jsonl", "fine-tune", None, "0" * 64, owner="here", tenant="t")


def part(name: str, nbytes: int = 3) -> PartRecord:
    return PartRecord(name, UPLOAD.id, 11.0, nbytes, "0" * 64, "here")


def fine(_: UploadRecord) -> None:
    pass


def refuse_ended(upload: UploadRecord) -> None:
    if upload.status != "pending":
        raise ValueError(upload.status)


def test_an_upload_is_as_it_was_recorded(registry: Registry) -> None:
    registry.uploads.add(UPLOAD, None)
    assert registry.uploads.get(UPLOAD.id) == UPLOAD
    assert registry.uploads.get("upload_2") is None
    registry.uploads.add_part(part("part_1"), fine, most=9, room=None)
    assert registry.uploads.get(UPLOAD.id) == replace(UPLOAD, held=3)
    assert registry.uploads.parts(UPLOAD.id) == {"part_1": part("part_1")}
    assert registry.files.knows("part_1")
    with pytest.raises(TooManyParts):
        registry.uploads.add_part(part("part_2"), fine, most=1, room=None)
    assert not registry.files.knows("part_2")


def test_what_is_announced_counts_then_what_comes_then_the_file(registry: Registry) -> None:
    registry.uploads.add(UPLOAD, 6)
    assert registry.files.bytes_of("t") == 6
    assert registry.files.bytes_of("other") == registry.files.bytes_of(None) == 0
    with pytest.raises(OverQuota):
        registry.uploads.add(replace(UPLOAD, id="upload_2"), 11)
    with pytest.raises(OverQuota):
        registry.files.add(replace(FILE, id="file-2"), 11)
    for name in ("part_1", "part_2"):
        registry.uploads.add_part(part(name), fine, most=9, room=6)
    assert registry.files.bytes_of("t") == 6
    with pytest.raises(OverQuota):
        registry.uploads.add_part(part("part_3"), fine, most=9, room=8)
    registry.uploads.add_part(part("part_3"), fine, most=9, room=9)
    assert registry.files.bytes_of("t") == 9
    registry.uploads.complete(UPLOAD.id, FILE, fine, made_of="x", room=6)
    assert registry.files.bytes_of("t") == 6
    registry.files.add(FILE, 6)  # in place of itself


def test_of_many_that_complete_one_does(registry: Registry) -> None:
    registry.uploads.add(UPLOAD, None)
    told: list[str] = []

    def complete(number: int) -> None:
        try:
            file = replace(FILE, id=f"file-{number}")
            told.append(
                str(registry.uploads.complete(UPLOAD.id, file, refuse_ended, made_of="x", room=None).file)
            )
        except ValueError as ended:
            told.append(str(ended))

    threads = [threading.Thread(target=complete, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told)[:5] == ["completed"] * 5
    done = registry.uploads.get(UPLOAD.id)
    assert done is not None
    assert done.file in told
    page = registry.files.page(30.0, purpose=None, after=None, limit=9, ascending=True)
    assert page is not None
    assert [file.id for file in page] == [done.file]


def test_what_refuses_changes_nothing(registry: Registry) -> None:
    registry.uploads.add(UPLOAD, None)
    assert registry.uploads.cancel(UPLOAD.id, refuse_ended).status == "cancelled"
    for act in (
        lambda: registry.uploads.cancel(UPLOAD.id, refuse_ended),
        lambda: registry.uploads.add_part(part("part_1"), refuse_ended, most=9, room=None),
        lambda: registry.uploads.complete(UPLOAD.id, FILE, refuse_ended, made_of="", room=None),
    ):
        with pytest.raises(ValueError, match="cancelled"):
            act()
    assert registry.files.get(FILE.id, None) is None
    assert registry.files.bytes_of("t") == 0


def test_what_is_late_expires_and_is_forgotten_once_its_parts_are(registry: Registry) -> None:
    registry.uploads.add(UPLOAD, None)
    registry.uploads.add_part(part("part_1"), fine, most=9, room=None)
    assert registry.uploads.expire(99.0) == []
    assert registry.uploads.expire(100.0) == [part("part_1")]
    found = registry.uploads.get(UPLOAD.id)
    assert found is not None
    assert found.status == "expired"
    registry.uploads.forget(1e9)
    assert registry.uploads.get(UPLOAD.id) is not None
    registry.uploads.forget_part("part_1")
    assert registry.uploads.expire(101.0) == []
    registry.uploads.forget(100.0)
    assert registry.uploads.get(UPLOAD.id) is not None
    registry.uploads.forget(1e9)
    assert registry.uploads.get(UPLOAD.id) is None


def test_since_when_is_kept(registry: Registry) -> None:
    registry.names.announce("a", "here")
    registry.shares.put("a", ["one", "two"])
    before = dict(registry.names.get("a").shared_since)
    assert registry.shares.add("a", ["two", "three"], 3).shared == ("one", "three", "two")
    assert registry.shares.add("a", ["four"], 3).shared == ("one", "three", "two")
    after = registry.shares.remove("a", "one")
    assert after.shared == ("three", "two")
    assert dict(after.shared_since)["two"] == before["two"]
    assert set(dict(after.shared_since)) == {"three", "two"}
    assert registry.shares.put("a", []).shared == ()
