"""What makes members of a mix to merge."""

from __future__ import annotations

from collections.abc import Callable

from manylora.adapters.format.artifact import Limits
from manylora.adapters.merge.recipe import Member

Make = Callable[..., Member]  # name, weight, options of write_adapter
LIMITS = Limits(max_rank=1024, max_bytes=1 << 30)
