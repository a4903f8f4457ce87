"""The application never pays: Redis down, hanging, full, restarted; too much, too large; threads, forks and the end."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from stopwatch import assert_quick
from unit.hook.harness import NOWHERE, Queue, balanced

from evalpipe.hook.buffer import Buffer, Entry
from evalpipe.hook.meter import MAX_PENDING, MAX_ROWS
from evalpipe.hook.row import OTHER
from evalpipe.record import MAX_BATCH, Release

TEXT = "The refund is on its way. " * 40


def make_calls(hook, count, text=TEXT):
    """``count`` calls; the slowest one's seconds."""
    slowest = 0.0
    for number in range(count):
        start = time.perf_counter()
        with hook.call("refunds") as call:
            call.messages = [{"role": "user", "content": f"{number} {text}"}]
            call.output = text
        slowest = max(slowest, time.perf_counter() - start)
    return slowest


@pytest.fixture
def hanging_url():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def test_with_redis_down_callers_neither_fail_nor_wait_and_nothing_is_lost_uncounted(make_hook):
    """The buffer keeps the newest up to its bound, the rest is counted as shed."""
    hook = make_hook(redis_url=NOWHERE, buffer_size=100, flush_interval_s=0.05)
    assert_quick(make_calls(hook, 1000), 0.5)
    time.sleep(0.3)
    stats = hook.stats()
    assert (stats.calls, stats.sampled, stats.enqueued) == (1000, 1000, 0)
    assert 100 <= stats.buffered <= 100 + MAX_BATCH
    assert balanced(hook)
    assert not hook.flush(0.5)
    start = time.monotonic()
    assert not hook.shutdown()
    assert_quick(time.monotonic() - start, 1.0)
    assert balanced(hook)


def test_with_redis_hanging_callers_neither_fail_nor_wait_and_the_end_takes_no_two_seconds(make_hook, hanging_url):
    """A server that accepts and is silent costs only the thread that ships."""
    hook = make_hook(redis_url=hanging_url, flush_interval_s=0.05)
    assert_quick(make_calls(hook, 500), 0.5)
    time.sleep(0.2)
    assert_quick(make_calls(hook, 500), 0.5)
    assert balanced(hook)
    start = time.monotonic()
    assert not hook.shutdown()
    assert_quick(time.monotonic() - start, 2.2)


def test_after_an_outage_everything_that_was_kept_arrives_once(make_hook, valkey):
    """Redis killed and started again: the message in hand and the buffer behind it arrive, and the counters agree."""
    hook = make_hook(redis_url=valkey.url, flush_interval_s=0.05)
    make_calls(hook, 70)
    assert hook.flush()
    valkey.kill()
    make_calls(hook, 130)
    assert not hook.flush(0.5)
    valkey.start()
    deadline = time.monotonic() + 60
    while not hook.flush(2.0) and time.monotonic() < deadline:
        time.sleep(0.1)
    stats = hook.stats()
    assert (stats.enqueued, stats.buffered, sum(stats.shed.values())) == (200, 0, 0)
    queue = Queue(valkey.url)
    ids = [record.record_id for record in queue.records()]
    queue.client.close()
    assert len(set(ids)) == len(ids)
    assert len(ids) >= 130


def test_the_queue_in_redis_is_bounded_and_what_it_refuses_is_counted(make_hook, redis_url, queue):
    """Two hooks together keep to the bound; sequence numbers of what was refused are used again."""
    hooks = [make_hook(redis_url=redis_url, queue_max_messages=3) for _ in range(2)]
    for _ in range(3):
        for hook in hooks:
            make_calls(hook, MAX_BATCH)
            assert hook.flush()
    assert len(queue.messages()) == 3
    for hook in hooks:
        stats = hook.stats()
        assert stats.shed["queue"] + stats.enqueued == 3 * MAX_BATCH
        assert balanced(hook)
    assert sum(hook.stats().enqueued for hook in hooks) == 3 * MAX_BATCH
    queue.client.delete("evalpipe.ingest")
    make_calls(hooks[1], 1)
    hooks[1].flush()
    sent = hooks[1].stats().enqueued
    (message,) = queue.messages()
    assert message["headers"]["evalpipe_records"] == 1
    assert f'"seq":{(sent - 1) // MAX_BATCH + 1},' in queue.blobs()[0]


def test_the_buffer_is_bounded_by_bytes_and_sheds_the_oldest():
    """Whatever comes, memory stays under the bound and the newest stay."""
    buffer = Buffer(1000, 10_000, lambda: None)
    shed = []
    for number in range(100):
        shed += buffer.put(Entry(Release(service="s"), "", float(number), 1000, {}))
        assert buffer.bytes <= 10_000
    assert [entry.captured_at for entry in shed] == [float(n) for n in range(90)]
    assert [entry.captured_at for entry in buffer.take(3, 1 << 20)] == [90.0, 91.0, 92.0]
    too_large = Entry(Release(service="s"), "", 0.0, 10_001, {})
    assert buffer.put(too_large) == [too_large]


def test_memory_stays_bounded_with_redis_down(make_hook):
    """Ten thousand distinct records of 20 KB against a bound of 6 MB: traced memory stays near the bound."""
    import tracemalloc

    hook = make_hook(redis_url=NOWHERE)
    tracemalloc.start()
    try:
        for number in range(10_000):
            with hook.call() as call:
                call.output = f"{number:05d}" * 4000
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 14 << 20
    assert hook.stats().buffered_bytes <= 6 << 20
    assert balanced(hook)


def test_records_that_are_too_large_are_shed_and_counted_at_once(hook, queue):
    """Ten megabytes of text, or of parts, or of an object that turns out to be large, are not carried around."""

    class Large:
        def model_dump(self, exclude_none=False):
            return {"content": "x" * 10_000_000}

    text = "x" * 10_000_000
    messages = [{"role": "user", "content": "y" * 100} for _ in range(100_000)]
    with hook.call() as call:
        start = time.perf_counter()
        call.output = text
        call.messages = messages
        assert_quick(time.perf_counter() - start, 0.2)
    with hook.call() as call:
        call.messages = [Large()]
    with hook.call() as call:
        call.output = "small"
    hook.flush()
    assert [record.output for record in queue.records()] == ["small"]
    assert hook.stats().shed["oversized"] == 2
    assert balanced(hook)


def test_a_forked_child_ships_its_own_calls_and_only_those(hook, queue):
    """The child has a new process id, an empty buffer and a thread of its own; ids do not collide."""
    with hook.call("parent"):
        pass

    def child():
        assert hook.stats().calls == 0
        with hook.call("child"):
            pass
        assert hook.flush()
        assert hook.stats().enqueued == 1

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    with hook.call("parent"):
        pass
    hook.flush()
    records = queue.records()
    assert sorted(record.feature for record in records) == ["child", "parent", "parent"]
    assert len({record.record_id for record in records} | {record.trace_id for record in records}) == 6
    assert len({row for blob in queue.blobs() for row in [blob.partition('"process":')[2].partition(",")[0]]}) == 2


def test_many_threads_lose_no_count(hook, queue):
    """Eight threads at once: every call is counted once, every record arrives once."""
    threads = [threading.Thread(target=make_calls, args=(hook, 200, "x")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hook.flush()
    stats = hook.stats()
    assert stats.calls == stats.sampled == stats.enqueued == 1600
    assert len({record.record_id for record in queue.records()}) == 1600
    assert sum(row["calls"] for row in queue.rows()) == 1600


def test_counts_are_exact_when_callers_outrun_the_thread(make_hook):
    """Far more calls than may be pending: callers help to add up, and memory stays bounded."""
    hook = make_hook(sample_rate=0.0, flush_interval_s=60.0)
    for _ in range(3 * MAX_PENDING):
        with hook.call("refunds") as call:
            call.input_tokens = 2
    assert len(hook._process.meter.pending) <= MAX_PENDING + 1
    assert hook.stats().calls == hook.stats().not_sampled == 3 * MAX_PENDING


def test_a_feature_for_every_user_cannot_fill_the_memory(make_hook):
    """Rows of the meter are bounded; the rest share one row, and no call is lost."""
    hook = make_hook(sample_rate=0.0)
    for number in range(MAX_ROWS + 500):
        with hook.call(f"user-{number}"):
            pass
    assert hook.stats().calls == MAX_ROWS + 500
    rows = hook._process.meter._rows
    assert len(rows) <= MAX_ROWS + 2
    assert any(row.feature == OTHER and row.calls >= 499 for row in rows.values())


SCRIPT = """
import sys, time
from evalpipe import Hook
hook = Hook("svc", redis_url=sys.argv[1], sample_rate=1.0)
for n in range(300):
    with hook.call("refunds") as call:
        call.output = f"answer {n}"
print(time.time(), flush=True)
"""


def run_script(url):
    """Run an application that ends right after its calls; seconds from its last line to its end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, url], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    ended = time.time()
    assert done.stderr.count("\n") <= 2, done.stderr  # one line of warning from each thread where Redis is away
    return ended - float(done.stdout)


def test_a_process_that_just_ends_ships_what_it_has(redis_url, queue):
    """The end of the interpreter flushes records and meter."""
    run_script(redis_url)
    assert len(queue.records()) == 300
    assert queue.rows()[0]["enqueued"] == 300


def test_a_process_ends_within_two_seconds_with_redis_down_or_hanging(hanging_url):
    """What cannot be shipped does not hold the application's end."""
    assert_quick(run_script(NOWHERE), 2.0)
    assert_quick(run_script(hanging_url), 2.0)
