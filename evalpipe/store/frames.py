"""Scores and feedback as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, Table

from evalpipe.errors import ConfigError
from evalpipe.store.feedback import query_feedback
from evalpipe.store.series import query_scores
from evalpipe.store.sql import Store
from evalpipe.store.tables import feedback, scores

if TYPE_CHECKING:
    import pandas as pd


def read_scores(
    *,
    database_url: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
    **where: str,
) -> pd.DataFrame:
    """Scores in order of capture time, one row each, with the columns of the table.

    Args:
        database_url: ``EVALPIPE_DATABASE_URL`` by default.
        since: capture time of the first, aware.
        until: capture time, aware; not included.
        limit: only the newest so many.
        where: columns to compare, for example ``service="support-desk"``, ``criterion="grounded"``.

    Raises:
        ConfigError: no such column, or the database cannot be used.
    """
    return _read(database_url, scores, query_scores, {"since": since, "until": until, "limit": limit}, where)


def read_feedback(
    *,
    database_url: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
    **where: str,
) -> pd.DataFrame:
    """What users said, in the order in which they said it, one row each; merge it with scores on ``record_id``.

    Feedback that was given for a whole trace has no ``record_id``: records have the same ``trace_id``.

    Args:
        database_url: ``EVALPIPE_DATABASE_URL`` by default.
        since: time of the first, aware.
        until: time, aware; not included.
        limit: only the newest so many.
        where: columns to compare, for example ``service="support-desk"``, ``label="thumbs_down"``.

    Raises:
        ConfigError: no such column, or the database cannot be used.
    """
    return _read(database_url, feedback, query_feedback, {"since": since, "until": until, "limit": limit}, where)


def _read(
    database_url: str | None,
    table: Table,
    query: Callable[..., Select[Any]],
    period: Mapping[str, Any],
    where: Mapping[str, str],
) -> pd.DataFrame:
    import pandas as pd

    from evalpipe.settings import Settings

    columns = list(table.c.keys())
    if unknown := sorted(set(where) - set(columns)):
        raise ConfigError(f"the table {table.name} has no column {unknown[0]!r}; there are: {', '.join(columns)}")
    store = Store(database_url or Settings.from_env().database_url)
    try:
        with store.read() as tx:
            rows = tx.connection.execute(query(**period, **where))
            return pd.DataFrame(rows.mappings().all(), columns=columns)
    finally:
        store.close()
