"""Blocks of the KV cache: allocation, reference counts, and the prefix cache over full blocks.

K and V of a position depend on everything before it and on the weights that computed it, so a full
block is identified by a hash chained from a root of (base fingerprint, mix digest, tenant salt):
two mixes, or a name and its re-published successor, never share a block. Where a member of the mix sets
in later (aLoRA), the root is that of the mix without it, and the chain takes up the change in the block
where it happens: the blocks before are those of the base, or of whatever else the mix consists of.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

from manylora.server.engine.sequence import Sequence
from manylora.server.kernels.inputs import BLOCK_SIZE


class BlockManager:
    """Owns ``num_blocks`` block ids. Block 0 is never handed out: padding in block tables points there."""

    def __init__(self, num_blocks: int, fingerprint: str, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks - 1
        self._root = fingerprint.encode()
        self._prefix_cache = prefix_cache
        self._references = [0] * num_blocks
        self._hash: list[bytes | None] = [None] * num_blocks
        self._tokens: list[array[int] | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))  # oldest first

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - len(self._free)

    def match_prefix(self, sequence: Sequence) -> int:
        """Give ``sequence`` the cached blocks its positions begin with; returns how many they hold.

        At least one token is left to compute, since its logits are needed.
        """
        assert not sequence.block_table
        if not self._prefix_cache:
            return 0
        for index in range(sequence.num_reusable_tokens // BLOCK_SIZE):
            block = self._lookup(sequence, index)
            if block is None:
                break
            self._references[block] += 1
            self._free.pop(block, None)
            sequence.block_table.append(block)
        return len(sequence.block_table) * BLOCK_SIZE

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the first ``num_tokens`` tokens of ``sequence``; False, changing nothing, if full."""
        if not self.fits(sequence, num_tokens):
            return False
        for _ in range(_missing(sequence, num_tokens)):
            sequence.block_table.append(self._take())
        return True

    def fits(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether :meth:`grow` to ``num_tokens`` would succeed."""
        return _missing(sequence, num_tokens) <= len(self._free)

    def commit(self, sequence: Sequence) -> None:
        """Offer the full, computed blocks of ``sequence`` to later requests."""
        if not self._prefix_cache:
            return
        full = sequence.num_computed_tokens // BLOCK_SIZE
        for index in range(sequence.num_committed_blocks, full):
            block, key = sequence.block_table[index], self._key(sequence, index)
            if key not in self._cached and self._hash[block] is None:
                self._cached[key] = block
                self._hash[block] = key
                self._tokens[block] = _block_tokens(sequence, index)
        sequence.num_committed_blocks = max(sequence.num_committed_blocks, full)

    def free(self, sequence: Sequence) -> None:
        """Drop the sequence's references. Blocks nobody holds become reusable, the deepest ones first."""
        for block in reversed(sequence.block_table):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._hash[block] is None:
                    self._free.move_to_end(block, last=False)
        sequence.block_table = []
        sequence.num_committed_blocks = 0

    def check(self, live: list[Sequence]) -> None:
        """Assert that references equal what the ``live`` sequences hold and that nothing leaked."""
        held = [0] * len(self._references)
        for sequence in live:
            for block in sequence.block_table:
                held[block] += 1
        assert held == self._references, "block references do not match the sequences"
        assert set(self._free) == {b for b in range(1, len(held)) if not held[b]}, "free list is wrong"
        assert all(self._hash[b] == key for key, b in self._cached.items()), "prefix index is wrong"

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        key = self._hash[block]
        if key is not None:
            del self._cached[key]
            self._hash[block] = self._tokens[block] = None
        self._references[block] = 1
        return block

    def _lookup(self, sequence: Sequence, index: int) -> int | None:
        block = self._cached.get(self._key(sequence, index))
        if block is None or self._tokens[block] != _block_tokens(sequence, index):
            return None
        return block

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """Hash of block ``index``, chained over all earlier ones; remembered on the sequence."""
        hashes = sequence.block_hashes
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else self._root_of(sequence)
            content = parent + _block_tokens(sequence, len(hashes)).tobytes()
            content += _changes(sequence, len(hashes))
            hashes.append(hashlib.blake2b(content, digest_size=16).digest())
        return hashes[index]

    def _root_of(self, sequence: Sequence) -> bytes:
        root = hashlib.blake2b(digest_size=16)
        for part in (self._root, sequence.stages[0].digest, sequence.salt):
            root.update(len(part).to_bytes(8, "little") + part)
        return root.digest()


def _missing(sequence: Sequence, num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE) - len(sequence.block_table)


def _block_tokens(sequence: Sequence, index: int) -> array[int]:
    """What the positions of a block hold: tokens, and numbers below zero for virtual tokens.

    Those mean what the mix's soft prompt has there, and the root of the chain tells mixes apart.
    """
    virtual = sequence.num_virtual_tokens
    first, stop = index * BLOCK_SIZE - virtual, (index + 1) * BLOCK_SIZE - virtual
    if first >= 0:
        return array("l", sequence.token_ids[first:stop])
    return array("l", [*range(first, min(stop, 0)), *sequence.token_ids[: max(stop, 0)]])


def _changes(sequence: Sequence, index: int) -> bytes:
    """The stages that set in within block ``index``; b"" for nearly every block."""
    first = index * BLOCK_SIZE
    return b"".join(
        (stage.start - first).to_bytes(1, "little") + stage.digest
        for stage in sequence.stages[1:]
        if first <= stage.start < first + BLOCK_SIZE
    )
