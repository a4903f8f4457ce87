"""Store → alerts: one evaluation of every alert rule, with what follows, in one transaction.

Whoever evaluates already is left alone: evidence that this evaluation does not see is seen by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any, Final, Self

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from evalpipe.alerts.round import Mishap, Round, evaluate
from evalpipe.alerts.rules import Rule, rule_of
from evalpipe.alerts.state import AlertState, Phase, Transition
from evalpipe.controls import ControlError
from evalpipe.detectors.stopping import stop_of
from evalpipe.errors import ConfigError
from evalpipe.incidents.incident import id_of_alert, open_from_alert
from evalpipe.pipeline.explain import Explain
from evalpipe.pipeline.store_feed import StoreFeed
from evalpipe.pipeline.telling import open_incident
from evalpipe.pipeline.trust import VersionOf
from evalpipe.scorecard.model import Scorecard
from evalpipe.store import alerting, controls, evaluations
from evalpipe.store.evaluations import Evaluation
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Store, Transaction, is_passing

SHOWN_EVERY: Final = timedelta(minutes=1)
"""How old the numbers of an alert that nothing happens to may be."""

GONE_AFTER: Final = timedelta(minutes=10)
"""An alert that nobody has written for so long has no rule any more; less, and two versions of a file would fight."""

log = logging.getLogger("evalpipe")


class EvaluateAlerts:
    """The stage's part, with what it needs.

    Args:
        store: where.
        scorecards: whose alert rules are evaluated.
        rules: further ones, of files of ``alerts:``.
        version_of: names the judges that scorecards mean.
        publish: tells the hooks of a service, after the commit that stopped some of its calls.
    """

    def __init__(
        self,
        store: Store,
        scorecards: Sequence[Scorecard],
        *,
        rules: Sequence[Rule] = (),
        version_of: VersionOf | None = None,
        publish: Callable[[str, datetime], object] | None = None,
    ) -> None:
        self._store = store
        self._publish = publish
        self._shelf = Shelf()
        self._rules = [*rules_of(scorecards), *rules]
        self._by_name = {rule.full_name: rule for rule in self._rules}
        self._explain = Explain({card.name: card for card in scorecards}, version_of)
        self._complained: dict[str, datetime] = {}

    def __call__(self, now: datetime) -> list[Transition]:
        """Evaluate every rule at ``now``; what changed, or nothing where another worker evaluates."""
        changed, stopped = self._store.patiently(lambda tx: self._run(tx, now))
        if self._publish is not None:
            for service in sorted(stopped):
                self._publish(service, now)
        return changed

    def _run(self, tx: Transaction, now: datetime) -> tuple[list[Transition], set[str]]:
        if not alerting.try_lock(tx):
            return [], set()
        began = perf_counter()
        rows = {row.alert_id: row for row in alerting.of_rules(tx)}
        book = {id_: _left(row.state, now) for id_, row in rows.items() if row.state}
        feed = StoreFeed(tx, now, self._shelf)
        with _Apart(tx) as apart:
            done = evaluate(self._rules, feed, book, now, apart.recover)
            explained = self._explain(tx, feed, done, rows, now, apart.recover)
        self._complain(done.errors, now)
        changed = {change.alert_id: replace(change, reason=explained.reasons.get(change.alert_id, change.reason))
                   for change in done.transitions}  # fmt: skip
        alerting.save_alerts(tx, self._rows(done, book, rows, explained.reasons, explained.documents, now))
        for id_, change in changed.items():
            self._follow(tx, id_, change, done, explained.documents.get(id_) or {})
        _raise_incidents(tx, done, book, now)
        gone = [_end(tx, id_, state, now) for id_, state in book.items() if self._is_gone(state, rows[id_], now)]
        stopped = _stop(tx, done, now)
        failed = evaluations.errors_of(mishap.rule for mishap in done.errors)
        took_s = perf_counter() - began
        evaluations.note(tx, Evaluation(now, took_s, len(self._rules), len(done.states), failed))
        return [*changed.values(), *gone], stopped

    def _is_gone(self, state: AlertState, row: Any, now: datetime) -> bool:
        """Whether an alert goes on though no worker has its rule any more: those that have it write it each minute."""
        is_left = state.rule not in self._by_name and state.phase in {"pending", "firing"}
        return is_left and now - row.updated_at >= GONE_AFTER

    def _rows(
        self,
        done: Round,
        book: Mapping[str, AlertState],
        rows: Mapping[str, Any],
        reasons: Mapping[str, str],
        documents: Mapping[str, Mapping[str, Any]],
        now: datetime,
    ) -> Iterator[dict[str, Any]]:
        """The rows to be written: of alerts that changed, or whose numbers are old."""
        began = {change.alert_id for change in done.transitions if change.after == "firing"}
        for id_, state in done.states.items():
            row, rule = rows.get(id_), self._by_name[state.rule]
            said = reasons.get(id_) or done.standing[id_].reason
            labels = self._explain.labels(rule)
            if row is not None and not _is_news(state, book.get(id_), row, said, labels, now):
                continue
            yield {
                "alert_id": id_,
                "scorecard": rule.scorecard,
                "rule": rule.name,
                **state.place._asdict(),
                "kind": rule.kind,
                "severity": state.severity or ("" if rule.severity == "table" else rule.severity),
                "status": state.phase,
                "dry_run": int(rule.dry_run),
                "labels": labels,
                "state": state.to_state(),
                "summary": said,
                "fired_at": state.fired_at,
                "resolved_at": state.resolved_at,
                "updated_at": now,
                **({"explanation": documents[id_]} if id_ in documents else {}),
                **(alerting.ANEW if id_ in began else {}),
            }

    def _follow(self, tx: Transaction, id_: str, change: Transition, done: Round, document: Mapping[str, Any]) -> None:
        """Incidents; a dry run has none."""
        state = done.states[id_]
        if self._by_name[state.rule].dry_run:
            return
        place = state.place
        if change.after == "firing":
            about = f"{place.service}/{place.variant}"
            severity: Any = state.severity
            open_incident(tx, open_from_alert(change, severity, about, document, id_, place.service))
        elif change.after == "resolved" and change.fired_at is not None:
            alerting.resolve_incident(tx, id_of_alert(id_, change.fired_at), change.reason, change.at)

    def _complain(self, errors: Sequence[Mishap], now: datetime) -> None:
        """Log each error, the same one once a minute at the most: rules are evaluated twice a second at times."""
        for mishap in errors:
            said = str(mishap)
            if now - self._complained.get(said, now - SHOWN_EVERY) >= SHOWN_EVERY:
                self._complained[said] = now
                log.error("%s", said, exc_info=mishap.error)
        if len(self._complained) > MOST_COMPLAINTS:
            self._complained.clear()


MOST_COMPLAINTS: Final = 1000


class _Apart:
    """What rules read, apart from what is written: a statement that fails costs its rule, and not the transaction.

    On PostgreSQL no statement is taken after one that failed, until the transaction goes back to a savepoint.
    """

    def __init__(self, tx: Transaction) -> None:
        self._connection = tx.connection

    def __enter__(self) -> Self:
        self._point = self._connection.begin_nested()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._point.commit()

    def recover(self, error: Exception) -> None:
        """Mend the transaction after ``error``; raises it if it is nobody's trouble alone, such as a database away."""
        if isinstance(error, DBAPIError) and is_passing(error):
            raise error
        if isinstance(error, SQLAlchemyError):
            self._point.rollback()
            self._point = self._connection.begin_nested()


def _left(state: Mapping[str, Any], now: datetime) -> AlertState:
    """An alert as the last evaluation left it.

    Which evaluation is the newer the lock says, and not the clock: of two workers one may be some way ahead, and what
    has grown is folded now, or never.
    """
    left = AlertState.from_state(state)
    return left if left.evaluated_at is None or left.evaluated_at < now else replace(left, evaluated_at=None)


def rules_of(scorecards: Sequence[Scorecard]) -> list[Rule]:
    """The alert rules of scorecards; one that cannot be built is logged and left out."""
    rules = []
    for card in scorecards:
        for written in card.alerts:
            try:
                rules.append(rule_of(written, card, card.match.fits_place))
            except ConfigError as error:
                log.error("alert rule %s/%s is not evaluated: %s", card.name, written.name, error)  # noqa: TRY400
    return rules


def _end(tx: Transaction, id_: str, state: AlertState, now: datetime) -> Transition:
    """End an alert whose rule was taken out of its file."""
    fired = state.phase == "firing"
    after: Phase = "resolved" if fired else "inactive"
    reason = f"the rule {state.rule.rpartition('/')[2]} is gone: nobody evaluates it any more"
    ended = replace(
        state, phase=after, resolved_at=now if fired else state.resolved_at, clear_since=None, evaluated_at=now
    )
    values = {"state": ended.to_state(), "status": after, "summary": reason, "resolved_at": ended.resolved_at}
    alerting.save_alert(tx, id_, values, now)
    if fired and state.fired_at is not None:
        alerting.resolve_incident(tx, id_of_alert(id_, state.fired_at), reason, now)
    return Transition(
        rule=state.rule.rpartition("/")[2],
        before=state.phase,
        after=after,
        at=now,
        active_at=state.active_at,
        fired_at=state.fired_at if fired else None,
        value=state.value,
        n=state.n,
        reason=reason,
        alert_id=id_,
    )


def _raise_incidents(tx: Transaction, done: Round, book: Mapping[str, AlertState], now: datetime) -> None:
    """An incident is as severe as its alert has become."""
    for id_, firing in done.firing.items():
        state, before = done.states[id_], book.get(id_)
        has_risen = before is not None and before.fired_at == state.fired_at and before.severity != state.severity
        if has_risen and state.fired_at is not None and not firing.rule.dry_run:
            text = f"{firing.rule.name} is {state.severity} now: {firing.finding.reason}"
            alerting.note_incident(tx, id_of_alert(id_, state.fired_at), text, now, severity=state.severity)


def _stop(tx: Transaction, done: Round, now: datetime) -> set[str]:
    """Throw the kill switches of what fires; the services whose hooks must hear of it."""
    stopped = set()
    for id_, firing in done.firing.items():
        fired_at = done.states[id_].fired_at
        if not firing.rule.kill_switch or firing.rule.dry_run or fired_at is None:
            continue
        stop = stop_of(firing.rule.name, firing.place, firing.finding, id_of_alert(id_, fired_at))
        try:
            if controls.throw(tx, stop.service, stop.name, stop.given, reason=stop.reason, since=fired_at, now=now):
                stopped.add(stop.service)
        except ControlError as error:
            log.error("alert %s could not throw its kill switch: %s", id_, error)  # noqa: TRY400
    return stopped


def _is_news(
    state: AlertState, before: AlertState | None, row: Any, said: str, labels: Mapping[str, str], now: datetime
) -> bool:
    if before is None or not state.same_as(before) or row.labels != labels:
        return True
    if state.phase == "firing" and row.summary != said:
        return True
    seen_otherwise: bool = (state.value, state.n) != (before.value, before.n) or row.summary != said
    is_alive = state.phase in {"pending", "firing"}
    return (seen_otherwise or is_alive) and now - row.updated_at >= SHOWN_EVERY
