"""PostgreSQL and SQLite behind one small surface: transactions, and inserts that replays do not change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    func,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from evalpipe.errors import ConfigError

T = TypeVar("T")
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Transaction:
    """One open transaction; the modules of this package read and write through it."""

    connection: Connection

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL, else SQLite."""
        return self.connection.dialect.name == "postgresql"

    def hour(self, column: Column[datetime]) -> ColumnElement[datetime]:
        """The start of the hour that ``column`` lies in, in SQL."""
        if self.is_postgresql:
            return func.date_trunc("hour", column, "UTC", type_=column.type)
        return func.strftime("%Y-%m-%d %H:00:00.000000", column, type_=column.type)

    def insert_new(self, table: Table, rows: Sequence[Row]) -> set[tuple[Any, ...]]:
        """Insert the rows whose primary key is not there yet, and return those keys.

        A replay inserts nothing and returns nothing. All rows have the same columns.
        """
        if not rows:
            return set()
        if self.is_postgresql:
            return self._copy_new(table, rows)
        statement = sqlite.insert(table).on_conflict_do_nothing().returning(*table.primary_key)
        return {tuple(key) for key in self.connection.execute(statement, list(rows))}

    def _copy_new(self, table: Table, rows: Sequence[Row]) -> set[tuple[Any, ...]]:
        """COPY into a staging table, then insert what is new: within 2 x of a plain COPY, and idempotent."""
        columns = list(rows[0])
        names = ", ".join(f'"{c}"' for c in columns)
        keys = ", ".join(f'"{c.name}"' for c in table.primary_key)
        documents = [index for index, name in enumerate(columns) if isinstance(table.c[name].type, JSON)]
        staging = f"staging_{table.name}"
        staged: set[str] = self.connection.info.setdefault("staged", set())
        if staging not in staged:
            create = f'CREATE TEMP TABLE IF NOT EXISTS {staging} (LIKE "{table.name}") ON COMMIT DELETE ROWS'
            self.connection.execute(text(create))
            for column in table.c:
                if column.server_default is not None or not column.nullable:
                    self.connection.execute(text(f'ALTER TABLE {staging} ALTER "{column.name}" DROP NOT NULL'))
            # Only a commit makes the staging table last, so only then may it be taken for granted.
            event.listen(self.connection, "commit", lambda _: staged.add(staging), once=True)
        driver = self.connection.connection.driver_connection
        assert driver is not None
        with driver.cursor() as cursor:
            with cursor.copy(f"COPY {staging} ({names}) FROM STDIN") as copy:
                for row in rows:
                    values = list(row.values())
                    for index in documents:
                        values[index] = orjson.dumps(values[index]).decode()
                    copy.write_row(values)
            cursor.execute(
                f'INSERT INTO "{table.name}" ({names}) SELECT {names} FROM {staging} '
                f"ON CONFLICT DO NOTHING RETURNING {keys}"
            )
            inserted = set(cursor.fetchall())
            cursor.execute(f"DELETE FROM {staging}")
        return inserted

    def add_up(
        self, table: Table, rows: Sequence[Row], sums: Sequence[str], returning: Sequence[str] = ()
    ) -> list[Any]:
        """Insert each row, or add its ``sums`` columns to the row of the same primary key.

        Rows are taken in the order of their keys, so that concurrent transactions cannot deadlock.
        """
        if not rows:
            return []
        keys = [c.name for c in table.primary_key]
        ordered = sorted(rows, key=lambda row: tuple(str(row[k]) for k in keys))
        insert = postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)
        statement = insert.on_conflict_do_update(
            index_elements=keys, set_={name: table.c[name] + insert.excluded[name] for name in sums}
        )
        if returning:
            result = self.connection.execute(statement.returning(*(table.c[c] for c in returning)), ordered)
            return list(result)
        self.connection.execute(statement, ordered)
        return []


class Store:
    """A database: opens transactions, nothing else.

    Args:
        url: SQLAlchemy URL of PostgreSQL (``postgresql+psycopg://``) or SQLite (``sqlite:///file``).
        pool_size: connections kept open at the most.

    Raises:
        ConfigError: the URL cannot be read or names another database.
    """

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise ConfigError(f"EVALPIPE_DATABASE_URL is no database URL: {url!r} ({error})") from None
        backend = parsed.get_backend_name()
        if backend == "postgresql":
            self.engine = create_engine(
                parsed, pool_size=pool_size, max_overflow=5, pool_pre_ping=True, connect_args={"connect_timeout": 5}
            )
        elif backend == "sqlite":
            self.engine = _sqlite_engine(url)
        else:
            raise ConfigError(f"evalpipe keeps its data in postgresql or sqlite, not in {backend!r}: {url!r}")
        self.url = parsed.render_as_string(hide_password=True)

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """A transaction that writes: commits at the end, rolls back on an exception."""
        with self.engine.begin() as connection:
            yield Transaction(connection)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads, and never waits for a writer."""
        with self.engine.connect().execution_options(evalpipe_read=True) as connection:
            yield Transaction(connection)

    def patiently(
        self,
        run: Callable[[Transaction], T],
        *,
        patience_s: float = 600.0,
        on_wait: Callable[[str], None] | None = None,
    ) -> T:
        """Run one transaction, again and again while the database is away.

        A deadlock, a failover or a restart costs time and nothing else; any other error is raised at once.

        Args:
            run: is called with a fresh transaction at every try.
            patience_s: after this long the database's own error is raised.
            on_wait: is told each error that is being waited out.
        """
        deadline, pause_s = time.monotonic() + patience_s, 0.1
        while True:
            try:
                with self.begin() as tx:
                    return run(tx)
            except DBAPIError as error:
                if not is_passing(error) or time.monotonic() + pause_s > deadline:
                    raise
                if on_wait is not None:
                    on_wait(str(error.orig))
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 2.0)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def is_passing(error: DBAPIError) -> bool:
    """Whether the database may well accept the same transaction later."""
    if isinstance(error, OperationalError) or error.connection_invalidated:
        # SQLite reports a missing table as operational too; waiting would only hide it.
        return not any(sign in str(error.orig) for sign in ("no such table", "no such column", "does not exist"))
    return getattr(error.orig, "sqlstate", None) in {"40001", "40P01", "57P01", "57P02", "57P03"}


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ConfigError(f"SQLite needs a file that workers can share, for example sqlite:///evalpipe.db, not {url!r}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30.0, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 30000", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its lock at the start: upgrading a read lock later fails at once instead of waiting.
        reading = connection.get_execution_options().get("evalpipe_read", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
