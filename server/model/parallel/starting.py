"""From a directory to a decoder whose ranks have met."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from manylora.adapters.errors import BaseModelError
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.memory_budget import available_bytes, return_freed
from manylora.server.model.loading.device import device_count, resolve_device, resolve_dtype, use_device
from manylora.server.model.loading.loader import LoadedModel
from manylora.server.model.parallel.decoder import ParallelDecoder
from manylora.server.model.parallel.group import Group
from manylora.server.model.parallel.leader import Leader
from manylora.server.model.parallel.parts.loading import (
    OPTION,
    Share,
    WholeModel,
    check_divisible,
    load_share,
)
from manylora.server.model.parallel.setup import RankSetup


@dataclass(frozen=True)
class StartedRanks:
    """Ranks that have met, and what rank 0 serves with them."""

    whole: WholeModel
    share: Share  # rank 0's
    decoder: ParallelDecoder
    leader: Leader
    group: Group
    free: int  # bytes beside the weights, on the rank that has the fewest
    meeting: tempfile.TemporaryDirectory[str]  # where they found each other

    @property
    def loaded(self) -> LoadedModel:
        """The whole model, without weights."""
        return self.whole.loaded

    def close(self) -> None:
        """End the other ranks."""
        self.leader.close()
        self.group.leave()
        self.meeting.cleanup()


def start_ranks(
    directory: Path,
    count: int,
    *,
    dtype: str,
    device: str,
    max_model_len: int | None,
    quantize: str = "none",
    kernels: str = "auto",
    coded_cache: bool = False,
    log_level: str = "WARNING",
) -> StartedRanks:
    """Start ``count`` - 1 processes beside this one and load the model in parts.

    Raises:
        ConfigError: the model, the device or an option does not fit so many ranks; says which.
        ModelRefused: the model can't be loaded.
    """
    devices = devices_of(device, count)
    try:
        check_divisible(directory, count, quantize, max_model_len)
    except BaseModelError as error:
        raise ModelRefused(str(error)) from error
    if devices[0].type == "cpu" and kernels == "native":
        raise ConfigError(f"--kernels native: they run a step in one call, and {OPTION} has sums within")
    threads = max(1, torch.get_num_threads() // count)
    backend = backend_for(devices[0])
    formats = [resolve_dtype(dtype, each) for each in devices]
    meeting = tempfile.TemporaryDirectory(prefix="manylora-ranks-")
    setups = [
        RankSetup(
            directory=directory,
            rank=rank,
            count=count,
            device=devices[rank],
            dtype=formats[rank],
            max_model_len=max_model_len,
            kernels=kernels,
            coded_cache=coded_cache,
            backend=backend,
            meeting=Path(meeting.name) / "store",
            threads=threads,
            log_level=log_level,
        )
        for rank in range(count)
    ]
    if devices[0].type == "cpu":
        torch.set_num_threads(threads)
    return _started(setups, meeting)


def _started(setups: list[RankSetup], meeting: tempfile.TemporaryDirectory[str]) -> StartedRanks:
    own, others = setups[0], setups[1:]
    use_device(own.device)
    leader, group = Leader(others), None
    try:
        whole, share = WholeModel(own), load_share(own)
        leader.join()
        group = Group(share.sharding, own.device, own.backend, own.meeting)
        decoder = ParallelDecoder(own, share, whole, leader, group)
        theirs = leader.joined(decoder.kernels)
        return_freed(own.device)
        free = min(available_bytes(own.device), theirs)
    except BaseException:
        leader.close(patience=0)
        if group is not None:
            group.leave()
        meeting.cleanup()
        raise
    return StartedRanks(whole, share, decoder, leader, group, free, meeting)


def backend_for(device: torch.device) -> str:
    """What sums are made with.

    Raises:
        ConfigError: this build of torch does not have it.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    there = dist.is_available() and (
        dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()
    )
    if not there:
        raise ConfigError(f"{OPTION}: this build of torch has no {backend}")
    return backend


def devices_of(name: str, count: int) -> list[torch.device]:
    """The device of each rank: of GPUs as many from the named one on.

    Raises:
        ConfigError: there are not so many, or of this kind there is only one in use.
    """
    first = resolve_device(name)
    if first.type == "cpu":
        return [first] * count
    if first.type != "cuda":
        raise ConfigError(f"{OPTION}: ranks run on CUDA devices, or on a CPU to try it, not on {first.type}")
    index, there = first.index or 0, device_count(first.type)
    if index + count > there:
        raise ConfigError(
            f"{OPTION} {count}: from {first} on there are {there - index} devices on this machine"
        )
    return [torch.device("cuda", index + rank) for rank in range(count)]
