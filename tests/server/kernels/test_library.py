"""Where the native library comes from: ahead of time, the cache, a compiler, or nowhere.

The compiler is a script that hands out a library made before, and keeps a record of what it was asked.
"""

from __future__ import annotations

import platform
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manylora.server.assembly import build_service
from manylora.server.cache_directory import cache_directory
from manylora.server.cli.main import app
from manylora.server.errors import ConfigError
from manylora.server.kernels.cpu import build as build_module
from manylora.server.kernels.cpu import tiles
from manylora.server.kernels.cpu.build import (
    VARIANTS,
    KernelBuildError,
    Variant,
    build,
    compilable_variants,
    file_name,
    usable_variants,
)
from manylora.server.kernels.cpu.library import AHEAD_OF_TIME, Library, find_library
from manylora.server.model.loading.loader import decoder_candidates, load_model
from manylora.server.options.settings import Settings
from tests.support.kernel_cases import library_of

BEST, LEAST = usable_variants()[0], usable_variants()[-1]
AMX = VARIANTS[0]


@dataclass(frozen=True)
class Compiler:
    """What a test has for ``CXX``."""

    asked: Path  # one line a call
    refuses: Path  # words that make it fail
    result: Path

    def refuse(self, word: str) -> None:
        self.refuses.write_text(word)

    @property
    def links(self) -> list[str]:
        """The calls that made a library."""
        calls = self.asked.read_text().splitlines() if self.asked.exists() else []
        return [call for call in calls if " -shared " in call]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    library_of(LEAST)
    places = (directory / file_name(LEAST) for directory in (AHEAD_OF_TIME, cache_directory("kernels")))
    made = next(path for path in places if path.exists())
    fake = Compiler(tmp_path / "asked", tmp_path / "refuses", made)
    script = tmp_path / "c++"
    script.write_text(
        "#!/bin/sh\n"
        f'echo " $* " >> {fake.asked}\n'
        f'if [ -e {fake.refuses} ]; then case "$*" in *$(cat {fake.refuses})*) '
        "echo 'error: no such thing' >&2; exit 1;; esac; fi\n"
        f'for last; do :; done\ncp {made} "$last"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return fake


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


def find(tmp_path: Path, *variants: Variant) -> Library:
    return find_library(variants, tmp_path / "ahead", tmp_path / "cache")


def put(compiler: Compiler, directory: Path, variant: Variant) -> None:
    directory.mkdir()
    shutil.copyfile(compiler.result, directory / file_name(variant))


def test_a_first_start_compiles_and_says_so(
    tmp_path: Path, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert find(tmp_path, LEAST).origin.startswith("compiled in ")
    before, after = (record.getMessage() for record in caplog.records)
    assert before.startswith(f"Compiling the CPU kernels for {LEAST.name};")
    assert after.startswith(f"CPU kernels: {LEAST.name}, compiled in ")
    assert find(tmp_path, LEAST).origin == "from the cache"
    assert len(compiler.links) == 1


def test_what_was_built_ahead_of_time_needs_no_compiler(
    tmp_path: Path, compiler: Compiler, no_compiler: None
) -> None:
    put(compiler, tmp_path / "ahead", BEST)
    put(compiler, tmp_path / "cache", BEST)
    found = find(tmp_path, *usable_variants())
    assert (found.variant, found.origin) == (BEST, "built ahead of time")
    assert compiler.links == []


def test_a_lesser_level_runs_where_the_best_can_not_be_had(tmp_path: Path, compiler: Compiler) -> None:
    if BEST is LEAST:
        pytest.skip("this CPU runs the portable level only")
    compiler.refuse(BEST.compiler_flags[0])
    found = find(tmp_path, BEST, LEAST)
    assert found.variant is LEAST
    assert not list((tmp_path / "cache").glob(f"manylora-{BEST.name}-*.so"))


def test_a_library_that_does_not_load_is_made_anew(tmp_path: Path, compiler: Compiler) -> None:
    put(compiler, tmp_path / "cache", LEAST)
    (tmp_path / "cache" / file_name(LEAST)).write_bytes(b"\x7fELF cut off")
    assert find(tmp_path, LEAST).origin.startswith("compiled in ")
    assert find(tmp_path, LEAST).origin == "from the cache"


def test_a_cache_that_can_not_be_made(
    tmp_path: Path, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert find(tmp_path, LEAST).origin.startswith("compiled in ")
    assert "every start will compile" in caplog.text


def test_a_full_cache(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copyfile

    def copy_while_there_is_room(source: Path, target: Path) -> object:
        if tmp_path in target.parents:
            target.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_while_there_is_room)
    assert find(tmp_path, LEAST).origin.startswith("compiled in ")
    assert "No space left on device" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_two_that_start_at_once_compile_once(tmp_path: Path, compiler: Compiler) -> None:
    together = threading.Barrier(4)

    def start() -> Path:
        together.wait()
        return build(LEAST, tmp_path / "cache")

    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(start) for _ in range(4)]}
    assert len(paths) == len(compiler.links) == 1
    assert paths.pop().read_bytes() == compiler.result.read_bytes()


def test_on_another_architecture_the_portable_level_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert [variant.name for variant in usable_variants()] == ["portable"]


@pytest.mark.parametrize("agrees", [True, False], ids=["agrees", "refuses"])
def test_tiles_need_the_systems_permission(
    agrees: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build_module, "cpu_flags", lambda: AMX.cpu_flags)
    monkeypatch.setattr(tiles, "refusal", lambda: None if agrees else "Operation not permitted")
    tiles.tiles_allowed.cache_clear()
    try:
        names = [[variant.name for variant in usable_variants()] for _ in range(2)]
    finally:
        tiles.tiles_allowed.cache_clear()
    without = ["avx512-bf16", "avx2", "portable"]
    assert names == [["amx", *without] if agrees else without] * 2
    line = "No CPU kernels for amx: the system refuses tile registers: Operation not permitted"
    assert [record.getMessage() for record in caplog.records] == ([] if agrees else [line])


def test_tiles_that_are_hidden_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build_module, "cpu_flags", lambda: AMX.cpu_flags - {"amx_tile"})
    monkeypatch.setattr(build_module, "tiles_allowed", lambda: pytest.fail("asked"))
    assert usable_variants()[0].name == "avx512-bf16"


@pytest.mark.slow
def test_without_a_compiler_pytorch_runs_and_the_server_says_why(
    tmp_path: Path,
    tiny_llama: Path,
    no_compiler: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(
        "manylora.server.kernels.cpu.backend.best_library", lambda: find(tmp_path, *usable_variants())
    )
    small: dict[str, Any] = {"kv_cache_memory": 1 << 20, "adapter_memory": 1 << 20}
    settings = Settings(model=str(tiny_llama), data_dir=tmp_path, dtype="bf16", device="cpu", **small)
    service = build_service(settings, tiny_llama)
    service.store.close()
    assert service.description["kernels"] == "pytorch"
    assert "no C++ compiler found" in str(service.description["kernels_note"])
    assert "PyTorch kernels: no C++ compiler found" in caplog.text
    loaded = load_model(tiny_llama, dtype="bf16", device="cpu", max_model_len=None)
    with pytest.raises(ConfigError, match="--kernels native: no C\\+\\+ compiler found"):
        next(decoder_candidates(loaded, "native"))


def test_build_kernels(tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = tmp_path / "ahead"
    monkeypatch.setattr("manylora.server.kernels.cpu.library.AHEAD_OF_TIME", ahead)
    put(compiler, ahead, LEAST)
    (ahead / "manylora-portable-0123456789abcdef.so").write_text("of older sources")
    done = CliRunner().invoke(app, ["build-kernels", "--target", "all"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in ahead.iterdir()} == {file_name(v) for v in compilable_variants()}
    assert len(compiler.links) == len(compilable_variants())
    assert [line.split()[0] for line in done.output.splitlines()] == [v.name for v in compilable_variants()]
    native = CliRunner().invoke(app, ["build-kernels"])
    assert [line.split()[0] for line in native.output.splitlines()] == [BEST.name]


@pytest.mark.parametrize(
    ("target", "said"), [("avx1024", "--target avx1024: on this machine"), ("native", "no C++")]
)
def test_build_kernels_says_what_is_wrong(
    tmp_path: Path, target: str, said: str, no_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manylora.server.kernels.cpu.library.AHEAD_OF_TIME", tmp_path)
    done = CliRunner().invoke(app, ["build-kernels", "--target", target])
    assert done.exit_code == 2
    assert said in done.output


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, compiler: Compiler) -> None:
    compiler.refuse("gemm.cpp")
    with pytest.raises(KernelBuildError, match="error: no such thing"):
        find(tmp_path, LEAST)
