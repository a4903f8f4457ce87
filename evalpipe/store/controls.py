"""Controls and the log of their changes; every change of a service gives its document a new revision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, func, insert, select, update

from evalpipe.controls import (
    EVALPIPE,
    KINDS,
    Budget,
    Control,
    ControlError,
    Switch,
    Weights,
    check_key,
    check_who,
    parse,
    place,
)
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import control_changes, controls, meters, processes

SCHEMA: Final = 1
PRICES: Final = ("prices", "table")
"""Kind and name of the row that says which price table a service's document has."""
DOCUMENT: Final = ("document", "revision")
"""Kind and name, in the log alone, of a revision that only catches up with what hooks have read."""
ACTIVE: Final = timedelta(hours=1)
"""A service whose hooks were heard of within this time is active."""
PRICES_STAND: Final = timedelta(minutes=10)
"""Workers that know different prices take turns no faster than this."""


Key = tuple[str, str, str, str]
"""Service, kind, name and environment: one name may mean another thing in each environment."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A control as it stands."""

    service: str
    kind: str
    name: str
    environment: str
    body: dict[str, Any]
    latched: dict[str, str]
    revision: int
    actor: str
    reason: str
    updated_at: datetime

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.service, self.kind, self.name, self.environment

    @property
    def where(self) -> str:
        """The same in words."""
        return place(*self.key)

    @property
    def control(self) -> Control:
        """As it was checked when it was set."""
        return parse(self.service, self.kind, self.name, self.body)


def put(
    tx: Transaction,
    service: str,
    kind: str,
    name: str,
    given: Mapping[str, Any],
    *,
    actor: str,
    reason: str = "",
    now: datetime,
) -> Kept:
    """Set a control as a whole; fields that are not given get their defaults.

    Raises:
        ControlError: it cannot be used, nobody stands for it, or it would raise a variant that was rolled back.
    """
    control = parse(service, kind, name, given)
    key = service, kind, name, control.environment
    who = check_who(place(*key), actor, reason, needs_reason=kind == "switch")
    _lock(tx, service)
    before = _find(tx, key)
    latched = dict(before.latched) if before else {}
    action = "set"
    if isinstance(control, Budget):
        _check_account(tx, key)
    if isinstance(control, Weights):
        _check_latch(key, control, latched)
    if isinstance(control, Switch) and control.engaged != bool(before and before.body["engaged"]):
        action = "engage" if control.engaged else "release"
    return _store(tx, before, key, control.model_dump(mode="json"), latched, action, who, now)


def amend(
    tx: Transaction,
    service: str,
    kind: str,
    name: str,
    environment: str,
    given: Mapping[str, Any],
    *,
    actor: str,
    reason: str = "",
    now: datetime,
) -> Kept:
    """Set the fields that are given and leave the rest as it is, whoever changes it at the same time.

    A switch that was released begins anew: what it was limited to, and why, was of an incident that is over.

    Raises:
        ControlError: as of ``put``.
    """
    check_key(service, kind, name)
    _lock(tx, service)
    before = _find(tx, (service, kind, name, environment))
    if before is None or (kind == "switch" and not before.body["engaged"]):
        kept: Mapping[str, Any] = {"environment": environment}
    else:
        kept = before.body
    body = {**kept, **given}
    return put(tx, service, kind, name, body, actor=actor, reason=reason, now=now)


def release(
    tx: Transaction, service: str, name: str, environment: str = "", *, actor: str, reason: str, now: datetime
) -> Kept:
    """Let the calls of a kill switch through again; it stays in the list.

    Raises:
        ControlError: there is no such switch, it is not engaged, or actor or reason is missing.
    """
    key = service, "switch", name, environment
    who = check_who(place(*key), actor, reason, needs_reason=True)
    before = _existing(tx, key)
    if not before.body["engaged"]:
        advice = f"nothing is to be done: {before.actor} released it ({before.reason})"
        raise ControlError("is not engaged", where=before.where, advice=advice)
    return _store(tx, before, key, {**before.body, "engaged": False}, {}, "release", who, now)


def resume(
    tx: Transaction,
    service: str,
    name: str,
    environment: str = "",
    weights: Mapping[str, int] | None = None,
    *,
    actor: str,
    reason: str,
    now: datetime,
) -> Kept:
    """Lift the latch that a rollback left on weights, and set them where ``weights`` are given.

    Raises:
        ControlError: there are no such weights, nothing is latched, or actor or reason is missing.
    """
    key = service, "weights", name, environment
    who = check_who(place(*key), actor, reason, needs_reason=True)
    before = _existing(tx, key)
    if not before.latched:
        advice = "nothing is to be resumed: set the weights as usual"
        raise ControlError("nothing was rolled back", where=before.where, advice=advice)
    body = before.body if weights is None else {**before.body, "weights": dict(weights)}
    control = parse(service, "weights", name, body)
    return _store(tx, before, key, control.model_dump(mode="json"), {}, "resume", who, now)


def remove(
    tx: Transaction,
    service: str,
    kind: str,
    name: str,
    environment: str = "",
    *,
    actor: str,
    reason: str = "",
    now: datetime,
) -> int:
    """Take a control away; the log keeps it. Returns the document's revision.

    Raises:
        ControlError: there is none, or it is latched: a switch is released first, a rollback resumed.
    """
    key = service, kind, name, environment
    who = check_who(place(*key), actor, reason, needs_reason=kind == "switch")
    before = _existing(tx, key)
    if kind == "switch" and before.body["engaged"]:
        advice = f"release it first: 'evalpipe switch release {service} {name} --reason ...'"
        raise ControlError("is engaged", where=before.where, value=before.reason, advice=advice, cause="latched")
    if before.latched:
        why = "; ".join(f"{variant}: {reason}" for variant, reason in before.latched.items())
        advice = f"resume it first: 'evalpipe weights resume {service} {name} --reason ...'"
        raise ControlError(f"was rolled back ({why})", where=before.where, advice=advice, cause="latched")
    tx.connection.execute(delete(controls).where(*_is(key)))
    return _log(tx, before, None, key, "remove", who, now)


def steer(
    tx: Transaction,
    service: str,
    environment: str,
    name: str,
    given: Mapping[str, Any],
    *,
    reason: str,
    now: datetime,
) -> bool:
    """Set the weights of a rollout that evalpipe moves; whether anything changed. What is not given stays.

    Raises:
        ControlError: it cannot be used, or would raise a variant that was rolled back.
    """
    key = service, "weights", name, environment
    check_key(*key[:3])
    _lock(tx, service)
    before = _find(tx, key)
    # What holds in all environments is where an environment's own begins.
    known = before or _find(tx, (service, "weights", name, ""))
    control = parse(service, "weights", name, {**(known.body if known else {}), "environment": environment, **given})
    assert isinstance(control, Weights)
    body = control.model_dump(mode="json")
    if before is not None and body == before.body:
        return False
    latched = dict(before.latched) if before else {}
    _check_latch(key, control, latched)
    _store(tx, before, key, body, latched, "set", (EVALPIPE, _line(reason)), now)
    return True


def throw(
    tx: Transaction, service: str, name: str, given: Mapping[str, Any], *, reason: str, since: datetime, now: datetime
) -> bool:
    """Engage a kill switch because an alert fires; whether anything changed.

    It stays engaged until a person releases it. A person who did so since the alert began to fire has decided: it is
    not thrown again before the next alert.

    Args:
        tx: a transaction.
        service: whose calls.
        name: of the switch.
        given: its fields.
        reason: one line.
        since: when the alert began to fire.
        now: aware UTC.

    Raises:
        ControlError: it cannot be used.
    """
    control = parse(service, "switch", name, given)
    key = service, "switch", name, control.environment
    _lock(tx, service)
    before = _find(tx, key)
    if before is not None and before.body["engaged"]:
        return False
    log = control_changes.c
    columns = (log.service, log.kind, log.name, log.environment)
    mine = (column == value for column, value in zip(columns, key, strict=True))
    undone = select(log.revision).where(*mine, log.at >= since, log.action.in_(("release", "remove"))).limit(1)
    if tx.connection.execute(undone).first() is not None:
        return False
    _store(tx, before, key, control.model_dump(mode="json"), {}, "engage", (EVALPIPE, _line(reason)), now)
    return True


def unlatch(
    tx: Transaction, service: str, environment: str, canary: str, *, actor: str, reason: str, now: datetime
) -> bool:
    """Lift what rollbacks left on this canary wherever it has weights in this environment; whether there was anything.

    For a rollout that a person resumes, or starts anew; the weights stay as they are.
    """
    _lock(tx, service)
    latched = [k for k in in_force(entries(tx, service, "weights"), environment) if canary in k.latched]
    for before in latched:
        kept = {variant: why for variant, why in before.latched.items() if variant != canary}
        _store(tx, before, before.key, before.body, kept, "resume", (actor, _line(reason)), now)
    return bool(latched)


def roll_back(
    tx: Transaction, service: str, environment: str, canary: str, *, reason: str, now: datetime
) -> list[Kept]:
    """Take the canary's weight away wherever it has one in this environment, latched; its share is the baseline's."""
    _lock(tx, service)
    changed = []
    for before in in_force(entries(tx, service, "weights"), environment):
        control = before.control
        assert isinstance(control, Weights)
        if canary in control.weights and canary not in before.latched:
            latched = {**before.latched, canary: reason}
            body = control.without(canary).model_dump(mode="json")
            changed.append(_store(tx, before, before.key, body, latched, "rollback", (EVALPIPE, reason), now))
    return changed


def note_prices(tx: Transaction, service: str, version: str, now: datetime, *, again: bool = False) -> None:
    """Let the service's document have this price table, under a new revision, so that its hooks fetch it.

    ``again``: although it has it already, because Redis lost the table.
    """
    key = service, *PRICES, ""
    _lock(tx, service)
    before = _find(tx, key)
    if before is not None and now - before.updated_at < PRICES_STAND and not again:
        return
    if before is None or before.body["version"] != version or again:
        _store(tx, before, key, {"version": version}, {}, "set", (EVALPIPE, ""), now)


def overtake(tx: Transaction, service: str, revision: int, now: datetime) -> None:
    """Make the document newer than ``revision``, unless it is as new by now: its hooks obey nothing older."""
    _lock(tx, service)
    known = revision_of(tx, service)
    if known < revision:
        why = f"hooks have read revision {revision} and the database is at {known}: an older copy of it was restored"
        _log(tx, None, None, (service, *DOCUMENT, ""), "overtake", (EVALPIPE, why), now, above=revision)


def services(tx: Transaction, now: datetime) -> list[str]:
    """Every service that has or had controls, and every one that is active: it has a document for its prices.

    Controls that are gone count: their hooks may have been away when they were removed.
    """
    since = now - ACTIVE
    known = select(controls.c.service).where(controls.c.kind.in_(KINDS)).union(
        select(control_changes.c.service).where(control_changes.c.kind.in_(KINDS)),
        select(meters.c.service).where(meters.c.hour_at >= since - ACTIVE, meters.c.sent_at >= since),
        select(processes.c.service).where(processes.c.sent_at >= since),
    )  # fmt: skip
    return sorted(service for service in tx.connection.scalars(known) if service)


def entries(tx: Transaction, service: str | None = None, kind: str | None = None) -> list[Kept]:
    """Controls in the order of their names; without the row of the prices unless it is asked for."""
    columns = controls.c
    query = select(controls).order_by(columns.service, columns.kind, columns.name, columns.environment)
    query = query.where(controls.c.kind != PRICES[0] if kind is None else controls.c.kind == kind)
    if service is not None:
        query = query.where(controls.c.service == service)
    return [Kept(**row) for row in tx.connection.execute(query).mappings()]


def in_force(found: Iterable[Kept], environment: str) -> list[Kept]:
    """Those of ``found`` that hold in an environment: its own ones, and those for all that it has no own one for."""
    found = list(found)
    own = {(kept.service, kept.kind, kept.name) for kept in found if environment and kept.environment == environment}
    return [
        kept for kept in found if kept.environment == environment or (not kept.environment and kept.key[:3] not in own)
    ]


def changes(tx: Transaction, service: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest changes that people and rollbacks made, newest first."""
    query = select(control_changes).where(control_changes.c.kind != PRICES[0])
    if service is not None:
        query = query.where(control_changes.c.service == service)
    query = query.order_by(control_changes.c.at.desc(), control_changes.c.revision.desc()).limit(limit)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def revision_of(tx: Transaction, service: str) -> int:
    """The revision of a service's document; 0 before its first change."""
    query = select(func.max(control_changes.c.revision)).where(control_changes.c.service == service)
    return int(tx.connection.scalar(query) or 0)


def document(tx: Transaction, service: str, now: datetime) -> dict[str, Any]:
    """The service's control document, as hooks read it."""
    found: dict[str, list[dict[str, Any]]] = {"switch": [], "budget": [], "weights": [], "rate": []}
    # Before the rows: a change between the two would be published again, never be missed.
    revision = revision_of(tx, service)
    for kept in entries(tx, service):
        found[kept.kind].append(_told(kept))
    prices = _find(tx, (service, *PRICES, ""))
    return {
        "schema": SCHEMA,
        "revision": revision,
        "service": service,
        "published_at": now.timestamp(),
        "switches": found["switch"],
        "budgets": found["budget"],
        "rollouts": found["weights"],
        "rates": found["rate"],
        "prices": prices.body["version"] if prices else "",
    }


def _line(reason: str) -> str:
    """A reason as the log takes it: one line of bounded length."""
    return "".join(c if c.isprintable() else " " for c in reason)[:1_000]


def _told(kept: Kept) -> dict[str, Any]:
    if kept.kind == "rate":
        return dict(kept.body)
    told = {"name": kept.name, **kept.body}
    if kept.kind == "weights":
        control = kept.control
        assert isinstance(control, Weights)
        return {**told, "weights": control.in_order()}
    return {**told, "reason": kept.reason}


def _check_latch(key: Key, control: Weights, latched: Mapping[str, str]) -> None:
    for variant, why in latched.items():
        if control.weights.get(variant):
            service, _, name, environment = key
            raise ControlError(
                f"{variant!r} was rolled back ({why}), and stays at 0 until somebody resumes it",
                where=place(*key, f"weights.{variant}"),
                value=control.weights[variant],
                advice=f"run 'evalpipe weights resume {service} {name}"
                f"{f' --environment {environment}' if environment else ''} --reason ...', or POST .../{name}/resume",
                cause="latched",
            )


def _check_account(tx: Transaction, key: Key) -> None:
    """Accounts are counted by the budget's name alone, so it must not mean two budgets."""
    service, kind, name, environment = key
    others = [k.environment or "all" for k in entries(tx, service, kind) if k.name == name and k.key != key]
    if others:
        advice = "give this one another name: what is spent is counted by it"
        raise ControlError(f"there is one in {others[0]}", where=place(*key, "environment"), value=environment,
                           advice=advice)  # fmt: skip


def _existing(tx: Transaction, key: Key) -> Kept:
    service, kind, name, _ = key
    check_key(service, kind, name)
    _lock(tx, service)
    found = _find(tx, key)
    if found is None:
        there = ", ".join(
            f"{k.name}{f' in {k.environment}' if k.environment else ''}" for k in entries(tx, service, kind)
        )
        advice = f"this service has: {there or 'none'}"
        raise ControlError("there is none", where=place(*key), value=name, advice=advice, cause="missing")
    return found


def _find(tx: Transaction, key: Key) -> Kept | None:
    row = tx.connection.execute(select(controls).where(*_is(key))).mappings().first()
    return Kept(**row) if row else None


def _is(key: Key) -> list[ColumnElement[bool]]:
    return [column == value for column, value in zip(controls.primary_key, key, strict=True)]


def _lock(tx: Transaction, service: str) -> None:
    """One change of a service at a time, so that revisions have neither gaps nor doubles. SQLite has one writer."""
    if tx.is_postgresql:
        key = func.hashtextextended(f"evalpipe.control:{service}", 0)
        tx.connection.execute(select(func.pg_advisory_xact_lock(key)))


def _store(
    tx: Transaction,
    before: Kept | None,
    key: Key,
    body: dict[str, Any],
    latched: dict[str, str],
    action: str,
    who: tuple[str, str],
    now: datetime,
) -> Kept:
    revision = _log(tx, before, {"body": body, "latched": latched}, key, action, who, now)
    kept = Kept(*key, body, latched, revision, *who, now)
    values = {name: getattr(kept, name) for name in Kept.__slots__}
    change = update(controls).where(*_is(key)) if before else insert(controls)
    tx.connection.execute(change.values(values))
    return kept


def _log(
    tx: Transaction,
    before: Kept | None,
    after: dict[str, Any] | None,
    key: Key,
    action: str,
    who: tuple[str, str],
    now: datetime,
    *,
    above: int = 0,
) -> int:
    revision = max(revision_of(tx, key[0]), above) + 1
    names = dict(zip(("service", "kind", "name", "environment"), key, strict=True))
    actor, reason = who
    values = {
        **names,
        "revision": revision,
        "action": action,
        "before": {"body": before.body, "latched": before.latched} if before else None,
        "after": after,
        "actor": actor,
        "reason": reason,
        "at": now,
    }
    tx.connection.execute(insert(control_changes).values(values))
    return revision
