"""The hook in an application, beside the SDKs of OpenTelemetry, Langfuse and Opik.

    python bench/hook.py [--json] [--quick] [--part calls|sinks|import] [--source FOLDER]

One model call is two messages of 2 KB, an answer of 1 KB, a model and token counts; the application changes its list of
messages right after the call. Every SDK has its defaults (evalpipe: redaction on) and a process of its own, which sends
to a third process on this machine: a Valkey for evalpipe, an HTTP endpoint that answers at once for the others. The
processes stand by and take turns; a ratio is taken within a round. What evalpipe sent is compared with what it was
given, record by record.

* calls: what one call costs its thread, not sampled (rate 0.02, of which the median is a call not sampled) and sampled,
  in a loop (`tight`) and at 200 calls a second (`paced`, with cold caches, as in an application); and the CPU of the
  whole process for a sampled call, shipping included, less what the loop costs without any SDK.
* sinks: the sink refuses, hangs, or takes 2 s for each answer, at 2,000 sampled calls a second; a fresh process a case.
* import: CPU and memory that an application pays for the import, in fresh processes.

The SDKs are installed into `.evalpipe/bench-hook` at the first run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from hook_app import SYSTEM, question
from machine import ROOT, Figure, Valkey, describe, show
from redis import Redis

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "hook_requirements.txt"
HOME = ROOT / ".evalpipe" / "bench-hook"
PYTHON = HOME / "bin" / "python"
PEERS = ("otel", "langfuse", "opik")
SINKS = ("ok", "slow", "hang", "down")
RATE = 2000
"""Calls a second while a sink is in trouble."""
WARM = 20
PATIENCE_S = 60.0
"""How long a process may take to leave before it is killed."""
MB = 1e6


def install(source: Path) -> None:
    """The bench's own virtual environment: the peers as pinned, and evalpipe as it is in ``source`` now."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = HOME / "installed"
    pip = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if not stamp.exists() or stamp.read_text() != wanted:
        print("Installing what bench/hook_requirements.txt names (a minute or two, once) ...", file=sys.stderr)
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--force-reinstall", str(source)], check=True
    )


class App:
    """A process with one SDK that waits for orders; leaves or is killed at the end."""

    def __init__(self, sdk: str, url: str, rate: float) -> None:
        self._process = subprocess.Popen(
            [str(PYTHON), str(HERE / "hook_app.py"), sdk, url, str(rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.calls = 0
        self.rss_mb = self._answer()["rss_mb"]

    def make(self, count: int, pace_s: float = 0.0, *, flush: bool = True) -> dict[str, Any]:
        """Make calls; what they cost."""
        first, self.calls = self.calls, self.calls + count
        return self.ask({"do": "calls", "first": first, "count": count, "pace_s": pace_s, "flush": flush})

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one order."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def leave(self) -> float:
        """Seconds from the last line of the program to the end of its process; infinite if it had to be killed."""
        at = self.ask({"do": "leave"})["at"]
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return float("inf")
        return time.monotonic() - at

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def sink(*arguments: str) -> Iterator[int]:
    """The port of an endpoint in a process of its own."""
    command = [sys.executable, str(HERE / "hook_sink.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def received(port: int) -> int:
    """How many different calls an HTTP endpoint has got."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /bench/received HTTP/1.1\r\n\r\n")
        return int(connection.recv(4096).rpartition(b"\r\n\r\n")[2])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# --- calls ----------------------------------------------------------------------------------------------------------


def measure_calls(quick: bool) -> list[Figure]:
    rounds, tight, paced = (1, 500, 100) if quick else (5, 1200, 600)
    found: dict[tuple[str, float, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evalpipe-bench-")))
        valkey = stack.enter_context(Valkey(folder))
        http = f"http://127.0.0.1:{stack.enter_context(sink('ok'))}"
        apps = {
            (sdk, rate): stack.enter_context(App(sdk, valkey.url if sdk == "evalpipe" else http, rate))
            for rate in (0.02, 1.0)
            for sdk in ("none", "evalpipe", *PEERS)
            if rate == 1.0 or sdk != "opik"  # it has no rate
        }
        queue = Redis.from_url(valkey.url)
        for turn in range(rounds + 1):
            for (sdk, rate), app in apps.items():
                fewer = 5 if sdk == "opik" else 1  # it cannot keep up
                for name, count, pace_s in (("tight", tight // fewer, 0.0), ("paced", paced, 0.005)):
                    first = app.calls
                    cost = app.make(count, pace_s)
                    if turn:  # the first warms up
                        found.setdefault((sdk, rate, name), []).append(cost)
                    if sdk == "evalpipe":
                        check(queue, range(first, first + count), every=rate == 1.0)
        queue.close()
    return list(call_figures(found))


def check(queue: Redis, numbers: range, *, every: bool) -> None:
    """Whether the records in the queue are the calls' as they were sent, but for redaction; empties the queue.

    Raises:
        RuntimeError: one is missing, or is not what was sent.
    """
    seen = 0
    for message in queue.lrange("evalpipe.ingest", 0, -1):
        for record in json.loads(json.loads(json.loads(message)["body"])[0][0])["records"]:
            asked = record["messages"][1]["content"]
            number = int(asked.partition("mk-")[2][:6])
            sent = question(number).replace("jane.roe@example.org", "[email]")
            if asked != sent or record["messages"][0]["content"] != SYSTEM or len(record["messages"]) != 2:
                raise RuntimeError(f"call {number} was recorded other than it was sent: {record['messages']}")
            seen += number in numbers
    queue.delete("evalpipe.ingest")
    if every and seen != len(numbers):
        raise RuntimeError(f"{len(numbers) - seen} of {len(numbers)} records are missing")


def call_figures(found: Mapping[tuple[str, float, str], Sequence[Mapping[str, float]]]) -> Iterator[Figure]:
    def of(sdk: str, rate: float, name: str, what: str) -> list[float]:
        return [cost[what] for cost in found[sdk, rate, name]]

    def over(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
        return [a / b for a, b in zip(ours, theirs, strict=True)]

    targets = {(0.02, "otel"): 0.3, (1.0, "otel"): 0.12, (1.0, "langfuse"): 0.05}
    for rate, kind in ((0.02, "not sampled"), (1.0, "sampled")):
        peers = [peer for peer in PEERS if (peer, rate, "tight") in found]
        for name in ("tight", "paced"):
            for sdk in ("none", "evalpipe", *peers):
                yield Figure(f"{kind}, {name}: p50, {sdk}", of(sdk, rate, name, "p50_us"), "us")
            for peer in peers:
                ratio = over(of("evalpipe", rate, name, "p50_us"), of(peer, rate, name, "p50_us"))
                held = targets.get((rate, peer)) if name == "tight" else None
                yield Figure(f"{kind}, {name}: p50, evalpipe / {peer}", ratio, "x", held, True)
        for sdk in ("evalpipe", *peers):
            yield Figure(f"rate {rate:g}, 200 calls/s: p99, {sdk}", of(sdk, rate, "paced", "p99_us"), "us")
        for peer in peers:
            ratio = over(of("evalpipe", rate, "paced", "p99_us"), of(peer, rate, "paced", "p99_us"))
            held = 0.2 if peer == "otel" else None
            yield Figure(f"rate {rate:g}, 200 calls/s: p99, evalpipe / {peer}", ratio, "x", held, True)
        for name in ("tight", "paced"):
            idle = of("none", rate, name, "process_us")
            spent = {
                sdk: [a - b for a, b in zip(of(sdk, rate, name, "process_us"), idle, strict=True)]
                for sdk in ("evalpipe", *peers)
            }
            for sdk, values in spent.items():
                yield Figure(f"rate {rate:g}, {name}: CPU of the process, {sdk}", values, "us/call")
            for peer in peers:
                held = 0.4 if peer == "otel" and rate == 1.0 else None
                ratio = over(spent["evalpipe"], spent[peer])
                yield Figure(f"rate {rate:g}, {name}: CPU of the process, evalpipe / {peer}", ratio, "x", held, True)


# --- sinks ----------------------------------------------------------------------------------------------------------


def measure_sinks(quick: bool) -> list[Figure]:
    rounds, count = (1, 2000) if quick else (3, 20_000)
    cases: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(rounds):
        for kind in SINKS:
            # The peers take minutes to leave, so they have one round.
            for sdk in ("evalpipe", *(PEERS if not turn else ())):
                cases.setdefault((sdk, kind), []).append(in_trouble(sdk, kind, count))
    back = [come_back(count) for _ in range(rounds)]
    figures = []
    for kind in SINKS:
        for sdk in ("evalpipe", *PEERS):
            runs = cases[sdk, kind]
            ours = sdk == "evalpipe"
            columns = {"p50_us": ("p50", "us", None), "p99_us": ("p99", "us", None), "max_us": ("longest", "us", None)}
            if ours and kind != "ok":
                healthy = [run["p99_us"] for run in cases["evalpipe", "ok"]]
                ratio = [run["p99_us"] / p99 for run, p99 in zip(runs, healthy, strict=True)]
                figures.append(Figure(f"sink {kind}: evalpipe, p99 / the healthy one's", ratio, "x", 2.0, True))
            columns["growth_mb"] = ("memory growth", "MB", 10.0 if ours else None)
            columns["leave_s"] = ("time to leave", "s", 2.0 if ours else None)
            columns["arrived"] = ("arrived", "share", None)
            if ours:
                columns["unseen"] = ("neither arrived, waiting nor counted as shed", "records", 0.0)
            for key, (name, unit, target) in columns.items():
                figures.append(Figure(f"sink {kind}: {sdk}, {name}", [run[key] for run in runs], unit, target, True))
    return [
        *figures,
        Figure("sink back: evalpipe, shed, as the meter says", [run["shed"] for run in back], "records"),
        Figure("sink back: evalpipe, missing in the meter", [run["missing"] for run in back], "records", 0.0, True),
    ]


@contextmanager
def endpoint(sdk: str, kind: str, folder: Path) -> Iterator[tuple[str, int]]:
    """The URL for an SDK where its sink is as ``kind`` says, and a port to ask what arrived (0: the Valkey's is it)."""
    scheme, path = ("redis", "/0") if sdk == "evalpipe" else ("http", "")
    if kind == "down":
        yield f"{scheme}://127.0.0.1:{free_port()}{path}", 0
    elif kind == "hang":
        with sink("hang") as port:
            yield f"{scheme}://127.0.0.1:{port}{path}", 0
    elif sdk != "evalpipe":
        with sink(kind) as port:
            yield f"http://127.0.0.1:{port}", port
    else:
        with Valkey(folder) as valkey:
            if kind == "ok":
                yield valkey.url, 0
            else:
                with sink("relay", "127.0.0.1", str(valkey.port)) as port:
                    yield valkey.url.replace(f":{valkey.port}/", f":{port}/"), 0


def in_trouble(sdk: str, kind: str, count: int) -> dict[str, float]:
    """A fresh process whose sink is ``kind``: its calls, its memory, its end."""
    with (
        tempfile.TemporaryDirectory(prefix="evalpipe-bench-") as folder,
        endpoint(sdk, kind, Path(folder)) as (url, port),
        App(sdk, url, 1.0) as app,
    ):
        app.make(WARM, 1 / RATE, flush=False)
        time.sleep(3.0)  # what is loaded at the first message is no growth
        warm = app.ask({"do": "rest"})
        cost = app.make(count, 1 / RATE, flush=False)
        counts = cost["counts"]
        leave_s = app.leave()
        arrived = received(port) if port else 0
        if counts:
            shed = sum(counts["shed"].values())
            cost["unseen"] = abs(counts["sampled"] - counts["enqueued"] - shed - counts["buffered"])
            # What waited when the calls ended is shipped while the process leaves, where the sink takes it.
            arrived = counts["enqueued"] + (counts["buffered"] if kind == "ok" else 0)
    return {
        **cost,
        "growth_mb": cost["rss_mb"] - warm["rss_mb"],
        "leave_s": min(leave_s, PATIENCE_S),
        "arrived": arrived / (count + WARM),
    }


def come_back(count: int) -> dict[str, float]:
    """What the meter's message says of calls that were made while nothing listened, once the sink is back."""
    with tempfile.TemporaryDirectory(prefix="evalpipe-bench-") as folder, Valkey(Path(folder)) as valkey:
        url = valkey.url
        valkey.stop()
        with App("evalpipe", url, 1.0) as app:
            app.make(count, 1 / RATE, flush=False)
            valkey.start()
            app.ask({"do": "flush"})
            app.leave()
        queue = Redis.from_url(url)
        rows = json.loads(json.loads(json.loads(queue.lindex("evalpipe.measure", 0))["body"])[0][0])["rows"]
        queue.close()
    shed = sum(sum(row["shed"].values()) for row in rows)
    enqueued, sampled = (sum(row[name] for row in rows) for name in ("enqueued", "sampled"))
    return {"shed": shed, "missing": abs(count - sampled) + abs(sampled - enqueued - shed)}


# --- import ---------------------------------------------------------------------------------------------------------

IMPORTS = {
    "python": "pass",
    "import evalpipe": "import evalpipe",
    "evalpipe.Hook(...)": "from evalpipe import Hook; Hook('support-desk', redis_url='redis://127.0.0.1:9/0')",
    "otel": "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter\n"
    "from opentelemetry.sdk.trace import TracerProvider\n"
    "from opentelemetry.sdk.trace.export import BatchSpanProcessor",
    "langfuse": "import langfuse",
    "opik": "import opik",
}
TELL = """
import os, resource, sys
used = resource.getrusage(resource.RUSAGE_SELF)
pages = int(open("/proc/self/statm").read().split()[1])
sys.stdout.write(f"{(used.ru_utime + used.ru_stime) * 1e3} {pages * os.sysconf('SC_PAGE_SIZE') / 1e6}")
sys.stdout.flush()
"""


def measure_import(quick: bool) -> list[Figure]:
    rounds = 5 if quick else 21
    cpu: dict[str, list[float]] = {name: [] for name in IMPORTS}
    memory: dict[str, list[float]] = {name: [] for name in IMPORTS}
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OPIK_SENTRY_ENABLE": "0"}
    for turn in range(rounds + 1):
        for name, code in IMPORTS.items():
            done = subprocess.run(
                [str(PYTHON), "-c", code + TELL], capture_output=True, text=True, check=True, cwd="/", env=environ
            )
            if turn:  # the first compiles
                for into, value in zip((cpu, memory), done.stdout.split(), strict=True):
                    into[name].append(float(value))
    figures = []
    for name in IMPORTS:
        above = [a - b for a, b in zip(cpu[name], cpu["python"], strict=True)] if name != "python" else cpu[name]
        ours = "evalpipe" in name
        what = "CPU" if name == "python" else "CPU above bare python"
        figures.append(Figure(f"{name}: {what}", above, "ms", 30.0 if ours else None, True))
        figures.append(Figure(f"{name}: memory", memory[name], "MB", 15.0 if ours else None, True))
    return figures


PARTS = {"calls": measure_calls, "sinks": measure_sinks, "import": measure_import}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a smaller run, to see that it works")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout whose evalpipe is measured")
    options = parser.parse_args()
    install(options.source)
    machine = {**describe(), **versions()}
    figures = [figure for part in options.part or PARTS for figure in PARTS[part](options.quick)]
    if options.json:
        print(json.dumps({"machine": machine, "figures": [f.row() for f in figures]}, indent=2))
    else:
        show(machine, figures)


def versions() -> dict[str, str]:
    """Of what the bench's virtual environment holds."""
    names = ("evalpipe", "opentelemetry-sdk", "langfuse", "opik", "redis")
    code = f"from importlib.metadata import version\nprint(*map(version, {names!r}))"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))


if __name__ == "__main__":
    main()
