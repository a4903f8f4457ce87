"""Fixtures for every test: real servers, a database of its own for each test, and no settings from outside."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from _pytest.runner import runtestprotocol
from services import Postgres, Valkey, create_database, drop_database
from sharing import GroupsScheduling
from stopwatch import TRIES, TookTooLongError

hypothesis.settings.register_profile("evalpipe", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("evalpipe")

_NUMBERS = itertools.count(1)
_TOOK_TOO_LONG = pytest.StashKey[bool]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupsScheduling | None:
    """Tests that share something expensive share a worker."""
    return GroupsScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test that took too long again, with fixtures of its own; whatever else fails has failed."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports: list[pytest.TestReport] = []
    for _ in range(TRIES):
        item.stash[_TOOK_TOO_LONG] = False
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if not item.stash[_TOOK_TOO_LONG]:
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test took too long."""
    if call.excinfo is not None and call.excinfo.errisinstance(TookTooLongError):
        item.stash[_TOOK_TOO_LONG] = True
    return (yield)


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """A developer's own ``EVALPIPE_*`` variables do not reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("EVALPIPE_") and not n.startswith("EVALPIPE_TEST_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def redis_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey for the whole session, or of your own server in EVALPIPE_TEST_REDIS_URL."""
    if own := os.environ.get("EVALPIPE_TEST_REDIS_URL"):
        yield own
        return
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The URL of an empty Redis database."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushdb()
    return redis_server_url


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own, running, to stop, kill and start again; it keeps its URL."""
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One PostgreSQL for the whole session; tests take ``postgres``."""
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> Postgres:
    """The session's PostgreSQL, running, to stop, kill and start again; it keeps its URLs and what was committed."""
    postgres_server.start()
    return postgres_server


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty PostgreSQL database, on your own server if EVALPIPE_TEST_DATABASE_URL names one."""
    server: Postgres | None = None
    if not (server_url := os.environ.get("EVALPIPE_TEST_DATABASE_URL", "")):
        server = request.getfixturevalue("postgres")
        server_url = server.url()
    name = f"evalpipe_test_{os.getpid()}_{next(_NUMBERS)}"
    yield create_database(server_url, name)
    if server:
        server.start()  # the test may have stopped it
    drop_database(server_url, name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'evalpipe.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, once of each kind."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url
