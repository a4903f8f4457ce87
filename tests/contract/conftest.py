"""Migrated databases, made once: a copy of a file, or a database whose tables are emptied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from judged_worlds import judged_worlds
from services import Postgres, create_database
from sqlalchemy import text
from stages import World

from evalpipe.store import migrate
from evalpipe.store.sql import Store
from evalpipe.store.tables import metadata


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database without rows."""
    path = tmp_path_factory.mktemp("migrated") / "evalpipe.db"
    store = Store(f"sqlite:///{path}")
    migrate.upgrade(store)
    store.close()
    return path


@pytest.fixture
def migrated_sqlite_url(migrated_file: Path, tmp_path: Path) -> str:
    """The URL of a migrated SQLite database of this test's own."""
    return f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'evalpipe.db')}"


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: Postgres) -> str:
    """The URL of a migrated PostgreSQL database."""
    postgres_server.start()
    url = create_database(postgres_server.url(), "evalpipe_migrated")
    store = Store(url)
    migrate.upgrade(store)
    store.close()
    return url


@pytest.fixture
def migrated_postgres_url(postgres: Postgres, migrated_postgres: str) -> Iterator[str]:  # noqa: ARG001 - starts it
    """The URL of a migrated PostgreSQL database without rows."""
    yield migrated_postgres
    store = Store(migrated_postgres)
    with store.begin() as tx:
        # A test that failed may have left a transaction open.
        tx.connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                                   "WHERE datname = current_database() AND pid <> pg_backend_pid()"))  # fmt: skip
        for table in metadata.sorted_tables:  # quicker than TRUNCATE for a few rows
            tx.connection.execute(table.delete())
    store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database without rows, once of each kind."""
    name = {"sqlite": "migrated_sqlite_url", "postgresql": "migrated_postgres_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds with the judged criteria that it is given."""
    with judged_worlds(migrated_url, tmp_path) as make:
        yield make
