"""Scores as a pandas DataFrame."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from evalpipe.errors import ConfigError
from evalpipe.store.series import query_scores
from evalpipe.store.sql import Store
from evalpipe.store.tables import scores

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
    import pandas as pd

    from evalpipe.settings import Settings

    if unknown := sorted(set(where) - set(scores.c.keys())):
        raise ConfigError(f"scores have no column {unknown[0]!r}; there are: {', '.join(scores.c.keys())}")
    store = Store(database_url or Settings.from_env().database_url)
    try:
        with store.read() as tx:
            rows = tx.connection.execute(query_scores(since=since, until=until, limit=limit, **where))
            return pd.DataFrame(rows.mappings().all(), columns=list(scores.c.keys()))
    finally:
        store.close()
