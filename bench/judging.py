"""Judging through Celery beside the raw OpenAI library, raw aiohttp, autoevals and phoenix-evals.

    python bench/judging.py [--json] [--quick] [--part clients|fleet|slow|failing|memory]

A local judge of fixed latency (bench/judge_server.py, a process of its own) grades records of about 3 KB by one
criterion, and counts. evalpipe is a Celery worker (prefork) with a Valkey and SQLite or PostgreSQL: the records came in
through hook, queue and ingest before the clock starts, and are owed; the worker stands still meanwhile. The clock runs
from then to the commit of the last score. Its CPU is that of the worker and its children: task, claim, prompt,
transport, parsing, grades, scores, rollups, ledger; ingest by its own worker is told apart. The other clients send the
same request bodies (the peers: their own, of the same texts), store nothing, and take turns with it within each round;
ratios are taken within a round.

* clients: one process, 300 ms, 100 in flight.
* fleet: two worker processes, 1 s, 200 in flight each, PostgreSQL.
* slow: as clients, but 5 % of the calls take 20 times as long.
* failing: 10 % of the calls fail in four ways by turns (429, 500, malformed, never answered), and 1 % of the records
  always: every record ends scored or explained, and the judge counts what was asked for it.
* memory: 100,000 grades without latency (several minutes; only when asked for).

The peers are installed into `.evalpipe/bench-judging` at the first run.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from machine import ROOT, Figure, cpu_s, describe, servers, show
from services import create_database
from spine_fleet import Fleet
from sqlalchemy import func, select
from traffic import conversations, make_hook, talk

from evalpipe.store.tables import scores, work

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "judging_requirements.txt"
HOME = ROOT / ".evalpipe" / "bench-judging"
PYTHON = HOME / "bin" / "python"
RAW = ("openai", "openai_aiohttp", "aiohttp")
PEERS = ("autoevals", "phoenix")
OURS = ("evalpipe, SQLite", "evalpipe, PostgreSQL")
CARD = """
name: support
match: {service: support-desk}
criteria:
  - name: grounded
    judge: {kind: boolean, rubric: "Does the answer promise only what the policies say?"}
"""
ATTEMPTS = 3


def install() -> None:
    """The bench's own virtual environment with the peers as pinned."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = HOME / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("Installing what bench/judging_requirements.txt names (a minute, once) ...", file=sys.stderr)
    shutil.rmtree(HOME, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)


def versions() -> dict[str, str]:
    """Of the libraries beside us and the peers."""
    pinned = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line and "[" not in line]
    return {name: version(name) for name in ("openai", "aiohttp")} | dict(line.split("==") for line in pinned)


class Judge:
    """The judge's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "judge_server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._base = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.url = f"{self._base}/v1"

    def behave(self, **manner: float) -> None:
        """Be so from now on, and count anew."""
        self._call(json.dumps(manner).encode())

    def counts(self) -> dict[str, Any]:
        """What it has seen since."""
        return self._call(None)

    def _call(self, body: bytes | None) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._base}/bench", body, timeout=30) as answer:
            return json.load(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class App:
    """A client in a process of its own that waits for orders."""

    def __init__(self, name: str, url: str, records: Path) -> None:
        python = str(PYTHON) if name in PEERS else sys.executable
        self._process = subprocess.Popen(
            [python, str(HERE / "judging_app.py"), name, url, str(records)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def grade(self, count: int, in_flight: int) -> dict[str, Any]:
        """What it took."""
        self._process.stdin.write(json.dumps({"count": count, "in_flight": in_flight}) + "\n")
        self._process.stdin.flush()
        done = {**self._answer(), "rss_mb": rss_mb(self._process.pid)}
        if done["passed"] != count:
            raise RuntimeError(f"{self._process.args}: {done['passed']} of {count} records were graded")
        return done

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


class Ours:
    """A small fleet: a worker for ingest, one for judging that stands still until its turn, and the beat."""

    def __init__(
        self, folder: Path, redis_url: str, database_url: str, judge_url: str, *, in_flight: int, processes: int,
        environ: Mapping[str, str],
    ) -> None:  # fmt: skip
        (folder / "cards").mkdir(parents=True)
        (folder / "cards" / "card.yaml").write_text(CARD)
        common = {
            "EVALPIPE_SCORECARDS": str(folder / "cards"),
            "EVALPIPE_JUDGE": f"openai:judge-1@{judge_url}?usd_per_mtok=0.2/0.8",
            "EVALPIPE_JUDGE_CONCURRENCY": str(in_flight),
            "EVALPIPE_VISIBILITY_TIMEOUT_S": "600",
            "EVALPIPE_LEASE_S": "120",
            "EVALPIPE_DRAIN_S": "30",
        }
        self.fleet = Fleet(folder, redis_url, database_url, {**common, **environ})
        self.fleet.start("ingest", "worker", "--processes", "1", "--queues",
                         "ingest,measure,feedback,evaluate,deliver,maintain,publish")  # fmt: skip
        self.fleet.start("judge", "worker", "--queues", "judge", "--processes", str(processes))
        self.fleet.start("beat", "beat")
        self.ingest_s = 0.0
        self._hook = make_hook(redis_url, 10_000)
        self._sent = 0
        self._talks = conversations(11)

    @property
    def pid(self) -> int:
        """The judging worker's."""
        return self.fleet.processes["judge"].pid

    def warm_up(self, count: int) -> None:
        """Let every process load and connect."""
        self._send(count)
        self._wait(lambda: self._stored(scores) >= self._sent)

    def owe(self, count: int) -> None:
        """Stop the judging worker, and let records come in."""
        self._signal(signal.SIGSTOP)
        self.ingest_s = cpu_s(self.fleet.processes["ingest"].pid)
        wanted = self._stored(work) + count
        self._send(count)
        self._wait(lambda: self._stored(work) >= wanted)
        time.sleep(2.5)  # evaluations that this started end, and the beat has told of the work
        self.ingest_s = cpu_s(self.fleet.processes["ingest"].pid) - self.ingest_s

    def grade(self, seconds: float = 300.0) -> dict[str, float]:
        """Let it judge what is owed; what that took."""
        spent, started = cpu_s(self.pid), time.monotonic()
        self._signal(signal.SIGCONT)
        self._wait(lambda: self.owed() == 0, seconds)
        took, spent = time.monotonic() - started, cpu_s(self.pid) - spent
        return {"took_s": took, "cpu_s": spent, "rss_mb": max(map(rss_mb, children(self.pid)))}

    def owed(self) -> int:
        """Works that have not ended."""
        return self._stored(work, "pending")

    def outcomes(self) -> dict[str, int]:
        """Scores by status, and the works that were given up."""
        with self.fleet.store.read() as tx:
            by_status = select(scores.c.status, func.count()).group_by(scores.c.status)
            found = dict(tx.connection.execute(by_status).all())
        return {**found, "dead": self._stored(work, "dead")}

    def explained(self) -> int:
        """Works given up, and scores of status error, that say why."""
        with self.fleet.store.read() as tx:
            dead = select(func.count()).select_from(work).where(work.c.state == "dead", work.c.reason != "")
            error = (
                select(func.count()).select_from(scores).where(scores.c.status == "error", scores.c.explanation != "")
            )
            return int(tx.connection.scalar(dead) or 0) + int(tx.connection.scalar(error) or 0)

    def close(self) -> None:
        """End all of it."""
        self._signal(signal.SIGCONT)
        self._hook.shutdown(5)
        self.fleet.close()

    def _send(self, count: int) -> None:
        for said in itertools.islice(self._talks, count):
            talk(self._hook, f"s{self._sent}", marked(said, self._sent))
            self._sent += 1
            if self._sent % 2_000 == 0:
                assert self._hook.flush(60)
        assert self._hook.flush(60)

    def _stored(self, table: Any, state: str = "") -> int:
        query = select(func.count()).select_from(table)
        if state:
            query = query.where(table.c.state == state)
        with self.fleet.store.read() as tx:
            return int(tx.connection.scalar(query) or 0)

    def _wait(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not done in {seconds} s: see {self.fleet.log.name}")
            time.sleep(0.05)

    def _signal(self, number: int) -> None:
        for pid in (self.pid, *children(self.pid)):
            os.kill(pid, number)


def marked(said: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A conversation that the judge recognises."""
    system, asked = said["messages"]
    return {**said, "messages": [system, {**asked, "content": f"{asked['content']} (rec-{number:08d})"}]}


def children(pid: int) -> list[int]:
    """Processes that it started and that live."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def rss_mb(pid: int, what: str = "VmHWM") -> float:
    """Memory of a process, at its greatest or (``VmRSS``) now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    return 0.0


class Rows:
    """Runs of several clients that take turns: a table as in a study, and figures with targets.

    Args:
        limit: grades a second that the latency allows.
    """

    def __init__(self, title: str, limit: float) -> None:
        self.title, self.limit = title, limit
        self.runs: dict[str, list[dict[str, float]]] = defaultdict(list)

    def add(self, name: str, count: int, took: Mapping[str, float], seen: Mapping[str, Any]) -> None:
        """One run."""
        self.runs[name].append(
            {
                "rate": count / took["took_s"],
                "share": count / took["took_s"] / self.limit,
                "cpu": took["cpu_s"] / count * 1000,
                "rss": took["rss_mb"],
                "in_flight": seen["most_in_flight"],
                "connections": seen["connections"],
                "requests": seen["requests"] / count,
                "judge_cpu": seen["cpu_s"] / took["took_s"],
                "ingest": took.get("ingest_s", 0.0) / count * 1000,
            }
        )

    def of(self, name: str, what: str) -> list[float]:
        """One number of each run."""
        return [run[what] for run in self.runs[name]]

    def ratio(self, name: str, other: str, what: str = "cpu") -> list[float]:
        """Within each round."""
        return [a / b for a, b in zip(self.of(name, what), self.of(other, what), strict=True)]

    def table(self) -> str:
        """As text, in the columns of the study."""
        head = ("client", "rounds", "grades/s", "of c/latency", "CPU s/1,000", "x openai", "x aiohttp", "peak MB",
                "in flight", "conns", "req/record", "judge's cores")  # fmt: skip
        lines = [head]
        for name, runs in self.runs.items():
            against = [
                f"{statistics.median(self.ratio(name, other)):.2f}" if other in self.runs else "-"
                for other in ("openai", "aiohttp")
            ]
            lines.append(
                (name, str(len(runs)), spread(self.of(name, "rate"), 0), spread(self.of(name, "share"), 2),
                 spread(self.of(name, "cpu"), 2), *against, *(
                     f"{statistics.median(self.of(name, what)):.{digits}f}" for what, digits in
                     (("rss", 0), ("in_flight", 0), ("connections", 0), ("requests", 2), ("judge_cpu", 2))))
            )  # fmt: skip
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        body = ["  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in
                          enumerate(zip(line, widths, strict=True))) for line in lines]  # fmt: skip
        return "\n".join([self.title, *body])


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and from where to where."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


class Bench:
    """What the parts share: servers, the judge, the fleets, the clients."""

    def __init__(self, stack: ExitStack, *, quick: bool) -> None:
        self.quick = quick
        self._stack = stack
        self.folder, self._valkey, self._postgres = stack.enter_context(servers())
        self.judge = stack.enter_context(Judge())
        self._databases = itertools.count(1)

    @contextmanager
    def ours(
        self, database: str, *, in_flight: int, processes: int = 1, environ: Mapping[str, str] | None = None
    ) -> Iterator[Ours]:
        """A fleet with a database and a Redis database of its own."""
        number = next(self._databases)
        place = self.folder / f"fleet-{number}"
        place.mkdir()
        url = (
            create_database(self._postgres.url(), f"judging_{number}")
            if database == "PostgreSQL"
            else f"sqlite:///{place / 'evalpipe.db'}"
        )
        redis_url = self._valkey.url.removesuffix("/0") + f"/{number}"
        fleet = Ours(place, redis_url, url, self.judge.url, in_flight=in_flight, processes=processes,
                     environ=environ or {})  # fmt: skip
        try:
            yield fleet
        finally:
            fleet.close()

    def records(self, count: int) -> Path:
        """What the other clients grade: the bodies are one that evalpipe has sent, with another record's mark."""
        sample = json.loads(self.judge.counts()["sample"])
        path = self.folder / "records.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number, said in zip(range(count), conversations(12), strict=False):
                text = json.dumps(sample)
                at = text.rfind("rec-")
                row = {
                    "body": json.loads(f"{text[: at + 4]}{number + 90_000_000:08d}{text[at + 12 :]}"),
                    "input": said["messages"][1]["content"],
                    "context": "\n".join(document["text"] for document in said["context"]),
                    "output": said["output"],
                    "mark": f"rec-{number + 90_000_000:08d}",
                }
                file.write(json.dumps(row) + "\n")
        return path

    def app(self, name: str, records: Path) -> App:
        """A client that lives until the bench ends."""
        return self._stack.enter_context(App(name, self.judge.url, records))

    def run_ours(self, fleet: Ours, count: int, **manner: float) -> tuple[dict[str, float], dict[str, Any]]:
        """One run of evalpipe: what it took and what the judge saw."""
        fleet.owe(count)
        self.judge.behave(**manner)
        took = fleet.grade()
        return {**took, "ingest_s": fleet.ingest_s}, self.judge.counts()


def measure_clients(bench: Bench) -> tuple[Rows, list[Figure]]:
    count, rounds = (300, 1) if bench.quick else (2_000, 3)
    rows = Rows("One process, judge latency 300 ms, 100 in flight", 100 / 0.3)
    with ExitStack() as stack:
        fleets = {
            name: stack.enter_context(bench.ours(name.removeprefix("evalpipe, "), in_flight=100)) for name in OURS
        }
        bench.judge.behave(latency_s=0.3)
        for fleet in fleets.values():
            fleet.warm_up(200)
        records = bench.records(count)
        apps = {name: bench.app(name, records) for name in (*RAW, *PEERS)}
        for app in apps.values():
            app.grade(100, 100)
        for turn in range(rounds):
            turns: list[str] = [*apps, *fleets]
            for name in turns if turn % 2 == 0 else reversed(turns):
                if name in fleets:
                    took, seen = bench.run_ours(fleets[name], count, latency_s=0.3)
                else:
                    bench.judge.behave(latency_s=0.3)
                    took, seen = apps[name].grade(count, 100), bench.judge.counts()
                rows.add(name, count, took, seen)
    best = min(PEERS, key=lambda name: statistics.median(rows.of(name, "cpu")))
    figures: list[Figure] = []
    for name in OURS:
        figures += [
            Figure(f"{name}: share of concurrency / latency", rows.of(name, "share"), "", 0.9),
            Figure("  CPU, against raw AsyncOpenAI", rows.ratio(name, "openai"), "x", 0.5, at_most=True),
            Figure(f"  CPU, against the best peer ({best})", rows.ratio(name, best), "x", 0.5, at_most=True),
            Figure("  CPU, against raw aiohttp", rows.ratio(name, "aiohttp"), "x"),
            Figure("  requests a grade", rows.of(name, "requests"), "", 1.0, at_most=True),
            Figure("  CPU of the ingest before it, 1,000 records", rows.of(name, "ingest"), "s"),
        ]
    return rows, figures


def measure_fleet(bench: Bench) -> tuple[Rows, list[Figure]]:
    count, rounds = (1_500, 1) if bench.quick else (6_000, 2)
    rows = Rows("Two worker processes, judge latency 1 s, 200 in flight each", 400.0)
    with bench.ours("PostgreSQL", in_flight=200, processes=2) as fleet:
        bench.judge.behave(latency_s=0.3)
        fleet.warm_up(600)
        for _ in range(rounds):
            rows.add("evalpipe, PostgreSQL", count, *bench.run_ours(fleet, count, latency_s=1.0))
    share = rows.of("evalpipe, PostgreSQL", "share")
    return rows, [Figure("two processes: share of concurrency / latency", share, "", 0.9)]


def measure_slow(bench: Bench) -> tuple[Rows, list[Figure]]:
    count, rounds = (1_000, 1) if bench.quick else (6_000, 1)
    latency_s, slow_share, slow_times = 0.3, 0.05, 20.0
    limit = 100 / (latency_s * (1 + slow_share * (slow_times - 1)))
    rows = Rows("One process, 100 in flight, 300 ms, but 5 % of the calls take 6 s", limit)
    shares = []
    with bench.ours("PostgreSQL", in_flight=100) as fleet:
        bench.judge.behave(latency_s=latency_s)
        fleet.warm_up(200)
        for turn in range(rounds):
            manner = {"latency_s": latency_s, "slow_share": slow_share, "slow_times": slow_times, "seed": turn}
            took, seen = bench.run_ours(fleet, count, **manner)
            rows.add("evalpipe, PostgreSQL", count, took, seen)
            # The last calls of a run have nobody to take their place: what counts is how full the window is before.
            shares.append(seen["mean_in_flight"] / 100)
    return rows, [Figure("slow calls: share of 100 in flight, until the last call begins", shares, "", 0.85)]


def measure_failing(bench: Bench) -> tuple[Rows, list[Figure]]:
    count = 300 if bench.quick else 2_000
    rows = Rows("One process, 100 in flight, 300 ms, 10 % of the calls fail and 1 % of the records always", 100 / 0.3)
    environ = {"EVALPIPE_JUDGE_TIMEOUT_S": "2", "EVALPIPE_ATTEMPTS": str(ATTEMPTS)}
    with bench.ours("PostgreSQL", in_flight=100, environ=environ) as fleet:
        bench.judge.behave(latency_s=0.3)
        fleet.warm_up(200)
        before, explained = fleet.outcomes(), fleet.explained()
        took, seen = bench.run_ours(fleet, count, latency_s=0.3, fail_share=0.1, doomed_share=0.01)
        ended = {name: n - before.get(name, 0) for name, n in fleet.outcomes().items()}
        explained = fleet.explained() - explained
    rows.add("evalpipe, PostgreSQL", count, took, seen)
    scored = ended.get("scored", 0)
    return rows, [
        Figure("failing: records scored", [scored], "records"),
        Figure("  records with an explained error", [explained], "records"),
        Figure("  records with neither", [count - scored - explained], "records", 0, at_most=True),
        Figure("  calls that failed", [seen["requests"] - seen["kinds"]["fine"]], "calls"),
        Figure("  most calls for one record", [seen["most_for_a_record"]], "calls", ATTEMPTS, at_most=True),
    ]


def measure_memory(bench: Bench) -> tuple[Rows, list[Figure]]:
    count, part = (6_000, 2_000) if bench.quick else (100_000, 5_000)
    rows = Rows("One process, 100 in flight, no latency, part by part", float("inf"))
    sizes: list[float] = []
    with bench.ours("PostgreSQL", in_flight=100) as fleet:
        bench.judge.behave(latency_s=0.0)
        fleet.warm_up(500)
        for done in range(0, count, part):
            took, seen = bench.run_ours(fleet, part, latency_s=0.0)
            rows.add("evalpipe, PostgreSQL", part, took, seen)
            sizes.append(rss_mb(children(fleet.pid)[0], "VmRSS"))
            print(f"  {done + part:,} grades: {sizes[-1]:.0f} MB", file=sys.stderr)
    early = sizes[max(0, len(sizes) // 10 - 1)]
    return rows, [
        Figure("memory after the first tenth", [early], "MB"),
        Figure("  at the end", [sizes[-1]], "MB", early * 1.05, at_most=True),
    ]


PARTS: Mapping[str, Callable[[Bench], tuple[Rows, list[Figure]]]] = {
    "clients": measure_clients,
    "fleet": measure_fleet,
    "slow": measure_slow,
    "failing": measure_failing,
    "memory": measure_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a smaller run, to see that it works")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given again")
    options = parser.parse_args()
    before = {**describe(), **versions()}
    found: dict[str, tuple[Rows, list[Figure]]] = {}
    chosen = options.part or [name for name in PARTS if name != "memory"]
    if "clients" in chosen:
        install()
    with ExitStack() as stack:
        bench = Bench(stack, quick=options.quick)
        for name in chosen:
            found[name] = PARTS[name](bench)
    figures = [figure for _, part in found.values() for figure in part]
    if options.json:
        runs = {name: {"limit": rows.limit, "runs": rows.runs} for name, (rows, _) in found.items()}
        print(json.dumps({"machine": before, "runs": runs, "figures": [f.row() for f in figures]}, indent=2))
    else:
        show(before, figures)
        for rows, _ in found.values():
            print("\n" + rows.table())


if __name__ == "__main__":
    main()
