"""Lists of rows by the time they were made, a page at a time, as OpenAI's lists are asked for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, or_, select


def page_of(
    connection: Connection,
    table: Table,
    *,
    after: str | None,
    limit: int,
    ascending: bool = False,
    only: ColumnElement[bool] | None = None,
    mine: ColumnElement[bool] | None = None,
) -> list[Row[Any]] | None:
    """At most ``limit`` rows by time and id, those behind the row ``after``; None if there is no such row.

    ``table`` has the columns ``id`` and ``created``; the newest come first unless ``ascending``. There
    are only rows of which ``mine`` is true, and only those are told of which ``only`` is true as well.
    """
    time, key = table.c.created, table.c.id
    wanted = select(table).limit(limit)
    wanted = wanted.order_by(time, key) if ascending else wanted.order_by(time.desc(), key.desc())
    for condition in (only, mine):
        if condition is not None:
            wanted = wanted.where(condition)
    if after is not None:
        known = key == after if mine is None else (key == after) & mine
        last = connection.execute(select(time).where(known)).scalar_one_or_none()
        if last is None:
            return None
        if ascending:
            wanted = wanted.where(or_(time > last, and_(time == last, key > after)))
        else:
            wanted = wanted.where(or_(time < last, and_(time == last, key < after)))
    return list(connection.execute(wanted))
