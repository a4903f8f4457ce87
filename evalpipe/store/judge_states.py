"""Whether each judge can be asked, for the whole fleet, and what its calls came to, by minute.

Nobody waits for a judge's row: who finds it locked leaves it to the one who has it, and sees it again with the next
calls. So the breakers can move at the end of any transaction without a deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Select, cast, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from evalpipe.judges import breaker
from evalpipe.judges.breaker import Counts, JudgeState, probes, usable
from evalpipe.judges.desk import Call
from evalpipe.store import works
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import judge_calls, judge_states

KEPT: Final = timedelta(days=40)
"""Minutes of calls are kept for so long: a month can be looked back on."""
NANO: Final = 1e9
_SUMS: Final = ("n", "input_tokens", "cached_tokens", "output_tokens", "cost_usd", "latency_ms")
_COLUMNS: Final = ("state", "reason", "cause", "since_at", "until_at")


def add_calls(tx: Transaction, calls: Sequence[Call], now: datetime) -> dict[str, JudgeState]:
    """Count calls, and move the breakers of their judges. Best done last in a transaction: others wait for its end.

    Returns:
        The new state of each judge that came into one, for the log.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for call in calls:
        key = call.at.replace(second=0, microsecond=0), call.judge, call.account, call.outcome
        named = dict(zip(("minute_at", "judge", "scorecard", "outcome"), key, strict=True))
        row = rows.setdefault(key, {**named, **dict.fromkeys(_SUMS, 0)})
        row["n"] += 1
        row["latency_ms"] += call.latency_ms
        if call.answer is not None:
            row["input_tokens"] += call.answer.input_tokens
            row["cached_tokens"] += call.answer.cached_tokens
            row["output_tokens"] += call.answer.output_tokens
            row["cost_usd"] += call.answer.cost_usd or 0.0
    tx.add_up(judge_calls, list(rows.values()), _SUMS)
    return _move(tx, calls, now)


def read(tx: Transaction) -> dict[str, JudgeState]:
    """The state of each judge that ever had one; others are closed."""
    return dict(_states(tx, select(judge_states)))


def answering(tx: Transaction, judges: Collection[str], now: datetime) -> set[str]:
    """Those of the judges that answered something in the last ``breaker.ANSWERING``."""
    said = judge_calls.c.minute_at > now - breaker.ANSWERING, judge_calls.c.outcome.in_(sorted(breaker.ANSWERS))
    query = select(judge_calls.c.judge).where(judge_calls.c.judge.in_(judges), *said).distinct()
    return set(tx.connection.scalars(query)) if judges else set()


def stop(tx: Transaction, judge: str, reason: str, actor: str, now: datetime) -> JudgeState:
    """Ask this judge nothing until somebody resumes it."""
    return _set(tx, judge, lambda state: breaker.stopped_by(state, f"{actor}: {reason}", now), now)


def resume(tx: Transaction, judge: str, reason: str, actor: str, now: datetime) -> JudgeState:
    """Ask this judge again, whoever or whatever stopped it: works that were put off for it are due now."""
    state = _set(tx, judge, lambda state: breaker.resumed_by(state, f"{actor}: {reason}", now), now)
    works.call_up(tx, waiting_for(judge), now)
    return state


def waiting_for(judge: str) -> str:
    """How the reason of works begins that were put off until this judge can be asked."""
    return f"judge {judge} is "


def calls_since(tx: Transaction, since: datetime) -> Sequence[Any]:
    """Calls by judge, scorecard and outcome: ``n``, tokens, ``nano_usd``, and ``latency_ms`` as whole numbers.

    Whole numbers, because sums of floats depend on their order, and must not seem to fall.
    """
    names = (judge_calls.c.judge, judge_calls.c.scorecard, judge_calls.c.outcome)
    sums = [
        *(_whole(judge_calls.c[name]).label(name) for name in ("n", "input_tokens", "cached_tokens", "output_tokens")),
        _whole(func.round(judge_calls.c.cost_usd * NANO)).label("nano_usd"),
        _whole(func.round(judge_calls.c.latency_ms)).label("latency_ms"),
    ]
    query = select(*names, *sums).where(judge_calls.c.minute_at >= since).group_by(*names).order_by(*names)
    return tx.connection.execute(query).all()


def clean(tx: Transaction, before: datetime) -> int:
    """Remove the minutes before, and judges that have been closed since then; returns the minutes' rows."""
    calm = (judge_states.c.state == "closed") & (judge_states.c.since_at < before)
    tx.connection.execute(delete(judge_states).where(calm))
    return tx.connection.execute(delete(judge_calls).where(judge_calls.c.minute_at < before)).rowcount


def _move(tx: Transaction, calls: Iterable[Call], now: datetime) -> dict[str, JudgeState]:
    """Run the breakers on calls that have been counted; see ``breaker.after``."""
    by_judge: dict[str, list[Call]] = {}
    for call in calls:
        by_judge.setdefault(call.judge, []).append(call)
    mine = judge_states.c.judge.in_(list(by_judge))
    known = dict(_states(tx, select(judge_states).where(mine))) if by_judge else {}
    moving = [judge for judge, new in by_judge.items() if not _is_calm(known.get(judge), new)]
    refusing = [judge for judge in moving if any(call.outcome == breaker.FORBIDDEN for call in by_judge[judge])]
    answer = answering(tx, refusing, now)
    changed = {}
    for judge, state in _lock(tx, moving, now, known):
        newest, before = _windows(tx, judge, state, now)
        new = breaker.after(state, by_judge[judge], now, newest, before, answering=judge in answer)
        if new != state:
            _write(tx, judge, new)
        if (new.state, new.since_at) != (state.state, state.since_at):
            changed[judge] = new
    return changed


def _is_calm(state: JudgeState | None, calls: Sequence[Call]) -> bool:
    """Nothing that a breaker would change: no failure was, and none is."""
    closed = state is None or (state.state == "closed" and not state.silent)
    return closed and all(call.outcome in breaker.ANSWERS for call in calls)


def _windows(tx: Transaction, judge: str, state: JudgeState, now: datetime) -> tuple[Counts, Counts]:
    """The calls of the last window and of the one before it, without those before the state began."""
    if state.state != "closed":
        return Counts(), Counts()
    since = max(now - 2 * breaker.WINDOW, state.since_at or now - 2 * breaker.WINDOW)
    is_new = (judge_calls.c.minute_at > now - breaker.WINDOW).label("is_new")
    query = (
        select(is_new, judge_calls.c.outcome, _whole(judge_calls.c.n).label("n"))
        .where(judge_calls.c.judge == judge, judge_calls.c.minute_at > since)
        .group_by(is_new, judge_calls.c.outcome)
    )
    found: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for row in tx.connection.execute(query):
        found[bool(row.is_new)][row.outcome] = row.n
    return Counts(found[True]), Counts(found[False])


def _lock(
    tx: Transaction, judges: Sequence[str], now: datetime, known: Collection[str]
) -> list[tuple[str, JudgeState]]:
    """The rows of these judges, locked; not those that somebody else has."""
    if not judges:
        return []
    if missing := set(judges) - set(known):
        _add(tx, missing, now)
    mine = select(judge_states).where(judge_states.c.judge.in_(judges)).order_by(judge_states.c.judge)
    return _states(tx, mine.with_for_update(skip_locked=True))


def _states(tx: Transaction, query: Select[Any]) -> list[tuple[str, JudgeState]]:
    found = []
    for row in tx.connection.execute(query).mappings():
        detail = dict(row["detail"])
        if detail.get("silent_at"):
            detail["silent_at"] = datetime.fromisoformat(detail["silent_at"])
        found.append((row["judge"], JudgeState(**{name: row[name] for name in _COLUMNS}, **detail)))
    return found


def _write(tx: Transaction, judge: str, state: JudgeState) -> None:
    values = asdict(state)
    row = {name: values.pop(name) for name in _COLUMNS}
    values["silent_at"] = state.silent_at.isoformat() if state.silent_at else None
    row["reason"] = storable(state.reason)
    tx.connection.execute(update(judge_states).where(judge_states.c.judge == judge).values(**row, detail=values))


def _set(tx: Transaction, judge: str, changed: Callable[[JudgeState], JudgeState], now: datetime) -> JudgeState:
    known = read(tx)
    if judge not in known:
        _add(tx, [judge], now)
    mine = select(judge_states).where(judge_states.c.judge == judge).with_for_update()
    [(_, state)] = _states(tx, mine)
    new = changed(state)
    _write(tx, judge, new)
    return new


def _add(tx: Transaction, judges: Collection[str], now: datetime) -> None:
    insert = postgresql.insert(judge_states) if tx.is_postgresql else sqlite.insert(judge_states)
    # As if closed for long: it is no return from anything.
    rows = [{"judge": judge, "since_at": now - KEPT, "detail": {}} for judge in sorted(judges)]
    tx.connection.execute(insert.on_conflict_do_nothing(), rows)


def _whole(column: ColumnElement[Any]) -> ColumnElement[int]:
    # PostgreSQL adds whole numbers up to a decimal: cast, so that both databases give an int.
    return cast(func.sum(cast(column, BigInteger)), BigInteger)


__all__ = (
    "KEPT",
    "JudgeState",
    "add_calls",
    "answering",
    "calls_since",
    "clean",
    "probes",
    "read",
    "resume",
    "stop",
    "usable",
    "waiting_for",
)
