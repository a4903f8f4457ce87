"""How long a broken canary lives: from the record that decided to the signed rollback, and to the canary's last call.

    python bench/rollback.py [--json] [--quick]

Everything is real: a hook with its default flush interval (1 s, or 64 records), Valkey, Celery workers, a judge behind
HTTP that takes 1 s, a consumer that verifies the signature; on SQLite and on PostgreSQL. The application serves 50
requests a second and asks `hook.variant()` for each. A person starts a rollout at 50 % of the users, of whose calls 5 %
are sampled; every answer of the canary is broken. When the rollback has arrived, requests go on for a few seconds, and
the next canary begins, in the same service and with other users.

Record to webhook is from the end of the call whose grade decided to the consumer's answer. Webhook to last canary call
is from there until the hook gives the canary its last request: below zero where the hook heard of it first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from machine import Figure, Valkey, databases, main
from spine_fleet import SCORECARD, Fleet
from sqlalchemy import func, select

from evalpipe import Hook
from evalpipe.notification import ROLLBACK
from evalpipe.pipeline import start_rollout
from evalpipe.receiver import Event, Receiver
from evalpipe.rollout.plan import Gate, RolloutPlan, Step
from evalpipe.signing import new_secret
from evalpipe.store.tables import evidence
from evalpipe.wiring import Wiring, now

GAP_S = 1 / 50
SAMPLED = 0.05
JUDGE_S = 1.0
AFTERWARDS_S = 3.0
SERVICE = "support-desk"


@dataclass(frozen=True, slots=True)
class Ended:
    """One canary's end, in seconds; ``graded`` counts the records of both arms up to the one that decided."""

    record_to_webhook: float
    webhook_to_last: float
    first_bad_to_webhook: float
    graded: int
    served: int


def measure(quick: bool) -> list[Figure]:
    canaries = 2 if quick else 10
    figures: list[Figure] = []
    for database, folder, url in databases("bench_rollback"):
        figures += told(database, of_fleet(folder, url, canaries))
    return figures


def of_fleet(folder: Path, database_url: str, canaries: int) -> list[Ended]:
    """The ends of so many canaries in one kind of fleet."""
    from judge_server import JudgeServer  # the tests' one: machine has put their folder before this one

    secret = new_secret()
    arrived: dict[str, tuple[float, int]] = {}

    def note(event: Event) -> None:
        if event["type"] == ROLLBACK:
            arrived[event["data"]["rollout_id"]] = time.time(), event["data"]["evidence_seq"]

    with (
        Valkey(folder / "valkey") as valkey,
        JudgeServer(JUDGE_S) as judge,
        Receiver(secrets=secret, on_event=note) as consumer,
    ):
        environ = {
            "EVALPIPE_WEBHOOK_URL": consumer.url,
            "EVALPIPE_WEBHOOK_SECRET": secret,
            "EVALPIPE_JUDGE": judge.judge("judge-1"),
            "EVALPIPE_JUDGE_API_KEY": "none",
            "EVALPIPE_VISIBILITY_TIMEOUT_S": "600",
            "EVALPIPE_LEASE_S": "120",
            "EVALPIPE_DRAIN_S": "30",
        }
        fleet = Fleet(folder, valkey.url, database_url, environ)
        # Without alert rules, and without a rollout of its own: a person starts one here.
        (folder / "scorecards" / "support.yaml").write_text(SCORECARD.partition("alerts:")[0])
        try:
            fleet.start_all()
            hook = fleet.hook(flush_interval_s=1.0, sample_rate=SAMPLED)
            with closing(Wiring(fleet.settings)) as wiring:
                ends = [one(fleet, wiring, hook, number, arrived) for number in range(canaries + 1)]
        finally:
            fleet.close()
    return ends[1:]  # in the first, workers load what they need


def one(fleet: Fleet, wiring: Wiring, hook: Hook, number: int, arrived: dict[str, tuple[float, int]]) -> Ended:
    """Serve requests until the canary is rolled back, and a little longer."""
    name = f"r{number}"
    start(wiring, name)
    deadline, first_bad, last, served, asked = time.monotonic() + 90, 0.0, 0.0, 0, 0
    due = time.monotonic()
    while name not in arrived or time.time() < arrived[name][0] + AFTERWARDS_S:
        assert time.monotonic() < deadline, f"no rollback within 90 s\n{fleet.log.read_text()[-3000:]}"
        user = f"{number}-{asked}"
        asked += 1
        arm = hook.variant(name, user)
        broken = arm == f"canary-{number}"
        if broken:
            last = time.time()
            first_bad, served = first_bad or last, served + 1
        with hook.call(feature="chat", user_id=user, session_id=user, release={"variant": arm}) as call:
            call.messages = [{"role": "user", "content": f"question {asked}"}]
            call.output = "A REFUND is on its way" if broken else "You can return it within 30 days."
        due += GAP_S
        time.sleep(max(0.0, due - time.monotonic()))
    at, seq = arrived[name]
    mine = evidence.c.rollout_id == name
    with fleet.store.read() as tx:
        decisive = tx.connection.scalar(select(evidence.c.captured_at).where(mine, evidence.c.seq == seq))
        graded = tx.connection.scalar(select(func.count()).where(mine, evidence.c.seq <= seq))
    assert decisive is not None
    return Ended(at - decisive.timestamp(), last - at, at - first_bad, graded or 0, served)


def start(wiring: Wiring, name: str) -> None:
    """Start a rollout at 50 %, as the command line does."""
    plan = RolloutPlan(
        rollout_id=name,
        service=SERVICE,
        baseline="baseline",
        canary=f"canary-{name[1:]}",
        gates=(Gate("grounded", "grounded"),),
        steps=(Step(50, bake=timedelta(hours=1)),),
        weights=name,
        sample=SAMPLED,
    )
    at = now()
    with wiring.store.begin() as tx:
        start_rollout.start(
            tx, plan, scorecard="support", environment="production", actor="bench", reason="bench", now=at
        )
    wiring.publish.soon(SERVICE, at)


def told(name: str, ends: Sequence[Ended]) -> list[Figure]:
    def figure(what: str, values: Sequence[float], unit: str = "s", target: float | None = None) -> Figure:
        return Figure(f"{name}: {what}", values, unit, target, at_most=target is not None)

    stopped = [end.webhook_to_last for end in ends]
    return [
        figure("record that decided to signed rollback", [end.record_to_webhook for end in ends], target=3.0),
        figure("signed rollback to the canary's last call", stopped),
        figure("the latest of these", [max(stopped)], target=2.0),
        figure("first bad answer to signed rollback", [end.first_bad_to_webhook for end in ends]),
        figure("graded records of both arms until it was decided", [end.graded for end in ends], "records"),
        figure("bad answers given in all", [end.served for end in ends], "answers"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
