"""What alert rules would have done: stored history, played through the code that evaluates and tells in production."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from evalpipe.alerts.grouping import Group, Notice
from evalpipe.alerts.history_feed import HistoryFeed
from evalpipe.alerts.manager import manage
from evalpipe.alerts.round import evaluate
from evalpipe.alerts.routing import Routing
from evalpipe.alerts.rules import Rule
from evalpipe.alerts.standing import standing_of
from evalpipe.alerts.state import AlertState
from evalpipe.detectors.view import Place

STEP: Final = timedelta(minutes=1)
ARRIVING: Final = frozenset({"growth", "prints"})
"""A detector that reads nothing else finds what it found before until something arrives."""
OF_THE_METER: Final = frozenset({"calls", "users"})
NEWS: Final = 12
"""Minutes of an hour: where the meter is kept by the hour, all others are like the last of these."""
NOT_KEPT: Final = "coverage"


@dataclass(slots=True)
class Episode:
    """An alert from when it fired until it resolved.

    Attributes:
        rule: ``scorecard/rule``.
        alert_id, place: which.
        fired_at: when; aware UTC.
        reason: then.
        severity: the highest.
        resolved_at: None if it still fired at the end.
    """

    rule: str
    alert_id: str
    place: Place
    fired_at: datetime
    reason: str
    severity: str
    resolved_at: datetime | None = None

    def minutes(self, until: datetime) -> float:
        """How long it fired, up to ``until`` at the longest."""
        return ((self.resolved_at or until) - self.fired_at).total_seconds() / 60.0

    def to_json(self, until: datetime) -> dict[str, Any]:
        """For machines."""
        return {
            "rule": self.rule, "alert_id": self.alert_id, **self.place._asdict(), "severity": self.severity,
            "fired_at": self.fired_at.isoformat(),
            "resolved_at": self.resolved_at.isoformat() if self.resolved_at else None,
            "minutes": round(self.minutes(until), 1), "reason": self.reason,
        }  # fmt: skip


@dataclass(slots=True)
class Backtest:
    """What came of it.

    Attributes:
        episodes: in order of time.
        notices: what people would have been told, with when.
        untold: by rule, why it could not tell in its last look, where it never could.
        errors: what could not be evaluated, each once.
        looks: evaluations of single alerts.
    """

    episodes: list[Episode] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    untold: dict[str, str] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    looks: int = 0


class Player:
    """Plays history minute by minute; ``found`` is what came of it so far.

    Args:
        rules: to evaluate; those that read what is not kept are left out by the caller.
        routing: who hears of what.
        feed: of history.
    """

    def __init__(self, rules: Sequence[Rule], routing: Routing, feed: HistoryFeed) -> None:
        self.found = Backtest()
        self._rules, self._routing, self._feed = list(rules), routing, feed
        self._by_name = {rule.full_name: rule for rule in rules}
        self._book: dict[str, AlertState] = {}
        self._open: dict[str, Episode] = {}
        self._busy: dict[str, set[str]] = {}
        self._groups: dict[str, Group] = {}
        self._told: set[str] = set()

    def play(self, since: datetime, until: datetime, step: timedelta = STEP) -> Iterator[datetime]:
        """From ``since`` to ``until``; gives each time after it was played."""
        now = since
        while now < until:
            before, now = now, now + step
            self._feed.now = now
            due = [rule for rule in self._rules if self._is_due(rule, before, now)]
            if due:
                self._evaluate(due, now)
            if self._open or self._groups:
                self._tell(now)
            yield now

    def _is_due(self, rule: Rule, before: datetime, now: datetime) -> bool:
        """Whether anything can be other than before: an alert that is pending or fires may change by time alone."""
        if self._busy.get(rule.full_name):
            return True
        if rule.scope.inputs <= OF_THE_METER:
            fine = self._feed.calls_by_minute
            return now.minute < NEWS or (fine is not None and now >= fine)
        if not rule.scope.inputs <= ARRIVING:
            return True
        first, end = before.timestamp() // 60, now.timestamp() // 60
        return any(
            (place := bisect_left(minutes, first)) < len(minutes) and minutes[place] < end
            for minutes in self._feed.moments(rule.scope).values()
        )

    def _evaluate(self, due: Sequence[Rule], now: datetime) -> None:
        done = evaluate(due, self._feed, self._book, now)
        self.found.looks += len(done.states)
        for mishap in done.errors:
            self.found.errors[str(mishap)] = self.found.errors.get(str(mishap), 0) + 1
        self._book.update(done.states)
        for id_, state in done.states.items():
            busy = self._busy.setdefault(state.rule, set())
            (busy.add if state.phase in {"pending", "firing"} else busy.discard)(id_)
            if state.rule not in self._told:
                if state.value is None:
                    self.found.untold[state.rule] = done.standing[id_].reason
                else:
                    self._told.add(state.rule)
                    self.found.untold.pop(state.rule, None)
            if (episode := self._open.get(id_)) is not None and state.phase == "firing":
                episode.severity = state.severity
        for change in done.transitions:
            state = done.states[change.alert_id]
            if change.after == "firing":
                episode = Episode(state.rule, change.alert_id, state.place, now, change.reason, state.severity)
                self._open[change.alert_id] = episode
                self.found.episodes.append(episode)
            elif change.after == "resolved":
                self._open.pop(change.alert_id).resolved_at = now

    def _tell(self, now: datetime) -> None:
        marked = {id_ for group in self._groups.values() for id_ in group.marks}
        alerts = [
            standing_of(id_, self._by_name[state.rule], state)
            for id_ in marked | self._open.keys()
            if (state := self._book[id_]).severity
        ]
        self._groups, notices = manage(alerts, self._routing, [], self._groups, now)
        self.found.notices += notices
