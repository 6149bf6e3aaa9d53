"""The tables of tenants, keys and usage."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, String, Table, Text

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
    Column("details", Text),  # JSON: scopes, …; NULL: as keys were before they had any
)
usage = Table(  # what tenants took, added up by hour and model
    "manylora_usage",
    metadata,
    Column("tenant", String(32), primary_key=True),  # its id; the tenant may be gone
    Column("hour", BigInteger, primary_key=True),  # unix seconds of its beginning
    Column("model", String(160), primary_key=True),
    Column("name", String(64), nullable=False),  # the tenant's
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),  # of the prompts' that were not computed again
    Column("completion_tokens", BigInteger, nullable=False),
    Index("manylora_usage_hour", "hour"),
)
taken = Table(  # what servers have taken of limits, and may take until they ask again
    "manylora_taken",
    metadata,
    Column("tenant", String(32), primary_key=True),  # its id; "": a server says that it is there
    Column("adapter", String(160), primary_key=True),  # "": of all adapters together
    Column("server", String(64), primary_key=True),
    Column("seen", Double, nullable=False),  # unix seconds
    Column("parts", Text, nullable=False),  # JSON {limit: [taken, ceiling]}
)
