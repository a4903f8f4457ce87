"""How long after a kill switch is set other processes refuse the call, and what listening for it costs them.

    python bench/control.py [--json] [--quick]

Four processes of an application, each with a hook as it is made by default, make a call every 2 ms. A control document
with another switch is written to Redis, at a random moment of their quarter of a second, 200 times; counted is from
before the write to the first call that is refused, in each process. Then the CPU time of the thread that pulls the
document is read while nothing changes; and, in a process by itself, what asking for permission and settling costs the
calling thread.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import redis
from machine import ROOT, Figure, Valkey, main

from evalpipe.hook.control import KEY, Control
from evalpipe.record import Release

PROCESSES = 4
SERVICE = "bot"

APPLICATION = """
import sys, threading, time
from evalpipe import Hook
from evalpipe.errors import KillSwitchEngaged

hook = Hook("bot", redis_url=sys.argv[1], enforce=True)
throws, idle_s = int(sys.argv[2]), float(sys.argv[3])
with hook.call("ready"):
    pass
while not hook._process.control.active:
    time.sleep(0.01)
print("ready", flush=True)
for throw in range(throws):
    while True:
        try:
            with hook.call(f"feature-{throw}"):
                pass
        except KillSwitchEngaged:
            print(time.monotonic(), flush=True)
            break
        time.sleep(0.002)
(thread,) = (t for t in threading.enumerate() if t.name == "evalpipe-control")
clock = time.pthread_getcpuclockid(thread.ident)
before = time.clock_gettime(clock)
time.sleep(idle_s)
print((time.clock_gettime(clock) - before) / idle_s, flush=True)
"""


def measure(quick: bool) -> list[Figure]:
    throws, idle_s = (20, 2.0) if quick else (200, 20.0)
    with tempfile.TemporaryDirectory(prefix="evalpipe-bench-") as folder, Valkey(Path(folder)) as valkey:
        taken, cpu = thrown(valkey.url, throws, idle_s)
    ordered = sorted(taken)
    name = f"switch set to call refused, {throws} times x {PROCESSES} processes"
    return [
        Figure(f"{name}, p50", [statistics.median(ordered)], "s"),
        Figure(f"{name}, p99", [ordered[int(0.99 * len(ordered))]], "s", target=1.0, at_most=True),
        Figure(f"{name}, max", [ordered[-1]], "s"),
        Figure("CPU of the pulling thread, a process", [1000 * seconds for seconds in cpu], "ms/s"),
        *calling_thread(20 if quick else 100),
    ]


def thrown(url: str, throws: int, idle_s: float) -> tuple[list[float], list[float]]:
    """Seconds from each switch to each process's refusal, and the CPU share of each pulling thread."""
    command = [sys.executable, "-c", APPLICATION, url, str(throws), str(idle_s)]
    with redis.Redis.from_url(url) as client:
        publish(client, 0, "nothing")
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(PROCESSES)]
        told = [process.stdout for process in processes if process.stdout is not None]
        assert all(line(out) == "ready" for out in told)
        taken: list[float] = []
        for throw in range(throws):
            time.sleep(random.uniform(0.05, 0.3))
            started = time.monotonic()
            publish(client, throw + 1, f"feature-{throw}")
            taken += [float(line(out)) - started for out in told]
        cpu = [float(line(out)) for out in told]
    for process in processes:
        process.wait()
    return taken, cpu


def publish(client: redis.Redis, revision: int, feature: str) -> None:
    """A document with one switch, as the server writes it."""
    client.hset(KEY + SERVICE, mapping={"revision": revision, "document": document(revision, feature), "prices": ""})


def document(revision: int, feature: str, **parts: object) -> str:
    switch = {"name": "stop", "feature": feature, "engaged": True, "reason": "bench"}
    return json.dumps({"schema": 1, "revision": revision, "published_at": time.time(), "switches": [switch], **parts})


def line(out: IO[str]) -> str:
    return out.readline().strip()


def calling_thread(rounds: int) -> list[Figure]:
    """What permission and settling cost a call that is enforced; without any control it is one comparison."""
    budget = {"name": "b", "per": "user", "limit": 1e9, "unit": "tokens", "window": "day"}
    figures = []
    for name, parts in (
        ("asking for permission: one switch", {}),
        ("permission and settling: one switch, one budget", {"budgets": [budget]}),
        ("permission and settling: one switch, three budgets",
         {"budgets": [{**budget, "name": f"b{n}"} for n in range(3)]}),
    ):  # fmt: skip
        control = Control(SimpleNamespace(release=Release(SERVICE), redis_url="", fail="open", prices={}))  # type: ignore[arg-type]
        assert control._read(document(1, "other", **parts).encode(), None)  # noqa: SLF001 - without a Redis
        settles = bool(parts)
        times = []
        for _ in range(rounds):
            calls = [a_call(n) for n in range(200)]
            started = time.thread_time()
            for call in calls:
                control.refuse(call)
                if settles:
                    control.settle(call)
            times.append((time.thread_time() - started) / len(calls) * 1e6)
        figures.append(Figure(f"{name}, CPU", times, "us"))
    return figures


def a_call(number: int) -> SimpleNamespace:
    return SimpleNamespace(
        feature="chat", segment="", user_id=f"user-{number}", release=Release(SERVICE), reserved=None,
        model="m", input_tokens=700, output_tokens=50, cached_tokens=None, cost_usd=0.001,
    )  # fmt: skip


if __name__ == "__main__":
    main(__doc__, measure)
