"""Records a second from hook to store with heuristics only, and what share each stage takes.

    python bench/throughput.py [--json] [--quick]

An application (bench/traffic.py, a process of its own) captures a burst of records of about 3 KB; Celery workers score
them and commit to PostgreSQL with default durability. The clock runs from the first capture to the commit of the last
record. CPU is read from the operating system, by process, over the same time. Then such messages go through the ingest
stage in this process, with a clock around each part: wall time, which has waiting for the database in it, and CPU time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
from machine import ROOT, Clock, Figure, busy_s, cpu_s, main, servers
from services import create_database
from spine_fleet import Fleet
from sqlalchemy import func, select
from sqlalchemy.engine.default import DefaultDialect
from traffic import conversations, make_hook, talk

from evalpipe.pipeline import ingest
from evalpipe.store import growths, intake, ledgers, levels, profiles, series
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
    with servers() as (folder, valkey, postgres):
        fleets = {name: open_fleet(folder, valkey.url, postgres.url(), name) for name in CARDS}
        runs: dict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(rounds):
            for name, fleet in fleets.items():
                runs[name].append(play(fleet, records, {"Valkey": valkey.pid, "PostgreSQL": postgres.pid}))
        for name, measured in runs.items():
            rates = [run.pop("records/s") for run in measured]
            figures.append(Figure(f"hook to store, {name}", rates, "records/s", TARGET))
            figures += [Figure(f"  {part}", [run[part] for run in measured], unit_of(part)) for part in measured[0]]
        figures += profile(fleets["support-bot"], profiled)
        for fleet in fleets.values():
            fleet.close()
    return figures


def unit_of(part: str) -> str:
    return "records/s" if "2 /" in part else "cores" if part.startswith("cores") else "us CPU/record"


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


def play(fleet: Fleet, records: int, pids: dict[str, int]) -> dict[str, float]:
    """Send a burst through a fresh worker; records a second, and CPU microseconds a record by process."""
    fleet.start(
        "worker", "worker", "--queues", "ingest,measure,feedback,evaluate,deliver,maintain,publish", "--processes", "2"
    )
    process = fleet.processes["worker"]
    pids = {"Celery worker and its 2 children": process.pid, **pids}
    command = [sys.executable, str(Path(__file__).with_name("traffic.py")), "--redis-url", fleet.settings.redis_url]
    run(command, fleet, 64 * 4)  # both children have loaded all that they need
    busy, before = busy_s(), {name: cpu_s(pid) for name, pid in pids.items()}
    told, stored_at = run(command, fleet, records)
    busy, after = busy_s() - busy, {name: cpu_s(pid) for name, pid in pids.items()}
    process.terminate()
    process.join(30)
    took = stored_at - told["started_at"]
    spent = {
        "hook, calling thread": told["capture_s"],
        "hook, shipping thread": told["shipping_s"],
        **{name: after[name] - before[name] for name in pids},
    }
    total = sum(spent.values())
    return {
        "records/s": records / took,
        **{name: seconds / records * 1e6 for name, seconds in spent.items()},
        "all of these": total / records * 1e6,
        "cores that these had": total / took,
        "cores that other processes had": max(0.0, busy - total) / took,
        "with two cores of its own, by CPU (2 / all of these)": 2 * records / total,
    }


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


PARTS: tuple[tuple[str, Any, str], ...] = (
    ("decode batch", ingest, "decode_batch"),
    ("score heuristics", ingest, "score_record"),
    ("make the profile", ingest.Ingest, "_profile"),
    ("payload to wire", ingest, "to_wire"),
    ("commit: dead letters, releases", intake, "add_releases"),
    ("commit: records", intake, "add_records"),
    ("commit: rollouts", ingest, "_enter_rollouts"),
    ("commit: findings to rows", ingest, "add_findings"),
    ("commit: scorecards known", intake, "add_scorecard"),
    ("commit: scores", series, "add_scores"),
    ("commit: rollups by minute, hour and day", levels, "add"),
    ("commit: growth for alert rules", growths, "add"),
    ("commit: profiles", profiles, "add"),
    ("commit: ledger", ledgers, "count"),
    ("commit: receipts", intake, "add_receipts"),
    ("commit: COMMIT itself", DefaultDialect, "do_commit"),
)


def profile(fleet: Fleet, messages: int) -> list[Figure]:
    """The ingest stage by part, on messages that the hook has written."""
    hook = make_hook(fleet.settings.redis_url, (messages + 1) * 64)
    for i, conversation in zip(range((messages + 1) * 64), conversations(3), strict=False):
        talk(hook, f"p{i}", conversation)
    assert hook.shutdown(60)
    with redis.Redis.from_url(fleet.settings.redis_url) as client:
        raw = client.rpop("evalpipe.ingest", messages + 1)
    wiring, clock = Wiring(fleet.settings), Clock()
    blobs = [clock.timed("envelope to text", lambda m: json.loads(json.loads(m)["body"])[0][0])(m) for m in raw]
    wiring.ingest(blobs.pop(), {}, datetime.now(UTC))  # loads and connects
    with ExitStack() as patches:
        for part, owner, attribute in PARTS:
            function = getattr(owner, attribute)
            patches.callback(setattr, owner, attribute, function)
            setattr(owner, attribute, clock.timed(part, function))
        for blob in blobs:
            clock.timed("everything else", wiring.ingest)(blob, {}, datetime.now(UTC))
    wiring.close()
    lines = []
    for i, kind in enumerate(("wall time", "CPU")):
        total = sum(spent[i] for spent in clock.spent.values())
        per_record = 1e6 * total / len(blobs) / 64
        lines.append(Figure(f"ingest stage by itself, support-bot, {kind}", [per_record], "us/record"))
        lines += [Figure(f"  {part}", [100 * spent[i] / total], f"% of {kind}") for part, spent in clock.spent.items()]
    return lines


if __name__ == "__main__":
    main(__doc__, measure)
