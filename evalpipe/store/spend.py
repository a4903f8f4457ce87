"""The rows behind the purse: what each scope has spent by day, and what each work holds of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import exp, expm1
from typing import Any, Final

from sqlalchemy import bindparam, select, tuple_, update

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import judge_spend, work

WINDOWS_S: Final = {"fast": 600.0, "slow": 1800.0}
"""How fast money is asked for is averaged over about so long, both from nothing: a burst of a minute is not taken for
the rate of a day. The smaller of both counts, so that a burst that is over is soon forgotten."""
_DIGITS: Final = 12
"""Of a sum in US dollars: what is left beyond them of adding and taking away is not money."""

Place = tuple[str, str]
"""Day and scope."""
Hold = Mapping[Place, float]
"""US dollars that a work holds."""


@dataclass(slots=True)
class Row:
    """A scope's day, in US dollars.

    Attributes:
        spent, reserved: what was paid, and what is held for calls under way.
        keep: share of less urgent work that is judged now.
        wanted, urgent: worst cases asked for by less urgent (kept or not) and by urgent work.
        granted: all that was ever reserved.
        pace: how fast money is asked for, see ``measure``, with what it takes to go on measuring.
    """

    spent: float
    reserved: float
    keep: float
    wanted: float
    urgent: float
    granted: float
    pace: dict[str, Any]

    def measure(self, at: float) -> None:
        """Note how fast money is asked for, in worst cases, and which share of the worst case calls really cost.

        The share, ``real``, is missing as long as no call has been paid.
        """
        told = self.pace
        elapsed = max(0.0, at - told.get("at", at))
        new: dict[str, Any] = {"at": at, "wanted": self.wanted, "urgent": self.urgent}
        for of in ("wanted", "urgent"):
            asked = max(0.0, new[of] - told.get(of, 0.0))
            rates = told.get(f"{of}_rates", {})
            new[f"{of}_rates"] = {
                # Exponential forgetting, of what came in evenly since the last time.
                name: rates.get(name, 0.0) * exp(-elapsed / window)
                + asked * (-expm1(-elapsed / window) / elapsed if elapsed else 1.0 / window)
                for name, window in WINDOWS_S.items()
            }
        settled = self.granted - self.reserved
        real = min(1.0, self.spent / settled) if settled > 0.0 and self.spent > 0.0 else told.get("real")
        self.pace = new if real is None else {**new, "real": real}

    @property
    def real(self) -> float | None:
        """Share of the worst case that calls really cost, from 0 to 1; None as long as that is unknown."""
        found: float | None = self.pace.get("real")
        return found

    def asked(self, of: str) -> float:
        """How fast ``wanted`` or ``urgent`` money is asked for, in US dollars of worst cases a second."""
        return min(self.pace.get(f"{of}_rates", {}).values(), default=0.0)


Rows = dict[Place, Row]


def day_of(at: datetime) -> str:
    """The UTC day, as 2026-11-22."""
    return at.astimezone(UTC).date().isoformat()


def locked(tx: Transaction, needed: Collection[Place], known: Collection[Place], now: datetime) -> Rows:
    """The rows of these places, locked; those ``needed`` are made where they are missing."""
    keys = sorted({*needed, *known})
    there = tuple_(judge_spend.c.day, judge_spend.c.scope).in_(keys)
    found = tx.connection.execute(select(judge_spend.c.day, judge_spend.c.scope).where(there))
    if set(needed) - {(day, scope) for day, scope in found}:
        # All of them, in order, not only the new ones: with a lock taken out of order two workers would wait for ever.
        _begin(tx, keys, now)
    return lock(tx, there)


def lock(tx: Transaction, which: Any) -> Rows:
    """The rows that fit, locked."""
    # In the order of Python, whatever the collation of the database.
    scope = judge_spend.c.scope.collate("C") if tx.is_postgresql else judge_spend.c.scope
    query = select(judge_spend).where(which).order_by(judge_spend.c.day, scope).with_for_update()
    return {
        (r.day, r.scope): Row(
            r.spent_usd, r.reserved_usd, r.keep, r.wanted_usd, r.urgent_usd, r.granted_usd, dict(r.pace)
        )
        for r in tx.connection.execute(query)
    }


def write(tx: Transaction, rows: Rows) -> None:
    """Write locked rows."""
    values = [
        {
            "of_day": day,
            "of_scope": scope,
            "spent": max(0.0, round(row.spent, _DIGITS)),
            "reserved": max(0.0, round(row.reserved, _DIGITS)),
            "share": row.keep,
            "wanted": row.wanted,
            "urgent": row.urgent,
            "granted": row.granted,
            "told": row.pace,
        }
        for (day, scope), row in sorted(rows.items())
    ]
    if values:
        tx.connection.execute(_UPDATE, values)


def read_hold(text: str) -> dict[Place, float]:
    """The hold in ``work.held``."""
    days = json.loads(text) if text else {}
    return {(day, scope): usd for day, by_scope in days.items() for scope, usd in by_scope.items()}


def hold_text(hold: Hold) -> str:
    """The inverse of ``read_hold``."""
    days: dict[str, dict[str, float]] = {}
    for (day, scope), usd in hold.items():
        days.setdefault(day, {})[scope] = usd
    return json.dumps(days, separators=(",", ":")) if days else ""


def holds_of(tx: Transaction, work_ids: Collection[str]) -> dict[str, dict[Place, float]]:
    """What these works hold, those that hold something."""
    if not work_ids:
        return {}
    query = select(work.c.work_id, work.c.held).where(work.c.work_id.in_(work_ids), work.c.held != "")
    return {work_id: read_hold(held) for work_id, held in tx.connection.execute(query)}


def set_holds(tx: Transaction, holds: Mapping[str, Hold]) -> None:
    """Write what works hold; the caller has locked them."""
    free = sorted(work_id for work_id, hold in holds.items() if not hold)
    if free:
        tx.connection.execute(update(work).where(work.c.work_id.in_(free)).values(held=""))
    rows = [{"of": work_id, "hold": hold_text(hold)} for work_id, hold in sorted(holds.items()) if hold]
    if rows:
        tx.connection.execute(
            update(work).where(work.c.work_id == bindparam("of")).values(held=bindparam("hold")), rows
        )


def kept_before(tx: Transaction, work_ids: Collection[str]) -> set[str]:
    """Which of these works were kept by chance already."""
    query = select(work.c.work_id).where(work.c.work_id.in_(work_ids), work.c.keep < 1.0)
    return set(tx.connection.scalars(query))


def set_kept(tx: Transaction, kept: Mapping[str, float]) -> None:
    """Note by which probability works were kept: from now on they weigh so much more."""
    rows = [{"of": work_id, "p": p} for work_id, p in sorted(kept.items())]
    if rows:
        statement = update(work).where(work.c.work_id == bindparam("of"))
        tx.connection.execute(statement.values(keep=bindparam("p"), weight=work.c.weight / bindparam("p")), rows)


def _begin(tx: Transaction, keys: Sequence[Place], now: datetime) -> None:
    """Rows for a new day: money begins anew, and what is known of the pace goes on."""
    yesterday = select(judge_spend).where(judge_spend.c.day == day_of(now - timedelta(days=1)))
    past = {row.scope: row for row in tx.connection.execute(yesterday)}
    rows = []
    for day, scope in keys:
        old = past.get(scope)
        known = {n: v for n, v in old.pace.items() if n in {"wanted_rates", "urgent_rates", "real"}} if old else {}
        rows.append({"day": day, "scope": scope, "keep": old.keep if old else 1.0, "pace": known, "spent_usd": 0.0})
    tx.add_up(judge_spend, rows, ["spent_usd"])


_UPDATE = (
    update(judge_spend)
    .where(judge_spend.c.day == bindparam("of_day"), judge_spend.c.scope == bindparam("of_scope"))
    .values(
        spent_usd=bindparam("spent"),
        reserved_usd=bindparam("reserved"),
        keep=bindparam("share"),
        wanted_usd=bindparam("wanted"),
        urgent_usd=bindparam("urgent"),
        granted_usd=bindparam("granted"),
        pace=bindparam("told", type_=judge_spend.c.pace.type),
    )
)
