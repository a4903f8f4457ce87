"""Records a second from hook to store with heuristics only, and what share each stage takes.

    python bench/throughput.py [--json] [--quick]

An application (bench/traffic.py, a process of its own) captures a burst of records of about 3 KB; Celery workers score
them and commit to PostgreSQL with default durability. The clock runs from the first capture to the commit of the last
record. CPU is read from the operating system, by process, over the same time. Then the same messages go through the
ingest stage in this process, with a clock around each part (wall time, so waiting for the database is in it).
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
from machine import ROOT, Figure, cpu_s, main, servers
from services import create_database
from spine_fleet import Fleet
from sqlalchemy import func, select
from sqlalchemy.engine.default import DefaultDialect
from traffic import conversations, make_hook, talk

from evalpipe.pipeline import findings, ingest
from evalpipe.store import intake, ledgers, series
from evalpipe.store.tables import receipts
from evalpipe.wiring import Wiring

TARGET = 1_500
CARDS = {
    "3 heuristics": """
name: small
match: {service: support-desk}
criteria:
  - {name: refusal, heuristic: refusal}
  - {name: length, heuristic: length, params: {max: 200}}
  - {name: no_pii, heuristic: pii}
""",
    "support-bot": (ROOT / "scorecards" / "support-bot.yaml").read_text(encoding="utf-8"),
}
"""The second is the shipped one: 6 heuristics, and 2 judged criteria that are skipped as no judge is configured."""


def measure(quick: bool) -> list[Figure]:
    records, rounds, profiled = (2_000, 1, 20) if quick else (20_000, 3, 100)
    figures: list[Figure] = []
    with servers() as (folder, redis_url, postgres_url):
        fleets = {name: open_fleet(folder, redis_url, postgres_url, name) for name in CARDS}
        runs: dict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(rounds):
            for name, fleet in fleets.items():
                runs[name].append(play(fleet, records, folder))
        for name, measured in runs.items():
            rates = [run.pop("records/s") for run in measured]
            figures.append(Figure(f"hook to store, {name}", rates, "records/s", TARGET))
            for part in measured[0]:
                figures.append(Figure(f"  {part}", [run[part] for run in measured], "us CPU/record"))
        for name, fleet in fleets.items():
            figures += profile(fleet, name, profiled)
            fleet.close()
    return figures


def open_fleet(folder: Path, redis_url: str, postgres_url: str, name: str) -> Fleet:
    """A database and a Redis database of its own, so that only one fleet at a time has anything to do."""
    place = folder / name.replace(" ", "-")
    (place / "cards").mkdir(parents=True)
    (place / "cards" / "card.yaml").write_text(CARDS[name])
    number = list(CARDS).index(name)
    return Fleet(
        place,
        redis_url.removesuffix("/0") + f"/{number}",
        create_database(postgres_url, f"bench_{number}"),
        {"EVALPIPE_SCORECARDS": str(place / "cards"), "EVALPIPE_JUDGE": "", "EVALPIPE_VISIBILITY_TIMEOUT_S": "600"},
    )


def play(fleet: Fleet, records: int, folder: Path) -> dict[str, float]:
    """Send a burst through a fresh worker; records a second, and CPU microseconds a record by process."""
    fleet.start("worker", "worker", "--queues", "ingest,measure,evaluate,deliver,maintain", "--processes", "2")
    command = [sys.executable, str(Path(__file__).with_name("traffic.py")), "--redis-url", fleet.settings.redis_url]
    run(command, fleet, 64 * 4)  # both children have loaded all that they need
    process = fleet.processes["worker"]
    pids = {"worker": process.pid, "Valkey": pid_of(folder / "valkey"), "PostgreSQL": pid_of_postgres(fleet)}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    told, stored_at = run(command, fleet, records)
    after = {name: cpu_s(pid) for name, pid in pids.items()}
    process.terminate()
    process.wait(30)
    found = {
        "records/s": records / (stored_at - told["started_at"]),
        "hook, calling thread": told["capture_s"] / records * 1e6,
        "hook, shipping thread": told["shipping_s"] / records * 1e6,
        **{name: (after[name] - before[name]) / records * 1e6 for name in pids},
    }
    return {**found, "all processes": sum(list(found.values())[1:])}


def run(command: list[str], fleet: Fleet, records: int) -> tuple[dict[str, float], float]:
    """What the application told, and when the last of its records was committed."""
    wanted = stored(fleet) + records
    application = subprocess.Popen(
        [*command, "--records", str(records)], env=fleet.environ, stdout=subprocess.PIPE, text=True
    )
    while stored(fleet) < wanted:
        time.sleep(0.05)
        if application.poll():
            raise RuntimeError("the application failed")
    stored_at = time.time()
    told, _ = application.communicate(timeout=60)
    return json.loads(told), stored_at


def stored(fleet: Fleet) -> int:
    with fleet.store.read() as tx:
        return int(tx.connection.scalar(select(func.coalesce(func.sum(receipts.c.n), 0))) or 0)


def pid_of(folder: Path) -> int:
    """The process that works in a folder below this one."""
    for found in Path("/proc").iterdir():
        if found.name.isdigit() and "valkey-server" in (found / "cmdline").read_text(errors="replace"):
            try:
                if folder in Path(found / "cwd").readlink().parents:
                    return int(found.name)
            except OSError:
                continue
    raise RuntimeError(f"no server works in {folder}")


def pid_of_postgres(fleet: Fleet) -> int:
    with fleet.store.read() as tx:
        return int(tx.connection.exec_driver_sql("SELECT pg_read_file('postmaster.pid')").scalar_one().split()[0])


class Clock:
    """Wall time by part, without what the parts inside it took."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                took = time.perf_counter() - started
                self.spent[part] += took - self._inner.pop()
                self._inner[-1] += took

        return run


PARTS: tuple[tuple[str, Any, str], ...] = (
    ("decode batch", ingest, "decode_batch"),
    ("score heuristics", ingest, "score_record"),
    ("payload to wire", ingest, "to_wire"),
    ("commit: dead letters, releases", intake, "add_releases"),
    ("commit: records", intake, "add_records"),
    ("commit: rollouts", ingest, "_enter_rollouts"),
    ("commit: findings to rows", findings, "add_findings"),
    ("commit: scorecards known", intake, "add_scorecard"),
    ("commit: scores", series, "add_scores"),
    ("commit: rollups", series, "_add_rollups"),
    ("commit: ledger", ledgers, "count"),
    ("commit: receipts", intake, "add_receipts"),
    ("commit: COMMIT itself", DefaultDialect, "do_commit"),
)


def profile(fleet: Fleet, name: str, messages: int) -> list[Figure]:
    """The ingest stage by part, on messages that the hook has written."""
    hook = make_hook(fleet.settings.redis_url, messages * 64)
    for i, conversation in zip(range(messages * 64), conversations(3), strict=False):
        talk(hook, f"p{i}", conversation)
    assert hook.shutdown(60)
    with redis.Redis.from_url(fleet.settings.redis_url) as client:
        raw = client.rpop("evalpipe.ingest", messages + 10)
    wiring = Wiring(fleet.settings)
    clock, originals = Clock(), [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in PARTS]
    blobs = [clock.timed("envelope to blob", lambda m: json.loads(json.loads(m)["body"])[0][0])(m) for m in raw]
    stage, now = wiring.ingest, datetime.now(UTC)
    stage(blobs.pop(), {}, now)  # loads and connects
    ingest.add_findings = findings.add_findings
    for part, owner, attribute in PARTS:
        setattr(owner, attribute, clock.timed(part, getattr(owner, attribute)))
    ingest.add_findings = findings.add_findings
    try:
        for blob in blobs:
            clock.timed("everything else", stage)(blob, {}, datetime.now(UTC))
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)
        ingest.add_findings = findings.add_findings
        wiring.close()
    total = sum(clock.spent.values())
    per_record = 1e6 / (len(blobs) * 64)
    lines = [Figure(f"ingest stage alone, {name}", [total * per_record], "us/record")]
    lines += [Figure(f"  {part}", [100 * spent / total], "% of it") for part, spent in clock.spent.items()]
    return lines


if __name__ == "__main__":
    main(__doc__, measure)
