"""The hook at its edges, with real servers and processes: what goes wrong outside is never felt inside, and is counted.

The hook's own tests (tests/unit/hook) have the simple cases; here are the faults of a Redis that still answers, of
process managers, of endings, and of what an application hands over.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from services import Valkey
from stopwatch import assert_quick
from unit.hook.harness import NOWHERE, Queue, balanced

from evalpipe import Hook

PATIENCE_S = 0.5
"""What one call may take at the very worst on a machine that does other things too; a hook that waits takes longer."""
TEXT = "The refund is on its way. " * 20


@pytest.fixture
def make_hook() -> Iterator[Callable[..., Hook]]:
    """Makes hooks that capture everything, and ends them."""
    made: list[Hook] = []

    def make(**options: Any) -> Hook:
        made.append(Hook("shop", **{"redis_url": NOWHERE, "sample_rate": 1.0, "flush_interval_s": 0.05, **options}))
        return made[-1]

    yield make
    for hook in made:
        hook.shutdown(0.5)


def talk(hook: Hook, n: int, pause_s: float = 0.0) -> float:
    """``n`` calls; the slowest one's seconds."""
    slowest = 0.0
    for number in range(n):
        start = time.perf_counter()
        with hook.call("refunds", user_id=f"user-{number}") as call:
            call.messages = [{"role": "user", "content": f"{number} {TEXT}"}]
            call.output = TEXT
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(pause_s)
    return slowest


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return True
        time.sleep(0.05)
    return False


def counted(queue: Queue) -> dict[str, int]:
    """What the newest meter message of every process says, added up."""
    newest: dict[str, dict[str, Any]] = {}
    for blob in queue.blobs("evalpipe.measure"):
        message = json.loads(blob)
        if message["seq"] >= newest.get(message["process"], message)["seq"]:
            newest[message["process"]] = message
    sums = {"processes": len(newest), "ended": sum(bool(m.get("ended")) for m in newest.values()), "calls": 0,
            "sampled": 0, "enqueued": 0, "shed": 0}  # fmt: skip
    for message in newest.values():
        for row in message["rows"]:
            sums["shed"] += sum(row["shed"].values())
            for name in ("calls", "sampled", "enqueued"):
                sums[name] += row[name]
    return sums


class Slow:
    """A proxy before Redis that takes its time over every answer."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._target = port
        self._delay_s = delay_s
        self._server = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._sockets = [self._server]
        self.url_port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, sink, delay_s in ((client, server, 0.0), (server, client, self._delay_s)):
                    threading.Thread(target=self._pump, args=(source, sink, delay_s), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay_s)
                sink.sendall(data)

    def close(self) -> None:
        """Cut every connection."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextlib.contextmanager
def trouble(kind: str, valkey: Valkey) -> Iterator[str]:
    """The URL of a Redis that is in trouble inside of the block, and well behind it."""
    if kind == "slow":
        slow = Slow(valkey.port, 0.3)
        yield valkey.url.replace(f":{valkey.port}/", f":{slow.url_port}/")
        slow._delay_s = 0.0
        return
    with redis.Redis.from_url(valkey.url) as client:
        if kind == "full":
            client.config_set("maxmemory", "1")
            yield valkey.url
            client.config_set("maxmemory", "0")
        elif kind == "hanging":
            os.kill(valkey.pid, signal.SIGSTOP)
            yield valkey.url
            os.kill(valkey.pid, signal.SIGCONT)
        elif kind == "away":
            valkey.kill()
            yield valkey.url
            valkey.start()
        elif kind == "restarting":
            stop = threading.Event()

            def restart() -> None:
                while not stop.wait(0.2):
                    valkey.kill()
                    valkey.start()

            restarting = threading.Thread(target=restart)
            restarting.start()
            yield valkey.url
            stop.set()
            restarting.join()


@pytest.mark.parametrize("kind", ["away", "slow", "hanging", "full", "restarting"])
def test_a_redis_in_trouble_is_not_felt_and_afterwards_its_meter_says_what_it_cost(
    make_hook: Callable[..., Hook], valkey: Valkey, kind: str
) -> None:
    """No call fails or waits, memory keeps its bound; the hook and its meter's message agree on what was shed."""
    with trouble(kind, valkey) as url:
        hook = make_hook(redis_url=url, buffer_size=200, max_buffer_bytes=1 << 20)
        assert_quick(talk(hook, 600, 0.001), PATIENCE_S)
        assert hook.stats().buffered_bytes <= 1 << 20
        assert balanced(hook)
    assert wait_for(lambda: hook.flush(3.0))
    stats = hook.stats()
    assert (stats.calls, stats.sampled, stats.buffered) == (600, 600, 0)
    assert stats.enqueued + stats.shed["buffer"] == 600
    queue = Queue(valkey.url)
    assert wait_for(lambda: counted(queue)["enqueued"] == stats.enqueued), counted(queue)
    assert counted(queue) == {"processes": 1, "ended": 0, "calls": 600, "sampled": 600, "enqueued": stats.enqueued,
                              "shed": stats.shed["buffer"]}  # fmt: skip
    arrived = {record.record_id for record in queue.records()}
    # A restart may lose the last second of what Redis had taken; the ledger finds that by the counts.
    assert len(arrived) == stats.enqueued or kind in {"away", "restarting"}
    queue.client.close()


def test_an_event_loop_is_not_held_up_by_a_redis_that_hangs(make_hook: Callable[..., Hook], valkey: Valkey) -> None:
    """Two hundred tasks call while Redis is stopped: the loop keeps its beat."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            late.append(time.perf_counter() - before - 0.01)

    async def task(hook: Hook, number: int) -> None:
        for _ in range(5):
            async with asyncio.timeout(60):
                with hook.call("refunds", session_id=f"s{number}") as call:
                    await asyncio.sleep(0.02)
                    call.output = TEXT

    async def serve(hook: Hook) -> None:
        beating = asyncio.create_task(beat())
        await asyncio.gather(*(task(hook, number) for number in range(200)))
        beating.cancel()

    with trouble("hanging", valkey) as url:
        hook = make_hook(redis_url=url)
        asyncio.run(serve(hook))
        assert_quick(max(late), PATIENCE_S)
        assert hook.stats().calls == 1000
        assert balanced(hook)
    assert wait_for(lambda: hook.flush(3.0))


APPLICATION = """
import os, time
from evalpipe import Hook
hook = Hook("shop", sample_rate=1.0, flush_interval_s=0.1)
with hook.call("warm-up") as call:  # before the fork: threads run, a connection is open
    call.output = "from the master"
hook.flush()

served = []

def app(environ, start_response):
    with hook.call("refunds") as call:
        call.output = "an answer"
    served.append(time.monotonic())
    if environ["PATH_INFO"] == "/crash" and served[-1] - served[0] > 0.5:
        os._exit(9)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@contextlib.contextmanager
def gunicorn(folder: Path, redis_url: str) -> Iterator[int]:
    """An application under gunicorn, three workers forked after the hook was made and used; yields its port."""
    (folder / "shop.py").write_text(APPLICATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "3", "--bind", f"127.0.0.1:{port}",
               "--max-requests", "40", "--graceful-timeout", "5", "--log-level", "error", "--no-control-socket",
               "shop:app"]  # fmt: skip
    environ = {**os.environ, "EVALPIPE_REDIS_URL": redis_url, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log) as server,
    ):
        try:
            assert wait_for(lambda: get(port, "/") is not None), (folder / "log").read_text()
            yield port
        finally:
            server.terminate()
            server.wait(60)


def get(port: int, path: str) -> str | None:
    """What the server says, or None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def test_gunicorns_workers_count_each_for_itself_also_those_that_are_replaced(tmp_path: Path, redis_url: str) -> None:
    """Preloaded, forked, retired after forty requests, stopped: every call arrives, in one process's name each."""
    with gunicorn(tmp_path, redis_url) as port:
        answered = [pid for _ in range(150) if (pid := get(port, "/")) is not None]
    assert len(set(answered)) > 3
    queue = Queue(redis_url)
    sums = counted(queue)
    served = sums["calls"] - 1
    assert served >= len(answered)
    assert (sums["sampled"], sums["enqueued"], sums["shed"]) == (served + 1, served + 1, 0)
    assert len({record.record_id for record in queue.records()}) == served + 1
    assert len([record for record in queue.records() if record.feature == "warm-up"]) == 1
    assert sums["ended"] == sums["processes"]
    queue.client.close()


def test_a_worker_that_is_gone_at_once_leaves_a_gap_that_is_seen(tmp_path: Path, redis_url: str) -> None:
    """os._exit in a request: what was shipped before is there, and the process never said that it ended."""
    with gunicorn(tmp_path, redis_url) as port:
        for _ in range(30):
            get(port, "/")
        assert wait_for(lambda: get(port, "/crash") is None)
        assert wait_for(lambda: get(port, "/") is not None)
    queue = Queue(redis_url)
    sums = counted(queue)
    assert 0 < sums["calls"] == sums["enqueued"]
    assert sums["processes"] - sums["ended"] == 1
    queue.client.close()


def run(script: str, url: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run an application to its end; and the seconds from its last line of output to its end."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, url], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return done, time.time() - float(done.stdout.split()[-1])


FORKING = """
import os, sys, time
from evalpipe import Hook
hook = Hook("shop", redis_url=sys.argv[1], sample_rate=1.0, flush_interval_s=0.05)
def call(n):
    for i in range(n):
        with hook.call("refunds") as call:
            call.output = f"{os.getpid()} {i}"
call(10)
children = []
for _ in range(3):
    if not (child := os.fork()):
        call(20)
        if not (grandchild := os.fork()):
            call(5)
            hook.flush()
            os._exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0
        hook.flush()
        os._exit(0)  # as a pool of Celery or multiprocessing ends its processes: no atexit, no destructors
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
call(10)
print(time.time())
"""


def test_a_tree_of_forks_counts_every_call_once(redis_url: str) -> None:
    """Children of children that end by os._exit: as many processes as there were, as many calls as were made."""
    done, seconds = run(FORKING, redis_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert_quick(seconds, 2.0)
    queue = Queue(redis_url)
    sums = counted(queue)
    assert (sums["processes"], sums["calls"], sums["enqueued"]) == (7, 95, 95)
    assert len({record.record_id for record in queue.records()}) == 95
    queue.client.close()


ENDING = """
import atexit, sys, threading, time
from evalpipe import Hook
def late(where):
    with hook.call(where) as call:
        call.output = "said late"
atexit.register(late, "atexit before")
hook = Hook("shop", redis_url=sys.argv[1], sample_rate=1.0)
atexit.register(late, "atexit after")
class Last:
    def __del__(self, late=late):
        late("destructor")
last = Last()
def busy():
    while True:
        late("daemon")
        time.sleep(0.001)
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
threading.Thread(target=lambda: (time.sleep(0.2), late("thread"))).start()
print(time.time())
"""


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_calls_while_the_interpreter_ends_do_no_harm(redis_url: str, up: bool) -> None:
    """From atexit functions, destructors and daemon threads: no traceback, no delay, and what could be sent is sent."""
    done, seconds = run(ENDING, redis_url if up else NOWHERE)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2, done.stderr  # one line of warning of each thread where Redis is away
    assert_quick(seconds, 2.5)
    if up:
        queue = Queue(redis_url)
        features = {record.feature for record in queue.records()}
        assert {"daemon", "thread", "atexit after"} <= features
        queue.client.close()


@pytest.mark.parametrize(
    "raised", [ValueError, RecursionError, MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit]
)
def test_whatever_a_redactor_raises_sheds_its_record_and_nothing_else(
    make_hook: Callable[..., Hook], redis_url: str, raised: type[BaseException]
) -> None:
    """The records before and behind it arrive; it is counted as failed, and never leaves unredacted."""

    def redact(text: str) -> str:
        if "secret" in text:
            raise raised(text)
        return text

    hook = make_hook(redis_url=redis_url, redact=redact)
    for output in ("before", "a secret", "behind"):
        with hook.call() as call:
            call.output = output
        hook.flush(1.0)
    stats = hook.stats()
    assert (stats.enqueued, stats.shed["failed"], stats.buffered) == (2, 1, 0)
    queue = Queue(redis_url)
    assert [record.output for record in queue.records()] == ["before", "behind"]
    queue.client.close()


def test_a_redactor_that_never_returns_holds_nobody_up(make_hook: Callable[..., Hook], redis_url: str) -> None:
    """The thread that ships is lost with it; callers go on, the buffer keeps its bound, and the end comes in time."""
    forever = threading.Event()

    def redact(text: str) -> str:
        forever.wait(30)
        return text

    hook = make_hook(redis_url=redis_url, redact=redact, buffer_size=50)
    assert_quick(talk(hook, 300), PATIENCE_S)
    assert hook.stats().buffered <= 50 + 64
    assert balanced(hook)
    start = time.monotonic()
    assert not hook.shutdown()
    assert_quick(time.monotonic() - start, 3.0)
    assert balanced(hook)
    forever.set()


def test_what_a_process_leaves_behind_is_counted_in_its_last_message(
    make_hook: Callable[..., Hook], redis_url: str
) -> None:
    """Calls that end while the last records are being sent: enqueued, or shed because the process ended."""
    under_way: list[Any] = []

    def redact(text: str) -> str:
        if under_way:
            under_way.pop().end()
        return text

    hook = make_hook(redis_url=redis_url, redact=redact, flush_interval_s=60.0)
    for _ in range(20):
        call = hook.call("refunds").start()  # as a stream does, which ends elsewhere
        call.output = TEXT
        under_way.append(call)
    with hook.call("refunds") as call:
        call.output = TEXT
    hook.shutdown()
    queue = Queue(redis_url)
    sums = counted(queue)
    assert sums["ended"] == 1
    assert sums["shed"] > 0
    assert sums["sampled"] == sums["enqueued"] + sums["shed"]
    assert len(queue.records()) == sums["enqueued"]
    queue.client.close()


def test_no_text_is_too_broken_for_any_field(make_hook: Callable[..., Hook], redis_url: str) -> None:
    """Half characters, bytes that are no UTF-8, NUL and control characters: also where the text is a name."""
    broken = "a\ud800b\x00c\udcffd\x1b\u202e"
    hook = make_hook(redis_url=redis_url)
    for text in (broken, "\udc80" * 1000, "\x00"):
        ids = {"trace_id": text, "session_id": text, "user_id": text, "unit": text, "segment": text}
        with pytest.raises(ValueError, match="upstream"), hook.call(text, **ids) as call:  # noqa: PT012
            call.messages = [{"role": text, "content": text.encode("utf-8", "surrogatepass"), text: [text]}]
            call.context = [{"id": text, "text": text}]
            call.parameters = {text: text}
            call.output = call.model = call.finish_reason = text
            call.attributes[text] = text
            raise ValueError(f"upstream said {text}")
        hook.feedback(text, 0.5, label=text, comment=text, user_id=text)
    assert hook.flush()
    stats = hook.stats()
    assert (stats.enqueued, sum(stats.shed.values())) == (3, 0)
    queue = Queue(redis_url)
    for record in queue.records():
        assert record.trace_id
        assert "\x00" not in record.trace_id + record.feature + record.user_id
        json.dumps(record.messages, ensure_ascii=False).encode()
    queue.client.close()


class Odd:
    """An object of an application that answers nothing."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hands off")

    def __len__(self) -> int:
        raise RuntimeError("hands off")

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("hands off")

    def __repr__(self) -> str:
        raise RuntimeError("hands off")

    __str__ = __repr__


def test_no_object_is_too_odd_for_any_field(make_hook: Callable[..., Hook], redis_url: str) -> None:
    """Locks, generators, cycles, ten thousand levels, objects that raise at every touch: the call is counted."""
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    circle: list[Any] = []
    circle.append(circle)
    odd: list[Any] = [
        *(Odd(), threading.Lock(), (n for n in range(3)), circle, deep, socket, float("nan"), 1 << 4000, b"\xff" * 9),
        *(range(10**12), object, {Odd: Odd()}, {frozenset({1}): 1}, bytearray(3), memoryview(b"xy"), ...),
    ]
    hook = make_hook(redis_url=redis_url)
    for thing in odd:
        for given in (thing, [thing], {"key": thing}):
            with hook.call("refunds") as call:
                call.messages = call.context = call.tools = call.tool_calls = call.parameters = given
                call.output = call.model = call.finish_reason = call.error = given
                call.input_tokens = call.output_tokens = call.cached_tokens = call.cost_usd = given
                call.ttft_ms = given
                call.attributes = given
    assert hook.flush()
    stats = hook.stats()
    assert stats.calls == stats.sampled == 3 * len(odd)
    assert stats.enqueued + stats.shed["failed"] + stats.shed["oversized"] == stats.calls
    assert balanced(hook)
    queue = Queue(redis_url)
    assert len(queue.records()) == stats.enqueued
    assert counted(queue)["calls"] == stats.calls
    queue.client.close()


def test_lists_that_other_threads_change_meanwhile_do_no_harm(make_hook: Callable[..., Hook], redis_url: str) -> None:
    """A dict that grows while it is copied is no reason for an exception."""
    shared: dict[str, Any] = {}
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            shared[f"key {number % 50}"] = [number]
            shared.pop(f"key {(number * 7) % 50}", None)

    changing = threading.Thread(target=change)
    changing.start()
    hook = make_hook(redis_url=redis_url)
    try:
        for _ in range(300):
            with hook.call() as call:
                call.messages = [{"role": "user", "content": "hello", "shared": shared}]
                call.output = "fine"
    finally:
        stop.set()
        changing.join()
    assert hook.flush()
    stats = hook.stats()
    assert stats.calls == 300
    assert stats.enqueued + stats.shed["failed"] == 300
