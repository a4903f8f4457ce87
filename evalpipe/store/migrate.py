"""Migrations: bring a database to the schema of this code.

Every migration works with the code that is already running, and takes locks for seconds at most; two upgrades at once
wait for each other.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from evalpipe.store.sql import Store

if TYPE_CHECKING:
    from alembic.config import Config

_ONE = threading.Lock()  # Alembic keeps its state in module globals
LOCK = 0x65_76_61_6C  # "eval": the advisory lock that serialises upgrades on PostgreSQL


def folder() -> Path:
    """Where the migrations are: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def upgrade(store: Store, revision: str = "head") -> None:
    """Migrate up to ``revision``; does nothing where the database is there already."""
    _run(store, "upgrade", revision)


def downgrade(store: Store, revision: str) -> None:
    """Migrate down to ``revision``; ``base`` is the empty database."""
    _run(store, "downgrade", revision)


def current(store: Store) -> str | None:
    """The revision that the database is at, or None for an empty one."""
    from alembic.runtime.migration import MigrationContext

    with store.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The revision that this code wants."""
    from alembic.script import ScriptDirectory

    found = ScriptDirectory.from_config(_config()).get_current_head()
    assert found is not None, f"no migrations in {folder()}"
    return found


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(store: Store, command: str, revision: str) -> None:
    from alembic import command as commands

    config = _config()
    with _ONE, store.engine.connect() as connection:
        config.attributes["connection"] = connection
        if connection.dialect.name == "sqlite":
            # All of it in one transaction, whose write lock another upgrade waits for.
            with connection.begin():
                getattr(commands, command)(config, revision)
            return
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        connection.execute(text("SET lock_timeout = '4s'"))
        connection.commit()
        try:
            getattr(commands, command)(config, revision)
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
            connection.execute(text("RESET lock_timeout"))
            connection.commit()
