"""The purse: caps on what judges may cost in a UTC day, kept by reserving the worst case before a call is made.

In the transaction that claims work, ``reserve`` thins it (see ``stats.thinning``) and holds the worst-case cost of all
calls that the rest may make; in the one that ends it, ``settle`` gives the hold back and books what was paid. A work's
hold is kept with the work: it outlives the worker and Redis, and is given back when the work is claimed anew or ends.

A scope is ``all``, ``scorecard:NAME`` or ``judge:VERSION``. Scopes without a cap are booked and never reserved.

Rows are locked in one order (day, scope), and last in their transaction: what is refused has to be shed in another one,
for shedding locks records, which committing grades locks before the purse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

from sqlalchemy import select, union_all

from evalpipe.stats.thinning import LESS_URGENT_SHARE, decide, keep_probability
from evalpipe.store.spend import (
    Hold,
    Place,
    Rows,
    day_of,
    holds_of,
    kept_before,
    lock,
    locked,
    read_hold,
    set_holds,
    set_kept,
    write,
)
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import judge_spend, work

ALL: Final = "all"
"""The scope of everything that judges cost."""
PACE: Final = timedelta(seconds=45)
"""Shares are not changed more often."""
THINNED: Final = "thinned"
"""Begins the reason of what chance left out: the scores that were kept stand for it, so it is not owed again."""
ROUNDING: Final = 1e-9
"""US dollars that are no difference."""
_NOTHING: Final[Hold] = MappingProxyType({})

Scopes = Mapping[str, float]
"""US dollars by scope."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a claimed work, or several that share their calls, may cost at the most.

    Attributes:
        work_id: of the work, which holds the money.
        scopes: see ``scopes``.
        urgent: for a running rollout, or of a priority below 5: it is never thinned, and may use a cap up.
        others: works that share the calls: they are kept or left out together.
    """

    work_id: str
    scopes: Scopes
    urgent: bool = False
    others: tuple[str, ...] = ()

    @property
    def all_ids(self) -> tuple[str, ...]:
        """Of all the works."""
        return (self.work_id, *self.others)


@dataclass(slots=True)
class Reserved:
    """What became of wants.

    Attributes:
        refused: the reason by the want's ``work_id``: its works have to be shed.
        waiting: the same for those to be given back for some seconds: calls under way hold the money, and may not need
            all of it.
        kept: the probability by which a work was kept just now, where it is below 1, by the id of each work: its score
            weighs 1/p more. The stored weight does already, and so does that of a later claim.
    """

    refused: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)


def scopes(scorecard: str, usd_by_judge: Scopes) -> dict[str, float]:
    """The scopes that a scorecard's calls concern, by the versions of the judges that are asked."""
    total = sum(usd_by_judge.values())
    return {ALL: total, f"scorecard:{scorecard}": total, **{f"judge:{v}": usd for v, usd in usd_by_judge.items()}}


def reserve(tx: Transaction, wants: Sequence[Want], caps: Scopes, now: datetime) -> Reserved:
    """Thin works and hold the worst-case cost of the rest, in the order given: the most urgent first.

    What a work held from an earlier claim, whose worker died, is given back first.

    Args:
        tx: the transaction that claimed the works.
        wants: each work once.
        caps: US dollars a day; scopes that are not in it have no bound.
        now: aware UTC.
    """
    found = Reserved()
    today = day_of(now)
    needed = {(today, scope) for want in wants for scope in want.scopes if scope in caps}
    if not needed:
        return found
    work_ids = [work_id for want in wants for work_id in want.all_ids]
    before, chosen = holds_of(tx, work_ids), kept_before(tx, work_ids)
    rows = locked(tx, needed, {place for hold in before.values() for place in hold}, now)
    for hold in before.values():
        _give_back(rows, hold)
    after: dict[str, Hold] = dict.fromkeys(before, _NOTHING)
    for want in wants:
        usd = {(today, scope): amount for scope, amount in want.scopes.items() if scope in caps and amount > 0.0}
        after[want.work_id] = _admit(rows, want, usd, caps, found, may_thin=chosen.isdisjoint(want.all_ids))
    write(tx, rows)
    set_kept(tx, found.kept)
    set_holds(tx, {work_id: hold for work_id, hold in after.items() if hold or work_id in before})
    return found


def settle(tx: Transaction, paid: Mapping[str, Scopes], ours: Collection[str], now: datetime) -> None:
    """Book what works cost, and give back what they hold.

    It is booked on the day that it was reserved for, so that no call counts against a cap that it was not held to.

    Args:
        tx: the transaction that ends the works, or gives them back.
        paid: US dollars by scope and work; a work that cost nothing has none.
        ours: the works that the caller still held under its fence. Another worker has those that are missing, and has
            reserved for them: what they cost is booked, and their hold stays.
        now: aware UTC.
    """
    holds = holds_of(tx, [work_id for work_id in paid if work_id in ours])
    spent: dict[Place, float] = defaultdict(float)
    for work_id, by_scope in paid.items():
        day = max((day for day, _ in holds.get(work_id, {})), default=day_of(now))
        for scope, usd in by_scope.items():
            if usd:
                spent[day, scope] += usd
    if not spent and not holds:
        return
    rows = locked(tx, spent.keys(), {place for hold in holds.values() for place in hold}, now)
    for hold in holds.values():
        _give_back(rows, hold)
    for place, usd in spent.items():
        rows[place].spent += usd
    write(tx, rows)
    set_holds(tx, dict.fromkeys(holds, _NOTHING))


def recount(tx: Transaction, now: datetime) -> None:
    """Make what is reserved, today and yesterday, what works hold: what was deleted with its hold is given back."""
    rows = lock(tx, judge_spend.c.day.in_([day_of(now - timedelta(days=1)), day_of(now)]))
    # After the lock: who changes a hold has committed it, or waits for the lock.
    held = union_all(
        select(work.c.held).where(work.c.state == "pending", work.c.held != ""),
        select(work.c.held).where(work.c.state == "batched", work.c.batch_id != "", work.c.held != ""),
    )
    sums: dict[Place, float] = defaultdict(float)
    for text in tx.connection.scalars(held):
        for place, usd in read_hold(text).items():
            sums[place] += usd
    changed = {place: row for place, row in rows.items() if abs(row.reserved - sums[place]) > ROUNDING}
    for place, row in changed.items():
        row.reserved = sums[place]
    write(tx, changed)


def pace(tx: Transaction, caps: Scopes, now: datetime) -> None:
    """Set the share of less urgent work that is kept, for every capped scope; at most every ``PACE``."""
    today = day_of(now)
    midnight = datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
    rows = locked(tx, {(today, scope) for scope in caps}, (), now) if caps else {}
    at = now.timestamp()
    due = {place: row for place, row in rows.items() if at - row.pace.get("at", 0.0) >= PACE.total_seconds()}
    for (_, scope), row in due.items():
        row.measure(at)
        if row.real is None:
            continue  # worst cases alone say nothing: they may be ten times what calls cost, and the cap holds anyway
        row.keep = keep_probability(
            cap=caps[scope],
            spent=row.spent,
            reserved=row.reserved * row.real,
            left_s=(midnight - now).total_seconds(),
            need=row.asked("wanted") * row.real,
            urgent_need=row.asked("urgent") * row.real,
            before=row.keep,
        )
    write(tx, due)


def _admit(
    rows: Rows, want: Want, usd: Mapping[Place, float], caps: Scopes, found: Reserved, *, may_thin: bool
) -> Hold:
    """Thin one work and hold its money, or say why not."""
    p = min((rows[place].keep for place in usd), default=1.0) if may_thin and not want.urgent else 1.0
    left_out = p < 1.0 and not decide(min(want.all_ids), p)
    if left_out:
        found.refused[want.work_id] = f"{THINNED}: {p:.3g} of such work is judged, so that the money lasts the day"
    else:
        _fit(rows, want, usd, caps, found)
    if p < 1.0 and not left_out:
        found.kept.update(dict.fromkeys(want.all_ids, p))  # also of one that waits: it is not chosen again
    if want.work_id in found.waiting:
        return {}  # and nothing is counted: it asks again
    for place, amount in usd.items():
        if want.urgent:
            rows[place].urgent += amount
        else:
            rows[place].wanted += amount
    if want.work_id in found.refused:
        return {}
    for place, amount in usd.items():
        rows[place].reserved += amount
        rows[place].granted += amount
    return usd


def _fit(rows: Rows, want: Want, usd: Mapping[Place, float], caps: Scopes, found: Reserved) -> None:
    """Say of a want that a cap has no room for it that it is refused, or has to wait."""
    for (day, scope), amount in usd.items():
        row, most = rows[day, scope], caps[scope] * (1.0 if want.urgent else LESS_URGENT_SHARE) + ROUNDING
        if row.spent + amount > most:
            found.waiting.pop(want.work_id, None)
            found.refused[want.work_id] = _refusal(row.spent, amount, scope, caps[scope], urgent=want.urgent)
            return
        if row.spent + row.reserved + amount > most:
            found.waiting[want.work_id] = f"calls under way hold what is left of {_cap(scope, caps[scope])}"


def _refusal(spent: float, amount: float, scope: str, cap: float, *, urgent: bool) -> str:
    rest = "" if urgent else ", but for what is kept for urgent work"
    if spent <= ROUNDING:
        return f"{_cap(scope, cap)} is less than one such work may cost ({amount:.3g} USD){rest}"
    return f"{_cap(scope, cap)} is used up{rest}"


def _cap(scope: str, cap: float) -> str:
    return f"the cap of {cap:g} USD a day of {'all judges' if scope == ALL else scope.replace(':', ' ', 1)}"


def _give_back(rows: Rows, hold: Hold) -> None:
    for place, usd in hold.items():
        if place in rows:
            rows[place].reserved -= usd
