"""The tables of fine-tuning jobs, the keys that they were asked for with, their events and checkpoints."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, String, Table, Text

from manylora.adapters.registry.schema import metadata

_ORDER = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only what is called INTEGER

jobs = Table(
    "manylora_tuning_jobs",
    metadata,
    Column("number", _ORDER, primary_key=True, autoincrement=True),  # in the order in which they came
    Column("id", String(64), nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("paused_from", String(16)),  # where a paused job was
    Column("needs", String(16), nullable=False),  # the work that it waits for next
    Column("base", String(64), nullable=False),  # fingerprint of the base model
    Column("training_file", String(64), nullable=False, index=True),
    Column("validation_file", String(64)),
    Column("tenant", String(32), index=True),  # whose it is; NULL: of who has no tenant
    Column("began", Double),  # when it was first worked on
    Column("worker", String(64)),  # who has its lease; NULL: nobody
    Column("leased_until", Double),  # unix seconds
    Column("takes", Integer, nullable=False),  # how often it was taken since it last got on
    Column("record", Text, nullable=False),  # JSON: what was asked for, and what has become of it
)
keys = Table(  # by which a request that is sent again is known
    "manylora_tuning_keys",
    metadata,
    Column("digest", String(64), primary_key=True),  # of the key and whose it is
    Column("job", String(64), ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False),
    Column("body", String(64), nullable=False),  # digest of what was asked for
)
events = Table(
    "manylora_tuning_events",
    metadata,
    Column("number", _ORDER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job", String(64), ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False),
    Column("created", Double, nullable=False),
    Column("level", String(8), nullable=False),
    Column("kind", String(8), nullable=False),  # message or metrics
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),  # JSON
    Index("manylora_tuning_events_job", "job", "number"),
)
checkpoints = Table(
    "manylora_tuning_checkpoints",
    metadata,
    Column("number", _ORDER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job", String(64), ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False),
    Column("created", Double, nullable=False),
    Column("step", Integer, nullable=False),
    Column("name", Text, nullable=False),  # the model's, as its owner calls it
    Column("metrics", Text, nullable=False),  # JSON
    Index("manylora_tuning_checkpoints_job", "job", "step", unique=True),
)
