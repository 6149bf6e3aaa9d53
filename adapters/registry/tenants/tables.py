"""The tables of tenants and keys."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Double, ForeignKey, String, Table, Text

from manylora.adapters.registry.schema import metadata

NEWS: Final = "@tenants"  # under which the registry's changes have those of tenants: no adapter is called so

tenants = Table(
    "manylora_tenants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("settings", Text, nullable=False),  # JSON
)
keys = Table(
    "manylora_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(32), ForeignKey(tenants.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("prefix", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # of the key, which is nowhere
    Column("created", Double, nullable=False),
    Column("expires", Double),
)
