"""How memory is divided when the user does not say, and when they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.server import memory_budget
from manylora.server.errors import ConfigError
from manylora.server.kernels.buffers import ReusedMemory

GB = 1 << 30


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        (None, 10 * GB, 64 * 32 + 1),  # all that 64 full contexts of 512 need
        (None, 1000 * 1000, 400 + 1),  # 40% of what is free
        (None, 2500, 1 + 1),
        (5000, 10 * GB, 5 + 1),
        (5999, 10 * GB, 5 + 1),
        (1000, 0, 1 + 1),
        (10 * GB, 0, 64 * 32 + 1),  # more than could ever be used is not taken
    ],
)
def test_kv_blocks(wanted: int | None, available: int, expected: int) -> None:
    blocks = memory_budget.num_kv_blocks(
        wanted, available, bytes_per_block=1000, max_num_seqs=64, max_model_len=512
    )
    assert blocks == expected


@pytest.mark.parametrize(("length", "expected"), [(1, 2), (16, 2), (17, 3), (33, 4)])
def test_a_context_takes_whole_blocks(length: int, expected: int) -> None:
    blocks = memory_budget.num_kv_blocks(None, GB, bytes_per_block=1000, max_num_seqs=1, max_model_len=length)
    assert blocks == expected


@pytest.mark.parametrize(("wanted", "available"), [(999, GB), (None, 2499), (None, 0)])
def test_not_even_one_block(wanted: int | None, available: int) -> None:
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        memory_budget.num_kv_blocks(wanted, available, bytes_per_block=1000, max_num_seqs=1, max_model_len=16)


@pytest.mark.parametrize(("wanted", "available", "expected"), [(None, 1000, 250), (7, 1000, 7), (None, 0, 0)])
def test_adapter_bytes(wanted: int | None, available: int, expected: int) -> None:
    assert memory_budget.adapter_bytes(wanted, available) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("MemTotal: 99 kB\nMemAvailable:    2048 kB\n", None, None), 2048 * 1024),
        (("MemAvailable:    2048 kB\n", "1000000", "400000"), 600_000),
        (("MemAvailable:    2048 kB\n", "max", "400000"), 2048 * 1024),
        (("MemAvailable:    2048 kB\n", "1000", "4000"), 0),
        ((None, "1000000", "400000"), 600_000),
        ((None, None, None), 4 * GB),
    ],
)
def test_free_memory_of_the_machine_and_its_container(
    tmp_path: Path, files: tuple[str | None, ...], expected: int
) -> None:
    for name, content in zip(["meminfo", "memory.max", "memory.current"], files, strict=True):
        if content is not None:
            (tmp_path / name).write_text(content)
    cpu, meminfo = torch.device("cpu"), tmp_path / "meminfo"
    assert memory_budget.available_bytes(cpu, meminfo=meminfo, cgroup=tmp_path) == expected


def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * GB, 8 * GB))
    assert memory_budget.available_bytes(torch.device("cuda")) == 3 * GB


def test_this_machine_has_some() -> None:
    assert memory_budget.available_bytes(torch.device("cpu")) > 0


def test_memory_is_used_again_once_its_last_tensor_is_gone() -> None:
    reused = ReusedMemory(2)
    first = reused.take(10_000)
    place = first.data_ptr()
    view = first[64:].view(torch.float32)
    del first
    second = reused.take(10_000)
    assert second.data_ptr() != place, "a view is still there"
    view.fill_(1.0)
    del view
    assert reused.take(9_000).data_ptr() == place
    assert reused.take(10_000).shape == (10_000,)


def test_memory_far_too_large_or_too_small_is_given_back_instead() -> None:
    reused = ReusedMemory(1)
    reused.take(1 << 20).fill_(1)
    assert not reused.take(1 << 10).any(), "fresh from the system"
    assert not reused.take(1 << 20).any()
