"""PostgreSQL and SQLite behind one small surface: transactions, and inserts that replays do not change."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    DateTime,
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

log = logging.getLogger("evalpipe")


@dataclass(frozen=True, slots=True)
class Transaction:
    """One open transaction; the modules of this package read and write through it.

    Attributes:
        connection: to the database.
        exports: scores that are written are also owed to an OpenTelemetry endpoint.
    """

    connection: Connection
    exports: bool = False

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL, else SQLite."""
        return self.connection.dialect.name == "postgresql"

    def end_if_silent(self, after_s: int = 120) -> None:
        """Let the server end this transaction when its process says nothing for so long: a lock goes with its host.

        Without it, where a host lost its power the server would keep the lock until TCP gives up, for hours.
        """
        if self.is_postgresql:
            self.connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{after_s}s'"))

    def hour(self, column: Column[datetime]) -> ColumnElement[datetime]:
        """The start of the hour that ``column`` lies in, in SQL."""
        if self.is_postgresql:
            return func.date_trunc("hour", column, "UTC", type_=column.type)
        return func.strftime("%Y-%m-%d %H:00:00.000000", column, type_=column.type)

    def insert_new(self, table: Table, rows: Sequence[Row]) -> set[tuple[Any, ...]]:
        """Insert the rows whose primary key is not there yet, and return those keys.

        A replay inserts nothing and returns nothing. All rows have the same columns. Tables marked ``mostly_new`` are
        fast where all rows are new, and slow where one is not.
        """
        if not rows:
            return set()
        if self.is_postgresql:
            keys = table.info.get("mostly_new") and self._copy_straight(table, rows)
            return keys or self._copy_new(table, rows)
        statement = sqlite.insert(table).on_conflict_do_nothing().returning(*table.primary_key)
        return {tuple(key) for key in self.connection.execute(statement, list(rows))}

    def _copy_straight(self, table: Table, rows: Sequence[Row]) -> set[tuple[Any, ...]] | None:
        """COPY into the table itself: all rows, or none and None if one of them is there."""
        keys = [c.name for c in table.primary_key]
        # In the order of the keys, so that two transactions with the same new rows cannot deadlock.
        key_of = _getter(keys)
        ordered = sorted(rows, key=key_of)
        with self.driver(f'COPY "{table.name}"') as cursor:
            cursor.execute("SAVEPOINT straight")
            try:
                _copy(cursor, table, table.name, ordered)
            except self.connection.dialect.loaded_dbapi.IntegrityError:
                cursor.execute("ROLLBACK TO SAVEPOINT straight")
                return None
            cursor.execute("RELEASE SAVEPOINT straight")
        return set(map(key_of, rows))

    def _copy_new(self, table: Table, rows: Sequence[Row]) -> set[tuple[Any, ...]]:
        """COPY into a staging table, then insert what is new."""
        names = ", ".join(f'"{c}"' for c in rows[0])
        keys = ", ".join(f'"{c.name}"' for c in table.primary_key)
        staging = self._staging(table)
        # In the order of the keys, so that two transactions with the same new rows cannot deadlock.
        insert = (
            f'INSERT INTO "{table.name}" ({names}) SELECT {names} FROM {staging} ORDER BY {keys} '
            f"ON CONFLICT DO NOTHING RETURNING {keys}"
        )
        with self.driver(insert) as cursor:
            _copy(cursor, table, staging, rows)
            cursor.execute(insert)
            inserted = set(cursor.fetchall())
            cursor.execute(f"DELETE FROM {staging}")
        return inserted

    @contextmanager
    def driver(self, statement: str) -> Iterator[Any]:
        """A cursor of the driver itself, for COPY; its errors become SQLAlchemy's, with ``statement``."""
        driver = self.connection.connection.driver_connection
        assert driver is not None
        dbapi: Any = self.connection.dialect.loaded_dbapi
        try:
            with driver.cursor() as cursor:
                yield cursor
        except dbapi.Error as error:
            # Past SQLAlchemy's back: it has to hear of a connection that broke, and ``patiently`` of what is passing.
            broken = bool(driver.closed)
            if broken:
                self.connection.invalidate(error)
            raise DBAPIError.instance(
                statement, None, error, dbapi.Error, hide_parameters=True, connection_invalidated=broken
            ) from error

    def _staging(self, table: Table) -> str:
        """The name of this connection's staging table for ``table``, made if need be."""
        staging = f"staging_{table.name}"
        staged: set[str] = self.connection.info.setdefault("staged", set())
        if staging not in staged:
            # The columns that this code knows: a newer migration may have added others. None of them is NOT NULL.
            known = ", ".join(f'"{c.name}"' for c in table.c)
            self.connection.execute(
                text(
                    f"CREATE TEMP TABLE IF NOT EXISTS {staging} ON COMMIT DELETE ROWS "
                    f'AS SELECT {known} FROM "{table.name}" WITH NO DATA'
                )
            )
            # Only a commit makes the staging table last, so only then may it be taken for granted.
            event.listen(self.connection, "commit", lambda _: staged.add(staging), once=True)
        return staging

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
        exports: scores that are written are also owed to an OpenTelemetry endpoint.

    Raises:
        ConfigError: the URL cannot be read or names another database.
    """

    def __init__(self, url: str, *, pool_size: int = 5, exports: bool = False) -> None:
        self._exports = exports
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise ConfigError(f"EVALPIPE_DATABASE_URL is no database URL: {url!r} ({error})") from None
        backend = parsed.get_backend_name()
        if backend == "postgresql":
            self.engine = create_engine(
                parsed,
                pool_size=pool_size,
                max_overflow=5,
                pool_pre_ping=True,
                connect_args=_PATIENCE,
                json_deserializer=_read_json,
                hide_parameters=True,  # else an error's text, which is logged and kept, has what users said in it
            )
        elif backend == "sqlite":
            self.engine = _sqlite_engine(url)
        else:
            shown = parsed.render_as_string(hide_password=True)
            raise ConfigError(f"evalpipe keeps its data in postgresql or sqlite, not in {backend!r}: {shown!r}")
        self.url = parsed.render_as_string(hide_password=True)

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """A transaction that writes: commits at the end, rolls back on an exception."""
        with self.engine.begin() as connection:
            yield Transaction(connection, self._exports)

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
                log.warning("waiting for the database: %s", error.orig)
                if on_wait is not None:
                    on_wait(str(error.orig))
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 2.0)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def storable(text: str) -> str:
    """``text`` as both databases take it: without NUL and halves of surrogate pairs."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def storable_json(value: Any) -> Any:
    """A document as both databases take it: texts are ``storable``, and numbers that JSON does not know are None."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable(str(name)): storable_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [storable_json(entry) for entry in value]
    return value


_LONGEST_INT = 17
"""Digits (or sign and digits) from which a number in JSON is a float: up to 1e16 Python writes those with a point."""
_PATIENCE = {
    "connect_timeout": 5,
    # Without these a connection that a cut network left behind hangs for many minutes.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""How long PostgreSQL's client waits for the other side; milliseconds for the last, seconds for the rest."""


def is_passing(error: DBAPIError) -> bool:
    """Whether the database may well accept the same transaction later."""
    if isinstance(error.orig, sqlite3.Error):
        # SQLite calls nearly everything operational, a wrong statement too; the low byte says what it was.
        return (getattr(error.orig, "sqlite_errorcode", 0) & 0xFF) in _SQLITE_PASSING
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is not None:
        return sqlstate[:2] in _SQLSTATES_PASSING or sqlstate in {"55P03", "57P01", "57P02", "57P03", "57P05"}
    if isinstance(error, OperationalError) or error.connection_invalidated:
        # Without a state it was no answer to a statement: the connection failed. Waiting would only hide these.
        return not any(sign in str(error.orig) for sign in ("does not exist", "authentication failed", "pg_hba.conf"))
    return False


_SQLITE_PASSING = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
})  # fmt: skip
_SQLSTATES_PASSING = frozenset({"08", "40", "53", "58"})
"""Connection, rollback by the server (deadlock), out of resources, system error."""


def _copy(cursor: Any, table: Table, into: str, rows: Sequence[Row]) -> None:
    """COPY rows of ``table`` into it or into its staging table."""
    columns = list(rows[0])
    binds = _binds(table, columns)
    names = ", ".join(f'"{c}"' for c in columns)
    changed = [(index, bind) for index, (_, bind) in enumerate(binds) if bind is not None]
    values_of = _getter(columns)
    with cursor.copy(f'COPY "{into}" ({names}) FROM STDIN') as copy:
        for row in rows:
            values = list(values_of(row))
            for index, bind in changed:
                values[index] = bind(values[index])
            copy.write_row(values)


def _getter(names: Sequence[str]) -> Callable[[Row], tuple[Any, ...]]:
    """What takes these columns out of a row, in C."""
    found = itemgetter(*names)
    return found if len(names) > 1 else lambda row: (found(row),)


def _binds(table: Table, columns: Sequence[str]) -> list[tuple[str, Callable[[Any], Any] | None]]:
    """What COPY needs done to the values of each column, as SQLAlchemy does it elsewhere."""
    return [
        (name, _json if isinstance(kind := table.c[name].type, JSON) else _aware if _is_instant(kind) else None)
        for name in columns
    ]


def _is_instant(kind: Any) -> bool:
    return isinstance(getattr(kind, "impl", kind), DateTime)


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _aware(value: datetime | None) -> datetime | None:
    if value is not None and value.tzinfo is None:
        raise ValueError(f"a naive datetime cannot be stored: {value!r}")
    return value


def _read_json(text: str | bytes) -> Any:
    """JSON from PostgreSQL, which gives a float of 1e16 or more back in full digits, as if it were a whole number."""
    return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < _LONGEST_INT else float(digits)


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise ConfigError(f"SQLite needs a file that workers can share, for example sqlite:///evalpipe.db, not {url!r}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30.0, "isolation_level": None}, hide_parameters=True)

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
