"""The hook writes Celery messages without Celery: they must be what the installed Celery writes, and consumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import redis
from celery import Celery

from evalpipe import Hook
from evalpipe.hook.message import task_message
from evalpipe.record import decode_batch

BLOB = '{"schema":1,"text":"quote \\" backslash \\\\ newline \\n ümlaut 漢字 \\u0000"}'
OURS = {"evalpipe_records", "evalpipe_hours"}

WORKER = """
import os, redis
from celery import Celery
app = Celery("evalpipe", broker=os.environ["URL"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1,
                broker_transport_options={"visibility_timeout": 2, "unacked_restore_interval": 1,
                                          "unacked_restore_throttle": 1})
seen = redis.Redis.from_url(os.environ["URL"])

def note(self, blob):
    seen.rpush("seen:" + self.name, blob)
    headers = self.request.headers or {}
    seen.rpush("headers", str(self.request.get("evalpipe_records", headers.get("evalpipe_records"))))
    if seen.incr("tries:" + self.name) == 1 and os.environ.get("DIE"):
        os._exit(9)  # the worker process is lost in the middle of its first task

app.task(name="evalpipe.ingest", bind=True)(note)
app.task(name="evalpipe.measure", bind=True)(note)
"""


@pytest.fixture
def client(redis_url):
    """A client of the test's empty Redis."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def messages(redis_url, client):
    """The same task call, as the installed Celery writes it and as the hook does."""
    app = Celery("evalpipe", broker=redis_url)
    app.conf.broker_transport_options = {"body_encoding": "utf-8"}

    @app.task(name="evalpipe.ingest", ignore_result=True)
    def ingest(blob):
        """Never run here."""

    ingest.apply_async(args=[BLOB], queue="evalpipe.ingest")
    app.close()
    theirs = json.loads(client.rpop("evalpipe.ingest"))
    data = task_message(
        "evalpipe.ingest", BLOB, message_id="5c1e9f6e-0000-4000-a000-000000000001", origin="host:1:ab",
        summary="(1 records)", headers={"evalpipe_records": 1, "evalpipe_hours": {"svc|3600": 1}},
    )  # fmt: skip
    return theirs, json.loads(data)


def shape(value):
    """The value with every leaf replaced by its type."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def test_the_message_has_the_keys_and_types_of_celerys_own(messages):
    """Envelope, headers and properties, in the newest Celery; ours has two headers more."""
    theirs, ours = messages
    assert {key for key in ours["headers"] if key not in theirs["headers"]} == OURS
    for key in OURS:
        del ours["headers"][key]
    assert shape(ours) == shape(theirs)


def test_whatever_does_not_name_the_call_has_celerys_own_value(messages):
    """Task, routing, encoding, retries, limits and the rest are equal, and so is the decoded body."""
    theirs, ours = messages
    named = {"id", "root_id", "origin", "argsrepr", *OURS}
    assert {k: v for k, v in ours["headers"].items() if k not in named} == {
        k: v for k, v in theirs["headers"].items() if k not in named
    }
    named = {"correlation_id", "delivery_tag", "reply_to"}
    assert {k: v for k, v in ours["properties"].items() if k not in named} == {
        k: v for k, v in theirs["properties"].items() if k not in named
    }
    assert (ours["content-type"], ours["content-encoding"]) == (theirs["content-type"], theirs["content-encoding"])
    assert json.loads(ours["body"]) == json.loads(theirs["body"])
    assert ours["headers"]["id"] == ours["headers"]["root_id"] == ours["properties"]["correlation_id"]


def worker(url, folder, pool, **env):
    """A real Celery worker of both queues."""
    (folder / "hook_worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "celery", "-A", "hook_worker", "worker", "--pool", pool, "--concurrency", "1",
               "--queues", "evalpipe.ingest,evalpipe.measure", "--without-gossip", "--without-mingle",
               "--loglevel", "WARNING"]  # fmt: skip
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "URL": url, **env})


def wait_for(condition, timeout_s=60.0):
    """Wait until the condition holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the worker did not do it in time"
        time.sleep(0.05)


@pytest.mark.parametrize(("pool", "dies"), [("solo", False), ("prefork", False), ("prefork", True)])
def test_a_real_celery_worker_consumes_what_the_hook_wrote(redis_url, client, tmp_path, pool, dies):
    """Records and meter arrive as they were sent; a message whose worker was killed is delivered again, unharmed."""
    hook = Hook("svc", redis_url=redis_url, sample_rate=1.0)
    with hook.call("refunds") as call:
        call.output = 'quote " backslash \\ newline \n ümlaut 漢字 \x00 mail a@b.io'
    assert hook.flush()
    hook.shutdown()
    process = worker(redis_url, tmp_path, pool, **({"DIE": "1"} if dies else {}))
    try:
        wait_for(lambda: client.llen("seen:evalpipe.ingest") == 1 + dies and client.llen("seen:evalpipe.measure"))
        wait_for(lambda: not client.exists("evalpipe.ingest", "evalpipe.measure", "unacked"))
    finally:
        process.terminate()
        process.wait(60)
    for blob in client.lrange("seen:evalpipe.ingest", 0, -1):
        (record,) = decode_batch(blob).records
        assert record.output == 'quote " backslash \\ newline \n ümlaut 漢字 \ufffd mail [email]'
    row = json.loads(client.lindex("seen:evalpipe.measure", 0))["rows"][0]
    assert (row["calls"], row["sampled"], row["enqueued"]) == (1, 1, 1)
    assert b"1" in client.lrange("headers", 0, -1)


def test_what_is_in_the_queue_can_be_counted_without_decoding_it(redis_url, client):
    """Every message says how many records it has, and of which service and hour."""
    hook = Hook("svc", redis_url=redis_url, sample_rate=1.0)
    before = int(time.time())
    for _ in range(100):
        with hook.call():
            pass
    hook.flush()
    hook.shutdown()
    headers = [json.loads(message)["headers"] for message in client.lrange("evalpipe.ingest", 0, -1)]
    assert sum(header["evalpipe_records"] for header in headers) == 100
    hours = {key for header in headers for key in header["evalpipe_hours"]}
    assert hours <= {f"svc|{at // 3600 * 3600}" for at in (before, int(time.time()))}
    assert sum(count for header in headers for count in header["evalpipe_hours"].values()) == 100
