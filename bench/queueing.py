"""The queue: our own message writing against a raw list in, a Celery worker on our messages against Celery's own out.

    python bench/queueing.py [--json] [--quick]

In: batches of 64 records in wire form, of about 3 KB each. Raw is one JSON text of the batch and `LPUSH`; ours is the
batch's text, the Celery message around it, and the push that keeps the queue's bound. Both start from the same dicts
with the standard library's JSON, as an application that installs nothing else would. A second line starts both from a
finished text, so that only the message and the push are compared.

Out: a worker (prefork, one child, acknowledging late, as ours) takes a backlog and has the 64 records as dicts; theirs
are sent by `send_task` with Celery's defaults, ours are written by the hook's code and taken by evalpipe's app. Two
workers stand by, and turns are taken; the clock runs in the child, from the first task to the last.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from machine import Figure, Valkey, cpu_s, main
from redis import Redis
from traffic import conversations

from evalpipe.hook.message import task_message
from evalpipe.hook.transport import Transport
from evalpipe.record import MAX_BATCH, encode_batch

DONE = "bench:done"
UNBOUND = 1_000_000
TAKE = "bench.take"
"""Task and queue: evalpipe's own would run the whole stage."""


def measure(quick: bool) -> list[Figure]:
    rounds, batches, backlog = (2, 50, 40) if quick else (9, 300, 300)
    wires = [wire(i, c) for i, c in zip(range(MAX_BATCH), conversations(1), strict=False)]
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder)) as valkey:
        return enqueue(valkey.url, wires, rounds, batches) + dequeue(valkey.url, wires, rounds, backlog)


def wire(i: int, conversation: dict[str, Any]) -> dict[str, Any]:
    """A record as the hook's shipping thread has it before it encodes."""
    return {
        "record_id": f"{i:032x}",
        "trace_id": f"{i:032x}",
        "session_id": f"s-{i}",
        "captured_at": datetime.now().astimezone().timestamp(),
        "release": {"service": "support-desk", "model": "small-chat-2026-06", "prompt": "support@6"},
        "probability": 0.05,
        "latency_ms": 812.4,
        **conversation,
    }


def text_of(wires: list[dict[str, Any]], sequence: int) -> str:
    return encode_batch(wires, process_id="bench:1:0", sequence=sequence, sent_at=time.time(), hook_version="0")


def message_of(blob: str) -> bytes:
    digits = os.urandom(16).hex()
    return task_message(
        TAKE,
        blob,
        message_id=f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}",
        origin="bench:1:0",
        summary=f"({MAX_BATCH} records)",
        headers={"evalpipe_records": MAX_BATCH, "evalpipe_hours": {"support-desk|0": MAX_BATCH}},
    )


def enqueue(url: str, wires: list[dict[str, Any]], rounds: int, batches: int) -> list[Figure]:
    """Records a second into Redis, by each way in turn."""
    client, transport, blob = Redis.from_url(url), Transport(url, UNBOUND), text_of(wires, 1)
    ready = blob.encode()
    ways: dict[str, Callable[[], Any]] = {
        "raw, from records": lambda: client.lpush("raw", json.dumps(wires, ensure_ascii=False).encode()),
        "ours, from records": lambda: transport.push(TAKE, message_of(text_of(wires, 1))),
        "raw, from a text": lambda: client.lpush("raw", ready),
        "ours, from a text": lambda: transport.push(TAKE, message_of(blob)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(batches):
                way()
            if turn:  # the first warms up
                rates[name].append(batches * MAX_BATCH / (time.perf_counter() - started))
            client.flushdb()
    client.close()
    transport.close()
    figures = [Figure(f"in: {name}", values, "records/s") for name, values in rates.items()]
    for start in ("records", "a text"):
        both = zip(rates[f"ours, from {start}"], rates[f"raw, from {start}"], strict=True)
        target = 0.5 if start == "records" else None
        figures.append(Figure(f"in: ours / raw, from {start}", [a / b for a, b in both], "x", target))
    return figures


def dequeue(url: str, wires: list[dict[str, Any]], rounds: int, backlog: int) -> list[Figure]:
    """Records a second out of a backlog and into a worker's child, ours and Celery's own in turn."""
    from celery import Celery

    urls = {name: url.removesuffix("/0") + f"/{number}" for number, name in enumerate(("celery", "ours"), 1)}
    clients = {name: Redis.from_url(at, socket_timeout=130) for name, at in urls.items()}
    workers = {name: start_worker(name, at) for name, at in urls.items()}
    rates: dict[str, list[float]] = {name: [] for name in urls}
    spent: dict[str, list[float]] = {name: [] for name in urls}
    celery = Celery(broker=urls["celery"])
    try:
        for turn, (name, client) in itertools.product(range(rounds + 1), clients.items()):
            before = cpu_s(workers[name].pid)
            with client.pipeline() as pipe:
                if name == "ours":
                    # Pushed at once, as in a backlog: else the worker would wait for this process.
                    pipe.lpush(TAKE, *(message_of(text_of(wires, i)) for i in range(backlog)))
                else:
                    for _ in range(backlog):
                        celery.send_task(TAKE, args=[wires], queue="staged", ignore_result=True)
                    pipe.rename("staged", TAKE)
                pipe.execute()
            _, told = client.blpop([DONE], timeout=120)
            if turn:
                rates[name].append((backlog - 1) * MAX_BATCH / json.loads(told))
                spent[name].append((cpu_s(workers[name].pid) - before) / backlog / MAX_BATCH * 1e6)
            client.delete(DONE)
    finally:
        for worker in workers.values():
            worker.terminate()
            worker.wait(20)
        celery.close()
    figures = [Figure(f"out: {name}", values, "records/s") for name, values in rates.items()]
    figures += [Figure(f"out: {name}, worker's CPU", values, "us/record") for name, values in spent.items()]
    both = zip(rates["ours"], rates["celery"], strict=True)
    return [*figures, Figure("out: ours / Celery's own batch task", [a / b for a, b in both], "x", 1.0)]


def start_worker(name: str, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--worker", name, url]
    environ = {**os.environ, "EVALPIPE_REDIS_URL": url, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environ)


def work(name: str, url: str) -> None:
    """A worker whose task has the records, counts to the backlog's end, and tells how long that took."""
    import orjson
    from celery import Celery

    client = Redis.from_url(url)
    if name == "ours":
        from evalpipe.settings import Settings
        from evalpipe.worker import make_app

        app = make_app(Settings.from_env())
    else:
        app = Celery(broker=url)
        app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
    started = 0.0

    @app.task(name=TAKE, ignore_result=True)
    def take(batch: Any) -> None:
        nonlocal started
        started = started or time.perf_counter()
        records = orjson.loads(batch)["records"] if name == "ours" else batch
        assert len(records) == MAX_BATCH
        if not client.llen(TAKE) and client.hlen("unacked") <= 1:
            client.rpush(DONE, json.dumps(time.perf_counter() - started))
            started = 0.0

    options = ["--concurrency=1", "--without-gossip", "--without-mingle", "--loglevel=ERROR"]
    app.worker_main(["worker", f"--queues={TAKE}", f"--hostname={name}@bench", *options])


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(*sys.argv[-2:])
    else:
        main(__doc__, measure)
