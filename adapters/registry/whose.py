"""Whose things are asked for: a tenant's, those of who has no tenant, or everybody's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, true


@dataclass(frozen=True, slots=True)
class Whose:
    """Of all things those of one tenant; ``everybody`` is for who operates the server."""

    tenant: str | None = None  # its id; None: what belongs to no tenant
    everybody: bool = False

    def owns(self, tenant: str | None) -> bool:
        """Whether a thing is among them that belongs to ``tenant``."""
        return self.everybody or tenant == self.tenant

    def condition(self, column: ColumnElement[Any]) -> ColumnElement[bool]:
        """The same for rows: ``column`` has the tenant's id, or NULL."""
        if self.everybody:
            return true()
        return column.is_(None) if self.tenant is None else column == self.tenant


EVERYBODY: Final = Whose(everybody=True)
