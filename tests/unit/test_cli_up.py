"""``evalpipe up`` as a supervisor: its Redis is found, stays where it was and comes back; or it gives up."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from evalpipe.cli import trouble, up, up_text
from evalpipe.cli.app import app
from evalpipe.embedded import EmbeddedRedis
from evalpipe.errors import ConfigError, PermanentError
from evalpipe.settings import Settings

Make = Callable[[], up.Stack]


@pytest.fixture
def stack_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A stack that is a Redis and a database only, unless ``up._commands`` is set again."""
    monkeypatch.setattr(up, "_commands", lambda _: {})
    (tmp_path / "cards").mkdir()
    (tmp_path / "home").mkdir()
    shipped = up.shipped_scorecards() / "support-bot.yaml"
    (tmp_path / "cards" / shipped.name).write_text(shipped.read_text())
    environ = {"EVALPIPE_HOME": str(tmp_path / "home"), "EVALPIPE_SCORECARDS": str(tmp_path / "cards")}
    return lambda: up.Stack(dict(environ), api_port=None, log=tmp_path / "home" / "evalpipe.log")


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait, for a while."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def test_the_command_line_finds_the_redis_that_up_started(tmp_path: Path, stack_of: Make) -> None:
    """By a file in the home that its owner alone can read; a URL that is set wins over it."""
    here = {"EVALPIPE_HOME": str(tmp_path / "home")}
    with stack_of() as stack:
        found = Settings.from_env(here)
        assert found.redis_url == stack.settings.redis_url
        with redis.Redis.from_url(found.redis_url) as client:
            assert client.ping()
    assert stat.S_IMODE((tmp_path / "home" / "redis.url").stat().st_mode) == 0o600
    assert Settings.from_env({**here, "EVALPIPE_REDIS_URL": "redis://mine"}).redis_url == "redis://mine"
    assert Settings.from_env({"EVALPIPE_HOME": str(tmp_path)}).redis_url == "redis://localhost:6379/0"


def test_where_up_is_over_the_advice_says_so(tmp_path: Path, stack_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is shown all the same, and the doctor names the home."""
    with stack_of():
        pass
    monkeypatch.setenv("EVALPIPE_HOME", str(tmp_path / "home"))
    for command in ("ledger", "doctor"):
        told = CliRunner().invoke(app, [command]).output
        assert f"`evalpipe up` is not running in {tmp_path / 'home'}" in told
    monkeypatch.setenv("EVALPIPE_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "is not running" not in trouble.redis_advice(Settings.from_env())


def test_up_comes_back_at_the_same_url(stack_of: Make) -> None:
    """Applications that kept running find it again."""
    urls = []
    for _ in range(2):
        with stack_of() as stack:
            urls.append(stack.settings.redis_url)
            assert stack.redis_moved_from == 0
    assert urls[0] == urls[1]


def test_a_redis_that_is_killed_is_started_again_with_its_data_at_its_url(stack_of: Make) -> None:
    """Like any other process of the stack."""
    with stack_of() as stack, redis.Redis.from_url(stack.settings.redis_url) as client:
        client.set("key", "value")
        os.kill(client.info()["process_id"], signal.SIGKILL)
        wait_until(lambda: stack.watch() == ["redis"])
        assert client.get("key") == b"value"
        assert stack.watch() == []
        assert stack.restarts == 1


def test_what_dies_again_and_again_is_given_up_with_its_last_words(
    stack_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of being started for ever."""
    dying = [sys.executable, "-S", "-c", "import sys; sys.exit('no such thing')"]
    monkeypatch.setattr(up, "_commands", lambda _: {"api": dying})

    def watch(stack: up.Stack) -> bool:
        stack.watch()
        return False

    with stack_of() as stack, pytest.raises(PermanentError, match=r"api died 5 times .*last words: no such thing"):
        wait_until(lambda: watch(stack))
    assert stack.restarts == 4


def test_up_that_gives_up_ends_with_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says why, without a traceback."""
    monkeypatch.setattr(up, "YOUNG_S", 60.0)
    monkeypatch.setattr(up, "DEATHS", 1)
    monkeypatch.setattr(up, "_commands", lambda _: {"beat": ["false"]})
    monkeypatch.setenv("EVALPIPE_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["up", "--port", str(free_port())])
    assert done.exit_code == 1
    assert "evalpipe: beat died 1 times" in done.output


def test_a_port_that_is_in_use_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says that it is up."""
    monkeypatch.setattr(up, "PATIENCE_S", 0.0)
    monkeypatch.setenv("EVALPIPE_HOME", str(tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["up", "--port", str(port)])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == f"port {port} is in use: give another by --port"
    assert done.output == ""
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", ["up", "api"])
@pytest.mark.parametrize("port", ["0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(command: str, port: str) -> None:
    """In words of the option."""
    done = CliRunner().invoke(app, [command, "--port", port])
    assert done.exit_code == 2
    assert "--port" in done.output


def test_a_moved_redis_is_told_loudly(tmp_path: Path, stack_of: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Applications have to be started again."""
    with EmbeddedRedis(tmp_path / "home") as server:
        port = server.port
    with socket.create_server(("127.0.0.1", port)), stack_of() as stack:
        assert stack.redis_moved_from == port
        up_text.tell(stack, 8300, Path("log"))
    told = capsys.readouterr()
    assert f"EVALPIPE_REDIS_URL HAS CHANGED, because another program took port {port}" in told.err
    assert stack.settings.redis_url in told.out


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


CARD = """\
name: desk
criteria:
  - {name: kind, judge: {kind: boolean, rubric: Is it kind?, model: "fake:own"}}
  - {name: brief, judge: {kind: boolean, rubric: Is it brief?}}
"""


def test_what_up_says_of_keys_judges_and_the_page_is_so(
    tmp_path: Path, stack_of: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file's key is not taken where others are set; some criteria have a judge; the page is at the port of up."""
    (tmp_path / "cards" / "support-bot.yaml").write_text(CARD)
    with stack_of() as stack:
        up_text.tell(stack, 8317, tmp_path / "log")
        assert f"(key in {tmp_path / 'home' / 'api-key'})" in capsys.readouterr().out
        monkeypatch.setenv("EVALPIPE_API_KEYS", "one")
        up_text.tell(stack, 8317, tmp_path / "log")
    told = capsys.readouterr().out
    assert "(one of EVALPIPE_API_KEYS)" in told
    assert "judge       fake:own; no default (set EVALPIPE_JUDGE: without it 1 judged criteria are skipped)" in told
    (tmp_path / "home" / "api-key").write_text("old")
    monkeypatch.setenv("EVALPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVALPIPE_SCORECARDS", str(tmp_path / "cards"))
    page = CliRunner().invoke(app, ["label", "page"]).output
    assert page.startswith("http://127.0.0.1:8300/label\n  (a guess: ")
    assert "api-key" not in page
    with up.Stack({"EVALPIPE_HOME": str(tmp_path / "home")}, api_port=8317, log=tmp_path / "log"):
        monkeypatch.delenv("EVALPIPE_API_KEYS")
        page = CliRunner().invoke(app, ["label", "page"]).output
    assert page.startswith("http://127.0.0.1:8317/label\n  desk/kind: ")
    assert "api-key, or " in page
