"""How much memory there is to give to the KV cache and to adapters when the user does not say."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import torch

from manylora.adapters.errors import MergeFailed
from manylora.server.errors import ConfigError
from manylora.server.kernels.inputs import BLOCK_SIZE

_KV_SHARE = 0.4  # of what is free once the model is loaded
_ADAPTER_SHARE = 0.25
_MERGE_SHARE = 0.25
_CACHE_SHARE = 0.1  # of the host's memory
_MOST_CACHE = 1 << 30
_LOADING = 1.2  # memory that loading a model takes, in sizes of the model
_CPU = torch.device("cpu")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device, *, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Free memory on the device: of the accelerator, or of the machine within its container's limit.

    ``meminfo`` and ``cgroup`` are where Linux tells what the machine and the container have.
    """
    if device.type in {"cuda", "xpu"}:
        free, _ = (torch.cuda if device.type == "cuda" else torch.xpu).mem_get_info(device)
        return int(free)
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), 0)
    return min(_limits(meminfo, cgroup), default=4 << 30)


def _limits(meminfo: Path, cgroup: Path) -> Iterator[int]:
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    limit, current = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and current.exists() and (text := limit.read_text().strip()) != "max":
        yield max(int(text) - int(current.read_text()), 0)


def num_kv_blocks(
    wanted: int | None, available: int, *, bytes_per_block: int, max_num_seqs: int, max_model_len: int
) -> int:
    """KV blocks to allocate, the padding block included.

    With ``wanted`` (bytes) None: as many as ``max_num_seqs`` full contexts need, within 40% of what is free.

    Raises:
        ConfigError: not even one block fits.
    """
    per_sequence = -(-max_model_len // BLOCK_SIZE)
    budget = int(available * _KV_SHARE) if wanted is None else wanted
    blocks = min(budget // bytes_per_block, max_num_seqs * per_sequence)
    if blocks < 1:
        raise ConfigError(
            f"--kv-cache-memory: one block of {BLOCK_SIZE} tokens takes {bytes_per_block} bytes"
        )
    return blocks + 1


def cache_bytes(wanted: int | None) -> int:
    """Bytes of host memory for packed adapters; a tenth of what is free, at most 1 GiB, if nobody says."""
    free = available_bytes(_CPU)
    return min(_MOST_CACHE, int(free * _CACHE_SHARE)) if wanted is None else wanted


def adapter_bytes(wanted: int | None, available: int) -> int:
    """Bytes of device memory for rank pages; a quarter of what is free if the user does not say."""
    return int(available * _ADAPTER_SHARE) if wanted is None else wanted


def merge_bytes(wanted: int | None, available: int) -> int:
    """Bytes for merged copies; a quarter of what is free if the user does not say. Taken only when used."""
    return int(available * _MERGE_SHARE) if wanted is None else wanted


def verification_dtype(parameters: int, stored_bytes: int) -> torch.dtype:
    """In which dtype a model's logits can be computed to look at them: float32, else bf16.

    Args:
        parameters: of the model; in bf16 all of them are loaded as that.
        stored_bytes: what it takes with its weights as they are stored, which float32 is computed with.

    Raises:
        MergeFailed: there is not the memory for either.
    """
    room = available_bytes(_CPU)
    needed = {torch.float32: stored_bytes, torch.bfloat16: 2 * parameters}
    for dtype, nbytes in needed.items():
        if nbytes * _LOADING < room:
            return dtype
    least = min(needed.values()) * _LOADING / 1e9
    raise MergeFailed(
        f"comparing the merged model with the adapters takes {least:.1f} GB of memory, "
        f"and {room / 1e9:.1f} GB are free: free some, or leave the comparison out"
    )


def return_freed(device: torch.device = _CPU) -> None:
    """Give memory that was freed back to the system: glibc keeps hundreds of MB of what loading took.

    Of an accelerator's memory the allocator keeps everything that was ever in use, until it is told.
    """
    gc.collect()
    if device.type != "cpu":
        {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}[device.type].empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # not in musl, nor on macOS
        trim(0)
