"""Silences: who muted which alerts, why and until when. They end, and are never deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import select, update

from evalpipe.alerts.silence import Silence
from evalpipe.controls import ControlError
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import silences

LONGEST: Final = timedelta(days=30)
"""What should never be told is a rule to take away, or a dry run."""
LABELS: Final = (
    "alert_id", "rule", "kind", "severity", "service", "environment", "variant", "feature", "release_id", "scorecard",
    "criterion",
)  # fmt: skip
"""The labels that every alert has, beside those of its rule."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A silence that somebody wants; see ``Silence``."""

    matchers: Mapping[str, str]
    author: str
    reason: str
    lasts: timedelta


def add(tx: Transaction, wanted: Wanted, now: datetime) -> dict[str, Any]:
    """Mute alerts from now on; returns the silence as ``listing`` does.

    Raises:
        ControlError: it would mute everything, nobody stands for it, or it has no sensible end.
    """
    _check(wanted)
    parts = [wanted.author, wanted.reason, now.isoformat(), *(f"{k}={v}" for k, v in sorted(wanted.matchers.items()))]
    silence_id = "sil_" + hashlib.sha256("\x1f".join(parts).encode(errors="replace")).hexdigest()[:12]
    row = {
        "silence_id": silence_id,
        "matchers": {storable(name): storable(glob) for name, glob in wanted.matchers.items()},
        "author": storable(wanted.author),
        "reason": storable(wanted.reason),
        "starts_at": now,
        "until": now + wanted.lasts,
    }
    tx.insert_new(silences, [row])
    return _one(tx, silence_id, now)


def end(tx: Transaction, silence_id: str, *, author: str, reason: str, now: datetime) -> dict[str, Any]:
    """End a silence before its time; what still fires is told.

    Raises:
        ControlError: there is none of that id, it is over, or nobody stands for it.
    """
    if not author.strip():
        raise ControlError("nobody stands for it", where="actor", advice="say who you are")
    row = tx.connection.execute(select(silences).where(silences.c.silence_id == silence_id)).mappings().first()
    if row is None:
        advice = "'evalpipe alerts silences' lists those that there are"
        raise ControlError(
            "there is no such silence",
            where=f"silence {silence_id!r}",
            value=silence_id,
            advice=advice,
            cause="missing",
        )
    if row["ended_at"] is not None or row["until"] <= now:
        over = row["ended_at"] or row["until"]
        raise ControlError(
            f"it is over since {over:%Y-%m-%d %H:%M} UTC", where="silence", value=silence_id,
            advice="nothing is to be done", cause="latched",
        )  # fmt: skip
    values = {"ended_at": now, "ended_by": storable(author), "end_reason": storable(reason)}
    tx.connection.execute(update(silences).where(silences.c.silence_id == silence_id).values(**values))
    return _one(tx, silence_id, now)


def active(tx: Transaction, now: datetime) -> list[Silence]:
    """Those that mute now."""
    query = select(silences).where(silences.c.until > now, silences.c.starts_at <= now, silences.c.ended_at.is_(None))
    return [
        Silence(r.silence_id, r.matchers, r.author, r.reason, r.starts_at, r.until)
        for r in tx.connection.execute(query.order_by(silences.c.starts_at, silences.c.silence_id))
    ]


def listing(tx: Transaction, now: datetime, *, only_active: bool = False, limit: int = 100) -> list[dict[str, Any]]:
    """Silences, newest first, each with ``state``: active, expired or ended."""
    query = select(silences).order_by(silences.c.starts_at.desc(), silences.c.silence_id).limit(limit)
    if only_active:
        query = query.where(silences.c.until > now, silences.c.ended_at.is_(None))
    return [_shown(row, now) for row in tx.connection.execute(query).mappings()]


def _one(tx: Transaction, silence_id: str, now: datetime) -> dict[str, Any]:
    query = select(silences).where(silences.c.silence_id == silence_id)
    return _shown(tx.connection.execute(query).mappings().one(), now)


def _shown(row: Mapping[Any, Any], now: datetime) -> dict[str, Any]:
    state = "ended" if row["ended_at"] is not None else "expired" if row["until"] <= now else "active"
    return {**row, "state": state}


def _check(wanted: Wanted) -> None:
    if not wanted.author.strip():
        raise ControlError("nobody stands for it", where="actor", advice="say who you are")
    if not wanted.reason.strip():
        raise ControlError("a silence needs a reason", where="reason", advice="say why nobody need be told")
    if not any(glob.strip("*") for glob in wanted.matchers.values()):
        advice = f"name what to mute, for example rule=NAME; the labels are {', '.join(LABELS)} and the rule's own"
        raise ControlError("it would mute every alert", where="match", value=dict(wanted.matchers), advice=advice)
    if not timedelta(0) < wanted.lasts <= LONGEST:
        raise ControlError(
            f"a silence lasts more than 0 s and at most {LONGEST.days} days",
            where="for", value=str(wanted.lasts), advice="write 2h or 7d; a rule can be a dry run (dry_run: true)",
        )  # fmt: skip
