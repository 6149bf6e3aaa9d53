"""How the memory of an accelerator is divided between caches and steps, and what to do where it is short."""

from __future__ import annotations

from dataclasses import dataclass

from manylora.server.errors import ConfigError
from manylora.server.kernels.inputs import BLOCK_SIZE

_MERGE_SHARE = 0.2  # of what is free once base and steps have theirs, if nobody says otherwise
_ADAPTER_SHARE = 0.25  # of what is left then; keys and values get the rest
_MOST_ADAPTERS = 16 << 30
_KEPT = 0.97  # of what is free: other programs, and what drivers take later
GIB = 1 << 30


@dataclass(frozen=True)
class Wanted:
    """What the user said, in bytes; None: nothing."""

    kv: int | None = None
    adapters: int | None = None
    merged: int | None = None


@dataclass(frozen=True)
class Demand:
    """What one server asks of the memory."""

    step: int  # bytes that stay free for steps
    block: int  # bytes of a block of K and V
    context: int  # tokens that the longest sequence may have
    sequences: int  # that run at once
    merged_copy: int  # bytes of one
    wanted: Wanted = Wanted()

    @property
    def blocks(self) -> int:
        """Blocks that all sequences of full length would take."""
        return self.sequences * -(-self.context // BLOCK_SIZE)


@dataclass(frozen=True)
class Division:
    """Who gets what."""

    num_blocks: int  # of the KV cache, the padding block included
    adapters: int  # bytes
    merged: int  # bytes, taken only when used
    step: int  # bytes that are left free

    @property
    def tokens(self) -> int:
        """That the KV cache holds."""
        return (self.num_blocks - 1) * BLOCK_SIZE


def divide(free: int, demand: Demand) -> Division:
    """Divide ``free`` bytes, which are what is left beside the base.

    What the user named is given first. Merged copies get a share only where at least one fits in it, and
    the KV cache has what others leave, up to what all sequences could use.

    Raises:
        ConfigError: steps don't fit, or not one block, or not what was asked for; says what would.
    """
    wanted = demand.wanted
    named = sum(part for part in (wanted.kv, wanted.adapters) if part is not None)
    left = int(free * _KEPT) - demand.step - named
    if left < 0:
        raise ConfigError(_too_small(free, demand, named))
    merged = int(left * _MERGE_SHARE) if wanted.merged is None else min(wanted.merged, left)
    if wanted.merged is None and merged < demand.merged_copy:
        merged = 0
    left -= merged
    adapters = min(int(left * _ADAPTER_SHARE), _MOST_ADAPTERS) if wanted.adapters is None else wanted.adapters
    kv = wanted.kv
    if kv is None:
        kv = left - (adapters if wanted.adapters is None else 0)
    blocks = min(kv // demand.block, demand.blocks)
    if blocks < 1:
        raise ConfigError(_too_small(free, demand, named))
    return Division(blocks + 1, adapters, merged, demand.step)


def gib(nbytes: float) -> str:
    """Bytes for people."""
    return f"{nbytes / GIB:.1f} GiB"


def _too_small(free: int, demand: Demand, named: int) -> str:
    told = f", {gib(named)} asked for by name" if named else ""
    return (
        f"the accelerator's memory is too small: {gib(free)} are free beside the base, and steps take "
        f"{gib(demand.step)}{told}. Lower --max-batch-tokens, --max-num-seqs, --kv-cache-memory or "
        f"--adapter-memory, or quantize the base (--quantize nf4); `manylora estimate serve` says what fits"
    )
