"""How long it takes from a record to its score, and from a record to the signed webhook that it causes.

    python bench/latency.py [--json] [--quick]

Real hooks with their default flush interval (1 s, or 64 records), Valkey, Celery workers, a judge that takes 0 or 1 s,
and a consumer that verifies the signature; on SQLite and on PostgreSQL. Baseline and canary each answer 40 questions a
second; every canary is broken from its first answer on. When its rollback has arrived, the next canary begins, in an
environment of its own and without alert rules, so that the ones before it cost nothing.

Record to score is from the end of the call to when another process can read the score, looked at every 50 ms. Record to
webhook is from the end of the call whose grade decided, to the consumer's answer. First bad answer to webhook is the
whole detection: it is made of how many grades the decision needs, at that traffic, and of the latency above.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from machine import Figure, Postgres, Valkey, main
from services import create_database
from spine_fleet import JUDGE, SCORECARD, Fleet
from sqlalchemy import func, select

from evalpipe import Hook, Release
from evalpipe.notification import ROLLBACK
from evalpipe.receiver import Event, Receiver
from evalpipe.signing import new_secret
from evalpipe.store.tables import evidence, scores

GAP_S = 1 / 40
SERVICE = "support-desk"
CRITERIA = ("refusal", "grounded")


def measure(quick: bool) -> list[Figure]:
    canaries = 2 if quick else 15
    figures: list[Figure] = []
    with Postgres(settings={}) as postgres:
        for judge_s in (0, 1):
            for database in ("SQLite", "PostgreSQL"):
                name = f"{database}, judge {judge_s} s"
                with tempfile.TemporaryDirectory(prefix="evalpipe-bench-") as folder:
                    url = f"sqlite:///{folder}/evalpipe.db"
                    if database == "PostgreSQL":
                        url = create_database(postgres.url(), f"bench_{judge_s}")
                    figures += of_fleet(Path(folder), url, name, judge_s, canaries)
    return figures


def of_fleet(folder: Path, database_url: str, name: str, judge_s: int, canaries: int) -> list[Figure]:
    """The latencies of one kind of fleet."""
    secret = new_secret()
    arrived: dict[str, tuple[float, int]] = {}

    def note(event: Event) -> None:
        if event["type"] == ROLLBACK:
            arrived[event["data"]["rollout_id"]] = time.time(), event["data"]["evidence_seq"]

    with Valkey(folder / "valkey") as valkey, Receiver(secrets=secret, on_event=note) as consumer:
        fleet = Fleet(
            folder,
            valkey.url,
            database_url,
            {
                "EVALPIPE_WEBHOOK_URL": consumer.url,
                "EVALPIPE_WEBHOOK_SECRET": secret,
                "EVALPIPE_JUDGE": f"{JUDGE}&latency_ms={1000 * judge_s}",
                "EVALPIPE_JUDGE_CONCURRENCY": "128",
                "EVALPIPE_VISIBILITY_TIMEOUT_S": "600",
                "EVALPIPE_LEASE_S": "120",
                "EVALPIPE_DRAIN_S": "30",
            },
        )
        # Each canary has an environment of its own, and alert rules are evaluated for each: fifteen are not a fleet.
        before, _, after = SCORECARD.partition("alerts:")
        (folder / "scorecards" / "support.yaml").write_text(before + after[after.index("rollout:") :])
        try:
            fleet.start_all()
            hooks = fleet.hook("baseline", flush_interval_s=1.0), fleet.hook("canary", flush_interval_s=1.0)
            play(hooks, 0, arrived)  # workers load what they need
            arrived.clear()
            with watching(fleet) as seen:
                began = [play(hooks, number, arrived) for number in range(1, canaries + 1)]
            decisive = [decided(fleet, rollout_id, *told) for rollout_id, told in arrived.items()]
        finally:
            fleet.close()
    to_score = {kind: [s for k, s in seen if k == kind] for kind in CRITERIA}
    whole = [at - start for start, (at, _) in zip(began, arrived.values(), strict=True)]
    return [
        *quantiles(f"{name}: record to heuristic score", to_score["refusal"]),
        *quantiles(f"{name}: record to judged score", to_score["grounded"]),
        *quantiles(f"{name}: record to webhook", decisive),
        *quantiles(f"{name}: first bad answer to webhook", whole),
        Figure(f"{name}: records of both arms until it was decided", [seq for _, seq in arrived.values()], "records"),
    ]


def play(hooks: Sequence[Hook], number: int, arrived: Mapping[str, object]) -> float:
    """Let customers ask both arms until the canary's rollback arrives; when its first answer was given."""
    before = len(arrived)
    # An environment for each, else every later record would be evidence in all the rollouts before, too.
    baseline, canary = (Release(SERVICE, name, environment=f"bench-{number}") for name in ("baseline", "canary"))
    arms = (hooks[0], baseline, "You can return it within 30 days."), (hooks[1], canary, "A REFUND is on its way.")
    deadline, asked, started = time.monotonic() + 60, 0, time.time()
    while len(arrived) == before:
        assert time.monotonic() < deadline, "no rollback within a minute"
        for arm, (hook, release, answer) in enumerate(arms):
            with hook.call(feature="chat", session_id=f"{arm}-{number}-{asked}", release=release) as call:
                call.messages = [{"role": "user", "content": f"question {asked}"}]
                call.output = answer
        asked += 1
        time.sleep(GAP_S)
    return started


@contextmanager
def watching(fleet: Fleet) -> Iterator[list[tuple[str, float]]]:
    """Criterion, and seconds from record to score, of every score of a record captured from now on."""
    found: list[tuple[str, float]] = []
    known: set[tuple[str, str]] = set()
    began, stop = datetime.now(UTC), threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            now = datetime.now(UTC)
            # A score's time is from before its commit, so look back further than a commit takes.
            query = select(scores.c.record_id, scores.c.criterion, scores.c.captured_at).where(
                scores.c.criterion.in_(CRITERIA),
                scores.c.captured_at >= max(began, now - timedelta(seconds=15)),
                scores.c.scored_at >= now - timedelta(seconds=2),
            )
            with fleet.store.read() as tx:
                rows = tx.connection.execute(query).all()
            now = datetime.now(UTC)
            for record_id, criterion, captured_at in rows:
                if (record_id, criterion) not in known:
                    known.add((record_id, criterion))
                    found.append((criterion, (now - captured_at).total_seconds()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
    with fleet.store.read() as tx:
        missed = select(func.count()).where(scores.c.criterion.in_(CRITERIA), scores.c.captured_at >= began)
        assert (tx.connection.scalar(missed) or 0) <= len(found) + 1_000, "scores were missed"


def decided(fleet: Fleet, rollout_id: str, at: float, seq: int) -> float:
    """Seconds from the end of the call that decided to the webhook."""
    query = select(evidence.c.captured_at).where(evidence.c.rollout_id == rollout_id, evidence.c.seq == seq)
    with fleet.store.read() as tx:
        captured_at = tx.connection.execute(query).scalar_one()
    return at - captured_at.timestamp()


def quantiles(name: str, seconds: list[float]) -> list[Figure]:
    """Median and p99; p99 of few is the greatest."""
    ordered = sorted(seconds)
    return [
        Figure(f"{name}, median", [statistics.median(ordered)], "s"),
        Figure(f"{name}, p99 of {len(ordered)}", [ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]], "s"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
