"""A connection to Redis for the hook's threads: as much of the protocol as they need, and nothing to install.

redis-py would be most of what the hook costs an application: 100 ms of processor time and 25 MB to load it, and a
multiple of the time of each command. Workers use it; here a command goes out and its answer comes in, within a timeout,
and after any trouble the caller closes the connection and has its own schedule for another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

MOST_BYTES: Final = 64 << 20
"""Of one answer: more is no answer to anything that is asked here."""

# Two threads that load a module at once can find it half loaded. And a process that forks while a thread loads one
# would have children in which it never is, nor for the application: so a fork waits for the end of that.
_loading = threading.Lock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


class ReplyError(Exception):
    """Redis understood the command and says no."""


class Script:
    """A Lua script, which Redis knows by its digest once it has run."""

    __slots__ = ("digest", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = ""


def load() -> None:
    """Import all that the hook's threads need, also what would be imported later, at the first name or record."""
    with _loading, suppress(Exception):  # what is missing is missed, and told of, where it is used
        import hashlib
        import socket  # noqa: F401
        import urllib.parse  # noqa: F401

        import evalpipe.hook.finding
        import evalpipe.refusal  # noqa: F401

        hashlib.sha1(usedforsecurity=False)
        "localhost".encode("idna")


class Connection:
    """One connection, made by the first command. Not for several threads at once.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py has them, with user, password and database, which
            may also be options: ``unix:///run/redis.sock?db=2&password=...``.
        connect_timeout_s, timeout_s: of connecting; of each write and each read.
    """

    def __init__(self, url: str, *, connect_timeout_s: float, timeout_s: float) -> None:
        self._socket: Any = None
        self._answers: Any = None
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s

    def command(self, *words: str | bytes | int) -> Any:
        """The answer to a command: bytes, int, None, or a list of these.

        Raises:
            ReplyError: Redis says no.
            OSError: it cannot be reached, or does not answer in time. The command may have been carried out.
            ValueError: the URL cannot be used, or what answers is not Redis.
        """
        if self._socket is None:
            self._connect()
        return self._ask(words)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """The answer of ``script``; raises as ``command`` does."""
        if not script.digest:
            from hashlib import sha1

            script.digest = sha1(script.source.encode(), usedforsecurity=False).hexdigest()
        try:
            return self.command("EVALSHA", script.digest, len(keys), *keys, *args)
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return self.command("EVAL", script.source, len(keys), *keys, *args)

    def close(self) -> None:
        """Hang up."""
        found, self._socket, self._answers = (self._answers, self._socket), None, None
        for one in found:
            if one is not None:
                with suppress(Exception):  # it may be broken already
                    one.close()

    def __del__(self) -> None:
        self.close()

    def _connect(self) -> None:
        load()
        from urllib.parse import parse_qs, unquote, urlsplit

        url = urlsplit(self._url)
        options = {name: values[0] for name, values in parse_qs(url.query).items()}
        user = unquote(url.username or "") or options.get("username", "")
        password = unquote(url.password or "") or options.get("password", "")
        try:
            self._socket = self._dialled(url, options)
            self._answers = self._socket.makefile("rb")
            if user or password:
                self._ask(("AUTH", user, password) if user else ("AUTH", password))
            if database := _database(url, options):
                self._ask(("SELECT", database))
        except BaseException:
            self.close()
            raise

    def _dialled(self, url: Any, options: dict[str, str]) -> Any:
        import socket
        from urllib.parse import unquote

        if url.scheme == "unix":
            dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            dialled.settimeout(self._connect_timeout_s)
            dialled.connect(unquote(url.path))
        else:
            dialled = socket.create_connection((url.hostname or "localhost", url.port or 6379), self._connect_timeout_s)
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if url.scheme == "rediss":
            dialled = _encrypted(dialled, url.hostname or "localhost", options)
        dialled.settimeout(self._timeout_s)
        return dialled

    def _ask(self, words: Sequence[str | bytes | int]) -> Any:
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word if type(word) is bytes else str(word).encode("utf-8", "surrogatepass")
            parts += (b"$%d\r\n" % len(data), data, b"\r\n")
        self._socket.sendall(b"".join(parts))
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline(65_536)
        if line[-2:] != b"\r\n":
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise ReplyError(rest.decode("utf-8", "replace"))
        if kind not in b":$*" or not rest.lstrip(b"-").isdigit():
            raise ValueError(f"what answers is not Redis: {line[:40]!r}")
        number = int(rest)
        if kind == b":":
            return number
        if not -1 <= number <= MOST_BYTES:
            raise ValueError(f"an answer of Redis has no sensible length: {line[:40]!r}")
        if number < 0:
            return None
        return self._bytes(number) if kind == b"$" else [self._answer() for _ in range(number)]

    def _bytes(self, length: int) -> bytes:
        data: bytes = self._answers.read(length + 2)
        if len(data) < length + 2:
            raise ConnectionError("Redis closed the connection")
        return data[:-2]


def _database(url: Any, options: dict[str, str]) -> int:
    """The option ``db``, else the path, if it is a number.

    Raises:
        ValueError: the option is no number.
    """
    if asked := options.get("db"):
        if not asked.isdecimal():
            raise ValueError(f"the Redis URL has db={asked!r}; it must be a number such as 0")
        return int(asked)
    path = "" if url.scheme == "unix" else url.path.replace("/", "")
    return int(path) if path.isdecimal() else 0


def _encrypted(plain: Any, host: str, options: dict[str, str]) -> Any:
    import ssl

    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_check_hostname", "").lower() in {"false", "0", "no"}:
        context.check_hostname = False
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    return context.wrap_socket(plain, server_hostname=host)
