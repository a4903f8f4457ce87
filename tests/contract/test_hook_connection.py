"""The hook's own connection to Redis, against a real server: what it says, what it takes, and what breaks it."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from services import Valkey
from stopwatch import assert_quick

from evalpipe.hook.connection import Connection, ReplyError, Script


def connect(url: str, timeout_s: float = 5.0) -> Connection:
    """A connection that waits for so long."""
    return Connection(url, connect_timeout_s=timeout_s, timeout_s=timeout_s)


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    """A connection to an empty Redis."""
    with closing(connect(redis_url)) as connection:
        yield connection


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """The URL of a server that answers each command with the next of these bytes, then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppressed(), server.accept()[0] as client:
                for answer in answers:
                    client.recv(65_536)
                    client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@contextmanager
def suppressed() -> Iterator[None]:
    """The other side may be gone already."""
    try:
        yield
    except OSError:
        return


def test_every_kind_of_answer_is_read(connection: Connection) -> None:
    """Texts, bytes, whole numbers, nothing, lists, lists in lists."""
    assert connection.command("PING") == b"PONG"
    assert connection.command("SET", "k", b"\x00\r\n\xff") == b"OK"
    assert connection.command("GET", "k") == b"\x00\r\n\xff"
    assert connection.command("GET", "none") is None
    assert connection.command("INCRBY", "n", 3) == 3
    assert connection.command("INCRBY", "n", -5) == -2
    assert connection.command("HMGET", "none", "a", "b") == [None, None]
    nested = connection.command("EVAL", "return {1, {'a', {}}, false}", 0)
    assert nested == [1, [b"a", []], None]


@given(key=st.text(), value=st.binary(max_size=2000))
def test_what_is_written_is_what_another_client_reads(redis_server_url: str, key: str, value: bytes) -> None:
    """Any key, any bytes; halves of characters too."""
    with closing(connect(redis_server_url)) as connection, redis.Redis.from_url(redis_server_url) as client:
        connection.command("SET", key, value)
        assert client.get(key.encode("utf-8", "surrogatepass")) == value


def test_a_large_message_goes_out_and_comes_back_whole(connection: Connection) -> None:
    """Larger than any buffer on the way."""
    blob = os.urandom(1 << 20) * 5
    connection.command("LPUSH", "list", blob)
    assert connection.command("RPOP", "list") == blob


def test_a_script_runs_also_where_redis_does_not_know_it(connection: Connection) -> None:
    """The first time, and after a restart or a flush of its scripts."""
    script = Script("return {KEYS[1], ARGV[1], tonumber(ARGV[2])}")
    for _ in range(2):
        assert connection.run(script, ["k"], ["a", 7]) == [b"k", b"a", 7]
    connection.command("SCRIPT", "FLUSH")
    assert connection.run(script, ["k"], ["a", 7]) == [b"k", b"a", 7]


def test_a_no_of_redis_is_told_and_the_connection_stays(connection: Connection) -> None:
    """Also inside of a script."""
    with pytest.raises(ReplyError, match="unknown command"):
        connection.command("NONSENSE")
    with pytest.raises(ReplyError, match="not an integer"):
        connection.run(Script("redis.call('SET', KEYS[1], 'x') return redis.call('INCR', KEYS[1])"), ["k"], [])
    assert connection.command("PING") == b"PONG"


def test_user_password_and_database_of_the_url_are_used(valkey: Valkey) -> None:
    """Percent-encoded as in any URL; a wrong one is told by Redis."""
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command("ACL", "SETUSER", "hook", "on", ">p@ss/word:1", "~*", "+@all")
        address = valkey.url.rpartition("@")[2].partition("/")[0]
        with closing(connect(f"redis://hook:p%40ss%2Fword%3A1@{address}/3")) as connection:
            connection.command("SET", "here", "x")
            assert connection.command("ACL", "WHOAMI") == b"hook"
        client.select(3)
        assert client.get("here") == b"x"
        with (
            closing(connect(f"redis://hook:wrong@{address}")) as connection,
            pytest.raises(ReplyError, match="WRONGPASS"),
        ):
            connection.command("PING")


def test_what_the_documentation_grants_is_enough(valkey: Valkey) -> None:
    """The access list of docs/hook.md, to the letter, for a hook that ships, meters, is told and has a budget."""
    text = (Path(__file__).parents[2] / "docs" / "hook.md").read_text(encoding="utf-8")
    rules = next(line for line in text.splitlines() if line.startswith("ACL SETUSER hook")).split()[3:]
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command("ACL", "SETUSER", "hook", *rules)
    address = valkey.url.rpartition("@")[2]
    from evalpipe import Hook
    from evalpipe.hook.leases import _BOOK

    hook = Hook("bot", redis_url=f"redis://hook:password@{address}", sample_rate=1.0)
    with hook.call("a") as call:
        call.output = "x"
    hook.feedback("t", 1.0)
    assert hook.flush()
    assert hook.stats().enqueued == 1
    hook.shutdown()
    with closing(connect(f"redis://hook:password@{address}")) as connection:
        assert connection.command("HGET", "evalpipe.control:bot", "revision") is None
        assert connection.command("HMGET", "evalpipe.control:bot", "document") == [None]
        keys = ["evalpipe.budget:bot", "evalpipe.budget:bot:b:1:k"]
        assert connection.run(_BOOK, keys, ["e", "", 10, 0, 5, 1000]) == [b"e", 10]
        with pytest.raises(ReplyError, match="NOPERM"):
            connection.command("GET", "other")


def test_a_socket_in_the_file_system_is_used(tmp_path: Path) -> None:
    """``unix://``, with the database as an option."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            with server.accept()[0] as client:
                for answer in (b"+OK\r\n", b"+PONG\r\n"):
                    seen.append(client.recv(65_536))
                    client.sendall(answer)

        seen: list[bytes] = []
        thread = threading.Thread(target=serve)
        thread.start()
        with closing(connect(f"unix://{path}?db=2")) as connection:
            assert connection.command("PING") == b"PONG"
        thread.join()
    assert seen[0] == b"*2\r\n$6\r\nSELECT\r\n$1\r\n2\r\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("?password=se%20cret", (b"AUTH", b"se cret")),
        ("?username=hook&password=p", (b"AUTH", b"hook", b"p")),
        ("?username=hook", (b"AUTH", b"hook", b"")),
    ],
)
def test_user_and_password_may_be_options_of_the_url(tmp_path: Path, options: str, words: tuple[bytes, ...]) -> None:
    """As they must be where a socket's path takes the place of the host; redis-py reads and documents them too."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        seen: list[bytes] = []

        def serve() -> None:
            with suppressed(), server.accept()[0] as client:
                for answer in (b"+OK\r\n", b"+PONG\r\n"):
                    seen.append(client.recv(65_536))
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with closing(connect(f"unix://{path}{options}")) as connection:
            assert connection.command("PING") == b"PONG"
        thread.join()
    assert seen[0] == b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def test_what_stands_before_the_host_comes_before_the_options(valkey: Valkey) -> None:
    """As redis-py has it, and so for the first of several options of one name."""
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command("ACL", "SETUSER", "hook", "on", ">right", "~*", "+@all")
    address = valkey.url.rpartition("@")[2].partition("/")[0]
    for url in (
        f"redis://hook:right@{address}?username=other&password=wrong",
        f"redis://{address}?username=hook&username=other&password=right",
    ):
        with closing(connect(url)) as connection:
            assert connection.command("ACL", "WHOAMI") == b"hook"


def test_a_path_that_is_no_number_names_no_database(redis_url: str) -> None:
    """As in redis-py; an option ``db`` that is no number is a mistake, and told."""
    address = redis_url.rpartition("/")[0]
    with closing(connect(f"{address}/cache")) as connection:
        assert connection.command("PING") == b"PONG"
    with closing(connect(f"{address}/?db=cache")) as connection, pytest.raises(ValueError, match="cache"):
        connection.command("PING")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("there is no openssl here")
    return folder / "cert.pem", folder / "key.pem"


def test_an_encrypted_connection_checks_whom_it_talks_to(certificate: tuple[Path, Path]) -> None:
    """``rediss://`` trusts what it is told to trust, and nothing else."""
    import ssl

    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(3):
                with suppressed(), context.wrap_socket(server.accept()[0], server_side=True) as client:
                    client.recv(65_536)
                    client.sendall(b"+PONG\r\n")

        threading.Thread(target=serve, daemon=True).start()
        url = f"rediss://localhost:{server.getsockname()[1]}"
        with closing(connect(f"{url}?ssl_ca_certs={cert}")) as connection:
            assert connection.command("PING") == b"PONG"
        with closing(connect(url)) as connection, pytest.raises(ssl.SSLCertVerificationError):
            connection.command("PING")
        with closing(connect(f"{url}?ssl_cert_reqs=none")) as connection:
            assert connection.command("PING") == b"PONG"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", ValueError),
        (b"$99999999999\r\n", ValueError),
        (b"$x\r\n", ValueError),
        (b"$5\r\nab", ConnectionError),
        (b"", ConnectionError),
        (b"x" * 70_000, ConnectionError),
    ],
)
def test_what_is_not_redis_is_an_error_and_no_wait(answer: bytes, error: type[Exception]) -> None:
    """Another server, a broken answer, a connection that ends in the middle of one."""
    with answering(answer) as url, closing(connect(url)) as connection, pytest.raises(error):
        connection.command("PING")


def test_a_server_that_says_nothing_costs_the_timeout_and_no_more() -> None:
    """Accepted, and then silence."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with closing(connect(url, 0.3)) as connection, pytest.raises(TimeoutError):
            connection.command("PING")
        took = time.monotonic() - started
        assert took > 0.2
        assert_quick(took, 3.0)


def test_after_a_restart_a_new_connection_is_made(valkey: Valkey) -> None:
    """The broken one is closed by its owner; the next command connects again."""
    with closing(connect(valkey.url)) as connection:
        assert connection.command("PING") == b"PONG"
        valkey.kill()
        with pytest.raises(OSError):  # noqa: PT011 - refused, reset or closed, as the moment has it
            connection.command("PING")
        connection.close()
        valkey.start()
        assert connection.command("PING") == b"PONG"
