"""Whether a rollback took effect: the meters, which see every call, must show that the canary's have ended."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import func, select

from evalpipe.incidents.incident import Incident, TimelineEntry
from evalpipe.notification import ROLLBACK_INEFFECTIVE, ROLLBACK_VERIFIED
from evalpipe.pipeline.telling import Telling, open_incident
from evalpipe.store import alerting, rollouts
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import decisions, meter_minutes, processes, releases

QUIET: Final = timedelta(seconds=10)
"""The canary must have been quiet for so long at least: hooks report every 3 s."""
MISSED: Final = 5
"""And for as long as so many of its calls would have taken: then one that goes on is overlooked in under 1 %."""
PACE_OVER: Final = timedelta(minutes=5)
"""Before the rollback: how fast its calls came."""
HEARD_WITHIN: Final = timedelta(minutes=10)
"""After the deadline: where no meter has reported by then, nobody can tell."""


class VerifyRollbacks:
    """Looks at each rollback until the meters have shown that it took effect. Calls of shadows are nobody's harm.

    Args:
        store: where.
        telling: who hears of it.
    """

    def __init__(self, store: Store, telling: Telling) -> None:
        self._store = store
        self._telling = telling

    def __call__(self, now: datetime) -> list[str]:
        """Verify what can be verified at ``now``; returns the rollouts of which something new is known."""
        with self._store.read() as tx:
            waiting = rollouts.to_verify(tx)
        return [row.rollout_id for row in waiting if self._store.patiently(partial(self._one, waiting=row, now=now))]

    def _one(self, tx: Transaction, waiting: Any, now: datetime) -> bool:
        row = rollouts.lock(tx, waiting.rollout_id)
        if row is None or row.verified not in {"waiting", "ineffective"}:
            return False
        found = standing(row, now, heard_at(tx, row.service, row.environment), quiet_for(tx, row))
        if found == row.verified or not rollouts.set_verified(tx, row, found, now if found == "verified" else None):
            return False
        if found == "verified":
            self._verified(tx, row, now)
        elif found == "ineffective":
            self._ineffective(tx, row, now)
        return True

    def _verified(self, tx: Transaction, row: Any, now: datetime) -> None:
        data = {**_about(tx, row), "verified_at": now.isoformat()}
        key = "verified", data["decision_id"]
        self._telling.tell(tx, key, ROLLBACK_VERIFIED, row.rollout_id, data, now)
        text = f"the meters show no more calls of {row.canary}: the rollback took effect"
        alerting.resolve_incident(tx, _incident_id(data["decision_id"]), text, now)

    def _ineffective(self, tx: Transaction, row: Any, now: datetime) -> None:
        data = _about(tx, row)
        within = row.plan["verify_within"]
        text = (
            f"{row.service} calls the canary {row.canary} {(now - row.rolled_back_at).total_seconds():.0f} s after "
            f"its rollback (rollout {row.rollout_id}; its calls had to end within {within:g} s)"
        )
        incident_id = _incident_id(data["decision_id"])
        incident = Incident(
            incident_id=incident_id,
            severity="SEV1",
            title=f"{row.service}: rollback of canary {row.canary} is ineffective",
            service=row.service,
            opened_at=now,
            source="rollback",
            timeline=(TimelineEntry(now, text),),
            evidence=data,
        )
        open_incident(tx, incident)
        told = {
            **data,
            "incident_id": incident_id,
            "severity": "SEV1",
            "reason": text,
            "seen_at": row.canary_seen_at.isoformat(),
        }
        self._telling.tell(tx, ("ineffective", data["decision_id"]), ROLLBACK_INEFFECTIVE, row.rollout_id, told, now)


def standing(row: Any, now: datetime, heard: datetime | None, quiet: timedelta) -> str:
    """What the meters say of a rollback: waiting, verified, ineffective, or unknown where none reports.

    Args:
        row: of the rollout.
        now: aware UTC.
        heard: when a meter of the service last reported; None if none ever did.
        quiet: without calls for so long, its calls have ended.
    """
    deadline = row.rolled_back_at + timedelta(seconds=row.plan["verify_within"])
    newest = max(row.rolled_back_at, row.canary_seen_at or row.rolled_back_at)
    if now - newest >= quiet and heard is not None and heard >= newest:
        return "verified"
    if row.verified == "ineffective" or row.canary_late_at is not None:
        return "ineffective"
    if now >= deadline + HEARD_WITHIN:
        return "ineffective" if newest >= deadline + HEARD_WITHIN / 2 else "unknown"
    return "waiting"


def quiet_for(tx: Transaction, row: Any) -> timedelta:
    """How long no call must come until its calls have ended: the rarer they were, the longer."""
    at, since = meter_minutes.c.minute_at, (row.rolled_back_at - PACE_OVER).replace(second=0, microsecond=0)
    query = select(func.sum(meter_minutes.c.calls)).where(
        meter_minutes.c.release_id == row.canary_release_id, at >= since, at <= row.rolled_back_at
    )
    calls = int(tx.connection.scalar(query) or 0)
    most = timedelta(seconds=row.plan["verify_within"]) + QUIET
    over = row.rolled_back_at - max(since, row.started_at)
    return most if not calls else min(most, max(QUIET, MISSED * over / calls))


def heard_at(tx: Transaction, service: str, environment: str) -> datetime | None:
    """When a meter of the service in this environment last reported."""
    place = releases.c.service == service, releases.c.environment == environment
    here = select(meter_minutes.c.process_id).join(releases, releases.c.release_id == meter_minutes.c.release_id)
    query = select(func.max(processes.c.sent_at, type_=processes.c.sent_at.type)).where(
        processes.c.service == service, processes.c.process_id.in_(here.where(*place))
    )
    found: datetime | None = tx.connection.scalar(query)
    return found


def _about(tx: Transaction, row: Any) -> dict[str, Any]:
    """Which rollback it is about."""
    query = (
        select(decisions)
        .where(decisions.c.rollout_id == row.rollout_id, decisions.c.action == "rollback")
        .order_by(decisions.c.seq.desc())
    )
    made = tx.connection.execute(query.limit(1)).mappings().one()
    return {
        "rollout_id": row.rollout_id,
        "service": row.service,
        "environment": row.environment,
        "baseline": row.baseline,
        "canary": row.canary,
        "canary_release_id": row.canary_release_id,
        "decision_id": made["decision_id"],
        "decision_seq": made["seq"],
        "reason": made["reason"],
        "decided_at": row.rolled_back_at.isoformat(),
    }


def _incident_id(decision_id: str) -> str:
    return "inc_" + hashlib.sha256(f"rollback-ineffective\x1f{decision_id}".encode()).hexdigest()[:20]
