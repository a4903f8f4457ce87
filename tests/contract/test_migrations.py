"""Migrations: up from nothing and from every revision, and down, on both databases; the end is ``tables.metadata``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from stages import AT, at_once, record

from evalpipe.store import intake, migrate
from evalpipe.store.sql import Store
from evalpipe.store.tables import metadata

REVISIONS = [script.revision for script in ScriptDirectory(str(migrate.folder())).walk_revisions()][::-1]


@pytest.fixture
def store(database_url: str):
    """A store on an empty database."""
    opened = Store(database_url)
    yield opened
    opened.close()


def differences(store: Store) -> list[object]:
    """What Alembic would change to make the database like ``tables.metadata``, and defaults that differ."""
    with store.engine.connect() as connection:
        found: list[object] = compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), metadata
        )
    for table in metadata.tables.values():
        there = {column["name"]: column for column in inspect(store.engine).get_columns(table.name)}
        for column in table.c:
            wanted = column.server_default.arg if column.server_default is not None else None
            default = str(there[column.name]["default"] or "").partition("::")[0]
            if default not in ({""} if wanted is None else {f"'{wanted}'", str(wanted)}):
                found.append((table.name, column.name, default, wanted))
    return found


def tables_of(store: Store) -> set[str]:
    """Names of the tables there are, but for Alembic's own."""
    return set(inspect(store.engine).get_table_names()) - {"alembic_version"}


def test_a_new_database_gets_exactly_the_tables_of_this_code(store: Store) -> None:
    """Alembic finds nothing to change after the upgrade, and a second upgrade does nothing."""
    assert migrate.current(store) is None
    migrate.upgrade(store)
    assert migrate.current(store) == migrate.head()
    assert differences(store) == []
    migrate.upgrade(store)
    assert tables_of(store) == set(metadata.tables)


def test_indexes_and_their_conditions_are_those_of_this_code(store: Store) -> None:
    """Partial indexes too, whose conditions Alembic does not compare."""
    migrate.upgrade(store)
    found = inspect(store.engine)
    for table in metadata.tables.values():
        there = {index["name"]: index for index in found.get_indexes(table.name)}
        assert set(there) == {index.name for index in table.indexes}
        for index in table.indexes:
            partial = bool(index.dialect_options["postgresql"]["where"] is not None)
            options = there[index.name].get("dialect_options", {})
            assert any(key.endswith("_where") for key in options) == partial, index.name


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_released_revision_goes_up_to_the_head_and_down_to_nothing(store: Store, revision: str) -> None:
    """From each revision up to the head, back down to it, and down to the empty database."""
    migrate.upgrade(store, revision)
    assert migrate.current(store) == revision
    migrate.upgrade(store)
    assert differences(store) == []
    migrate.downgrade(store, revision)
    assert migrate.current(store) == revision
    migrate.downgrade(store, "base")
    assert tables_of(store) == set()
    assert migrate.current(store) is None
    migrate.upgrade(store)
    assert differences(store) == []


def test_upgrades_at_once_wait_for_each_other(database_url: str) -> None:
    """Three processes that start together migrate once, and so do two threads of one."""
    code = f"from evalpipe.store import migrate, sql; migrate.upgrade(sql.Store({database_url!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    stores = [Store(database_url) for _ in range(2)]
    try:
        at_once(*(lambda s=s: migrate.upgrade(s) for s in stores))
        assert [(p.communicate(timeout=60)[1], p.returncode) for p in processes] == [(b"", 0)] * 3
        assert differences(stores[0]) == []
    finally:
        for store in stores:
            store.close()


def test_a_migration_that_cannot_get_its_lock_gives_up_and_leaves_no_lock_behind(postgres_url: str) -> None:
    """It fails within seconds instead of stopping all traffic behind it, and the next upgrade works."""
    store, other = Store(postgres_url), Store(postgres_url)
    try:
        with other.begin() as tx:
            tx.connection.execute(text("CREATE TABLE alerts (x int)"))
            with pytest.raises(Exception, match="lock timeout"):
                migrate.upgrade(store)
            tx.connection.execute(text("DROP TABLE alerts"))
        migrate.upgrade(other)
        assert differences(other) == []
        with store.engine.connect() as connection:
            assert connection.scalar(text("SHOW lock_timeout")) == "0"
    finally:
        store.close()
        other.close()


def test_the_migrations_are_found_in_a_checkout_and_in_an_installed_package(monkeypatch, tmp_path: Path) -> None:
    """Beside the package in a checkout; inside it once it is installed."""
    assert (migrate.folder() / "env.py").is_file()
    package = tmp_path / "evalpipe"
    (package / "_migrations").mkdir(parents=True)
    monkeypatch.setattr(migrate, "__file__", str(package / "store" / "migrate.py"))
    assert migrate.folder() == package / "_migrations"


def test_code_that_runs_survives_a_column_that_a_newer_migration_adds_or_drops(store: Store) -> None:
    """Pooled connections keep their staging tables, made before the migration."""
    migrate.upgrade(store)
    arrivals = [intake.Arrival(record(i), b"{}", "scored") for i in range(4)]
    with store.begin() as tx:
        assert intake.add_records(tx, arrivals[:1], AT) == {"r-0"}
    with store.begin() as tx:
        tx.connection.execute(text("ALTER TABLE records ADD COLUMN newer TEXT NOT NULL DEFAULT 'x'"))
    with store.begin() as tx:
        assert intake.add_records(tx, arrivals[:2], AT) == {"r-1"}
    fresh = Store(store.engine.url.render_as_string(hide_password=False))
    try:
        with fresh.begin() as tx:
            assert intake.add_records(tx, arrivals[:3], AT) == {"r-2"}
            assert set(tx.connection.scalars(text("SELECT newer FROM records"))) == {"x"}
        with fresh.begin() as tx:
            tx.connection.execute(text("ALTER TABLE records DROP COLUMN newer"))
        with fresh.begin() as tx:
            assert intake.add_records(tx, arrivals, AT) == {"r-3"}
    finally:
        fresh.close()
