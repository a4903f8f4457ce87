"""Running tests of alert rules: series by hand, through the code that evaluates and tells in production."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

from evalpipe.alerts.by_hand import events_of, length_of, normal_of, place_of
from evalpipe.alerts.grouping import Group, Notice
from evalpipe.alerts.manager import manage
from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.round import evaluate
from evalpipe.alerts.routing import Routing, Standing
from evalpipe.alerts.rules import Rule
from evalpipe.alerts.silence import Silence
from evalpipe.alerts.standing import standing_of
from evalpipe.alerts.state import AlertState
from evalpipe.detectors.view import Place
from evalpipe.scorecard.alert_test import Act, AlertTest, Expected, Told, Where
from evalpipe.scorecard.checks import Loc, nearest
from evalpipe.scorecard.values import format_duration

START: Final = datetime(2026, 1, 5, tzinfo=UTC)
LEAST: Final = timedelta(minutes=1)
"""How seldom rules are evaluated at the least, unless a test says otherwise."""
ANYWHERE: Final = Place("app", "production", "baseline", "", "r1")


@dataclass(frozen=True, slots=True)
class Seen:
    """How an alert stood after one evaluation."""

    alert_id: str
    rule: str
    place: Place
    phase: str
    severity: str
    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What was expected and did not come; ``loc`` is below the test."""

    loc: Loc
    message: str


@dataclass(slots=True)
class RuleTestResult:
    """What came of one test.

    Attributes:
        test: as written.
        failures: empty if it passed.
        log: each change of phase: how long after the start, alert, phase, severity, reason.
        notices: what was told: how long after the start, cause, severity, channels, rules.
    """

    test: AlertTest
    failures: list[Failure] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    notices: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything came as expected."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "test": self.test.name,
            "passed": self.passed,
            "failures": [failure.message for failure in self.failures],
            "alerts": self.log,
            "notices": self.notices,
        }


def run_rule_test(test: AlertTest, rules: Sequence[Rule], routing: Routing) -> RuleTestResult:
    """Play the series of a test, and compare what the rules do with what is expected.

    Args:
        test: as written.
        rules: all that are evaluated.
        routing: who hears of what.
    """
    run = _Run(test, rules, routing)
    for _ in run.play():
        pass
    return run.result()


class _Run:
    def __init__(self, test: AlertTest, rules: Sequence[Rule], routing: Routing) -> None:
        self._test, self._rules, self._routing = test, rules, routing
        self._start = test.start or START
        self._base = place_of(ANYWHERE, test.place)
        self._feed = MemoryFeed(self._start)
        if test.normal is not None:
            self._feed.set_normal(normal_of(test.normal, self._base, test.seed, self._start))
        self._book: dict[str, AlertState] = {}
        self._seen: dict[str, Seen] = {}
        self._groups: dict[str, Group] = {}
        self._acked: set[str] = set()
        self._silences: list[Silence] = []
        self._result = RuleTestResult(test)
        self._met: dict[int, str] = {}
        self._open = dict(enumerate(test.expect))
        self._told: list[tuple[datetime, Notice]] = []

    def play(self) -> Iterator[datetime]:
        """Each evaluation."""
        test = self._test
        step = test.evaluate or min(test.interval, LEAST)
        end = self._start + max([length_of(test) * test.interval, *_times(test)])
        events = events_of(test, self._base, self._start)
        event = next(events, None)
        acts = sorted(test.acts, key=lambda act: act.at)
        for number in count(1):
            before, now = self._start + (number - 1) * step, self._start + number * step
            if before >= end:
                return
            while event is not None and event[0] < now:
                event[2](self._feed)
                event = next(events, None)
            while acts and self._start + acts[0].at < now:
                self._act(acts.pop(0))
            self._evaluate(now)
            self._compare(now, step)
            yield now

    def _evaluate(self, now: datetime) -> None:
        self._feed.now = now
        done = evaluate(self._rules, self._feed, self._book, now)
        self._book.update(done.states)
        for mishap in done.errors:
            failure = Failure((), f"at {self._when(now)}: {mishap}")
            if failure.message.partition(": ")[2] not in {f.message.partition(": ")[2] for f in self._result.failures}:
                self._result.failures.append(failure)
        for id_, state in done.states.items():
            shown = done.standing[id_]
            self._seen[id_] = Seen(id_, state.rule, state.place, state.phase, state.severity, shown.reason)
        for change in done.transitions:
            seen = self._seen[change.alert_id]
            self._result.log.append({"after": self._when(now), "alert_id": seen.alert_id, "state": seen.phase,
                                     "severity": seen.severity, "reason": seen.reason})  # fmt: skip
            if change.after == "firing":
                self._acked.discard(change.alert_id)
        self._tell(now)

    def _tell(self, now: datetime) -> None:
        by_name = {rule.full_name: rule for rule in self._rules}
        marked = {id_ for group in self._groups.values() for id_ in group.marks}
        alerts: list[Standing] = []
        for id_, state in self._book.items():
            if state.severity and (state.phase == "firing" or id_ in marked):
                found = standing_of(id_, by_name[state.rule], state)
                alerts.append(replace(found, acked=id_ in self._acked))
        self._groups, notices = manage(alerts, self._routing, self._silences, self._groups, now)
        for notice in notices:
            self._told.append((now, notice))
            self._result.notices.append(self._words(notice, now))

    def _words(self, notice: Notice, now: datetime) -> dict[str, Any]:
        firing = [self._seen[id_] for id_ in notice.firing]
        severity = max((seen.severity for seen in firing), key=_rank, default=notice.group.worst)
        return {
            "after": self._when(now),
            "cause": notice.cause,
            "severity": severity,
            "channels": None if notice.channels is None else list(notice.channels),
            "rules": sorted({seen.rule.rpartition("/")[2] for seen in firing}),
        }

    def _act(self, act: Act) -> None:
        if act.ack is not None:
            ids = [id_ for id_, seen in self._seen.items() if _names(act.ack, seen) and seen.phase == "firing"]
            self._acked.update(ids)
        if act.silence is not None:
            at = self._start + act.at
            self._silences.append(Silence("test", dict(act.silence), "test", "test", at, at + act.lasts))

    def _compare(self, now: datetime, step: timedelta) -> None:
        """What is expected of this moment."""
        after = now - self._start
        for number, wanted in list(self._open.items()):
            seen = list(self._of(wanted))
            if wanted.at is not None and after <= wanted.at < after + step:
                self._settle(number, wanted, seen, "" if _holds(wanted, seen) else f"at {format_duration(wanted.at)}")
            elif wanted.by is not None and after <= wanted.by:
                if _holds(wanted, seen):
                    self._settle(number, wanted, seen, "")
                elif after + step > wanted.by:
                    self._settle(number, wanted, seen, f"by {format_duration(wanted.by)}")
            elif wanted.never is not None and (bad := _in(seen, wanted.never)):
                self._settle(number, wanted, bad, f"at {self._when(now)}")

    def _settle(self, number: int, wanted: Expected, seen: list[Seen], when: str) -> None:
        del self._open[number]
        if when:
            self._result.failures.append(Failure(("expect", number), f"{_wish(wanted)}; {when} {_stood(wanted, seen)}"))

    def _of(self, wanted: Expected) -> Iterator[Seen]:
        for seen in self._seen.values():
            if _names(wanted.rule, seen) and (wanted.place is None or _is_at(wanted.place, seen.place)):
                yield seen

    def _unread(self) -> Iterator[Failure]:
        """Scores that no rule reads: a name is misspelt, or a rule is missing."""
        read = sorted({name for rule in self._rules for name in rule.scope.criteria})
        normal = [] if self._test.normal is None else [(("normal",), self._test.normal.scores)]
        for loc, scores in [*((("series", i), one.scores) for i, one in enumerate(self._test.series)), *normal]:
            for name in scores.keys() - read:
                yield Failure((*loc, "scores", name), f"no rule reads scores of {name!r}{nearest(name, read)}")

    def result(self) -> RuleTestResult:
        """When all is played."""
        known = {name for rule in self._rules for name in (rule.name, rule.full_name)}
        for number, wanted in enumerate(self._test.expect):
            if wanted.rule not in known:
                message = f"there is no rule {wanted.rule!r}; there are: {', '.join(r.name for r in self._rules)}"
                self._result.failures.append(Failure(("expect", number, "rule"), message))
        self._result.failures += self._unread()
        if self._test.told is not None:
            self._result.failures += self._untold(self._test.told)
        self._result.failures.sort(key=lambda failure: [f"{part:>6}" for part in failure.loc[1:2]])
        self._result.failures.sort(key=lambda failure: failure.loc[:1])
        return self._result

    def _untold(self, wanted: Sequence[Told]) -> Iterable[Failure]:
        """Notices that did not go out, and those that nobody expected."""
        step = self._test.evaluate or min(self._test.interval, LEAST)
        left = list(zip([at - self._start for at, _ in self._told], self._result.notices, strict=True))
        for number, one in enumerate(wanted):
            found = next((each for each in left if _told_as(one, each[0], each[1], step)), None)
            if found is not None:
                left.remove(found)
            else:
                said = "; ".join(_notice(each) for _, each in left) or "nothing"
                yield Failure(("told", number), f"expected the notice {_wish_told(one)}; told was {said}")
        for _, extra in left:
            yield Failure(("told",), f"told was {_notice(extra)}, which nobody expected")

    def _when(self, now: datetime) -> str:
        return format_duration(now - self._start)


def _times(test: AlertTest) -> list[timedelta]:
    given = [*test.expect, *(test.told or ())]
    return [at for one in given for at in (one.at, one.by) if at is not None]


def _names(rule: str, seen: Seen) -> bool:
    return rule in {seen.rule, seen.rule.rpartition("/")[2]}


def _is_at(wanted: Where, place: Place) -> bool:
    return all(getattr(place, name) == value for name, value in wanted.model_dump(exclude_none=True).items())


def _holds(wanted: Expected, seen: Sequence[Seen]) -> bool:
    if wanted.state == "inactive":
        return all(one.phase == "inactive" for one in seen)
    return any(one.phase == wanted.state and wanted.severity in {None, one.severity} for one in seen)


def _in(seen: Sequence[Seen], phase: str) -> list[Seen]:
    return [one for one in seen if one.phase == phase or (phase == "pending" and one.phase == "firing")]


def _wish(wanted: Expected) -> str:
    where = "" if wanted.place is None else f" at {_at(wanted.place.model_dump(exclude_none=True))}"
    if wanted.never is not None:
        return f"expected {wanted.rule}{where} never to be {wanted.never}"
    when = f"at {format_duration(wanted.at)}" if wanted.at is not None else f"by {format_duration(wanted.by)}"  # type: ignore[arg-type]  # one of the two is there
    severity = f" ({wanted.severity})" if wanted.severity else ""
    return f"expected {wanted.rule}{where} to be {wanted.state}{severity} {when}"


def _stood(wanted: Expected, seen: Sequence[Seen]) -> str:
    if not seen:
        return f"{wanted.rule} had no alert: nothing that it reads was there"
    said = [
        f"it was {one.phase}{f' ({one.severity})' if one.severity else ''}"
        f"{' at ' + _at(one.place._asdict()) if len(seen) > 1 else ''}: {one.reason}"
        for one in seen[:3]
    ]
    return "; ".join(said) + (f"; and {len(seen) - 3} more" if len(seen) > 3 else "")


def _at(place: Mapping[str, str]) -> str:
    return "/".join(part for part in place.values() if part)


def _told_as(wanted: Told, after: timedelta, said: Mapping[str, Any], step: timedelta) -> bool:
    if wanted.at is not None and not after <= wanted.at < after + step:
        return False
    if wanted.by is not None and after > wanted.by:
        return False
    channels = said["channels"] if said["channels"] is None else sorted(said["channels"])
    return (
        said["cause"] == wanted.cause
        and wanted.severity in {None, said["severity"]}
        and (wanted.channels is None or channels == sorted(wanted.channels))
        and (wanted.rules is None or said["rules"] == sorted(wanted.rules))
    )


def _wish_told(wanted: Told) -> str:
    when = f"at {format_duration(wanted.at)}" if wanted.at is not None else f"by {format_duration(wanted.by)}"  # type: ignore[arg-type]  # as above
    return _notice({"after": when, "cause": wanted.cause, "severity": wanted.severity, "channels": wanted.channels,
                    "rules": wanted.rules or []})  # fmt: skip


def _notice(said: Mapping[str, Any]) -> str:
    words = [said["cause"], said["severity"], *said["rules"]]
    to = f" to {', '.join(said['channels'])}" if said["channels"] else ""
    when = said["after"] if " " in said["after"] else f"at {said['after']}"
    return f"'{' '.join(word for word in words if word)}'{to} {when}"


def _rank(severity: str) -> str:
    """SEV1 is the highest."""
    return {"": "0"}.get(severity, str(9 - int(severity[-1:] or 9)))
