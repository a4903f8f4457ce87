"""Who is told of which alerts, and when: Alertmanager's semantics. Pure and deterministic.

A group of alerts is told when it is there for ``group_wait``; when alerts came to it or became more severe (no sooner
than ``group_interval`` after the last notice, unless the group becomes more severe or it is a SEV1); again each
``repeat_interval`` and at the escalation steps, until it is acknowledged, which is told too; and once when all that was
told is over. A group that resolves before it was told is never told. Unlike there, whoever was told of an alert also
hears that it resolved if it was silenced meanwhile, and what still fires when its silence ends is told anew; and what
comes to a group of which nothing new was told for a ``repeat_interval`` is another episode of it, with a page of its
own: whoever was paged has long looked, and a pager takes another notice of an open page for no call.
Source: https://prometheus.io/docs/alerting/latest/configuration/ and Alertmanager's ``notify`` package.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from evalpipe.alerts.escalation import RANK, RESPONSE_TIME, Step, ladder
from evalpipe.alerts.grouping import Cause, Group, Mark, Notice, joined
from evalpipe.alerts.inhibition import inhibited
from evalpipe.alerts.routing import Route, Routing, Standing
from evalpipe.alerts.rules import Severity
from evalpipe.alerts.silence import Silence
from evalpipe.detectors.view import Place

Groups = Mapping[str, Group]
"""By ``dedup_key``."""
SAME_FOR: Final = 3
"""Repeat intervals without news after which more of the same is a page of its own."""


def manage(
    alerts: Iterable[Standing], routing: Routing, silences: Iterable[Silence], groups: Groups, now: datetime
) -> tuple[dict[str, Group], list[Notice]]:
    """One look at everything.

    Args:
        alerts: those that fire, and those that are in the groups.
        routing: what somebody has set.
        silences: those that may be active.
        groups: what was told, as this gave it back the last time.
        now: aware UTC.

    Returns:
        The groups from now on, and what to tell; both belong into one transaction.
    """
    known = {alert.alert_id: alert for alert in alerts}
    quiet = muted(known.values(), routing, silences, now)
    episodes: dict[str, list[Group]] = {}
    for group in sorted(groups.values(), key=lambda g: g.since):
        episodes.setdefault(group.key, []).append(group)
    members: dict[str, tuple[Route, list[Standing]]] = {}
    for alert in sorted(known.values(), key=lambda a: (-a.rank, a.fired_at, a.alert_id)):
        if alert.firing and not alert.dry_run and alert.alert_id not in quiet:
            for route in routing.of(alert):
                group = _episode(episodes.setdefault(route.key(alert), []), alert, route, known, now)
                members.setdefault(group.dedup_key, (route, []))[1].append(alert)
    after: dict[str, Group] = {}
    notices: list[Notice] = []
    for before in (group for _, mine in sorted(episodes.items()) for group in mine):
        route, live = members.get(before.dedup_key) or (routing.named(before.route), [])
        kept, notice = _Look(before, route, live, known, routing.escalate, now).outcome()
        if kept is not None:
            after[kept.dedup_key] = kept
        if notice is not None:
            notices.append(notice)
    return after, notices


def _episode(mine: list[Group], alert: Standing, route: Route, known: Mapping[str, Standing], now: datetime) -> Group:
    """The episode of a group, oldest first in ``mine``, that an alert belongs to; one that begins is added there."""
    for group in reversed(mine):
        if alert.alert_id in group.marks:
            return group
    newest = mine[-1] if mine else None
    if newest is not None:
        quiet = now - newest.news_at if newest.news_at is not None else timedelta(0)
        same = quiet < SAME_FOR * route.repeat_interval and _is_more_of(newest, alert, known)
        if quiet < route.repeat_interval or same:
            return newest
    newest = Group(route.key(alert), route.name, now)
    mine.append(newest)
    return newest


def _is_more_of(group: Group, alert: Standing, known: Mapping[str, Standing]) -> bool:
    """Whether a page that is open says as much already: it has an alert about the same scores that fires."""
    if alert.rank > _rank(group.worst):
        return False
    told = (known[id_] for id_ in group.marks if id_ in known)
    return any(other.firing and _is_same_trouble(alert, other) for other in told)


def _is_same_trouble(one: Standing, other: Standing) -> bool:
    """Whether both are about one criterion, and the place of one is in the other's."""
    about = [tuple(alert.labels.get(name, "") for name in ("scorecard", "criterion")) for alert in (one, other)]
    if about[0] != about[1] or not about[0][1]:
        return False
    places = [[alert.labels.get(name, "") for name in Place._fields] for alert in (one, other)]
    return _is_in(*places) or _is_in(*reversed(places))


def _is_in(part: list[str], whole: list[str]) -> bool:
    """Of places: "" is all of them."""
    return all(a == b or not b for a, b in zip(part, whole, strict=True))


def muted(alerts: Collection[Standing], routing: Routing, silences: Iterable[Silence], now: datetime) -> dict[str, str]:
    """The alerts that fire and of which nobody is told, each with the silence or the alert that mutes it."""
    active = [silence for silence in silences if silence.is_active(now)]
    found = inhibited(alerts, routing.inhibit)
    for alert in alerts:
        by = next((silence.silence_id for silence in active if silence.mutes(alert.labels, now)), None)
        if by is not None and alert.firing:
            found[alert.alert_id] = by
    return found


class _Look:
    """One group at one time."""

    def __init__(
        self,
        group: Group,
        route: Route,
        live: list[Standing],
        known: Mapping[str, Standing],
        steps: tuple[Step, ...],
        now: datetime,
    ) -> None:
        self._group, self._route, self._live, self._steps, self._now = group, route, live, steps, now
        ids = {alert.alert_id for alert in live}
        fires = {id_ for id_ in group.marks if (alert := known.get(id_)) is not None and alert.firing}
        self._over = tuple(id_ for id_ in group.marks if id_ not in fires)
        acked = {alert.alert_id for alert in live if alert.acked}
        self._marks = {
            id_: replace(mark, muted=mark.muted or (id_ in fires and id_ not in ids), acked=mark.acked and id_ in acked)
            for id_, mark in group.marks.items()
        }

    def outcome(self) -> tuple[Group | None, Notice | None]:
        """The group from now on, None if it is done with; and what to tell."""
        if self._group.told_at is None:
            return self._gather()
        if len(self._over) == len(self._marks) and not self._live:
            return self._end() if self._is_time(self._group.told_at) else (self._kept(), None)
        due = self._due()
        cause = self._cause(self._group.told_at, escalates=bool(due))
        return (self._kept(), None) if cause is None else self._tell(cause, due)

    def _gather(self) -> tuple[Group | None, Notice | None]:
        if not self._live:
            return None, None
        wait = min(self._route.wait(alert.severity) for alert in self._live)
        return (self._group, None) if self._now - self._group.since < wait else self._tell("first", {})

    def _end(self) -> tuple[None, Notice]:
        group = replace(self._group, number=self._group.number + 1, told_at=self._now, marks={})
        return None, Notice(group, "resolved", group.channels, self._now, (), self._over)

    def _cause(self, told_at: datetime, *, escalates: bool) -> Cause | None:
        news = [alert for alert in self._live if self._is_news(alert)]
        top = max((alert.rank for alert in news), default=0)
        told = max((mark.rank for mark in self._marks.values()), default=0)
        urgent = top > told or any(alert.severity == "SEV1" for alert in news)
        ripe = bool(news) and (urgent or self._is_time(told_at))
        if ripe and (top > _rank(self._group.worst) or any(self._is_worse(alert) for alert in news)):
            return "raised"
        if escalates:
            return "escalated"
        if ripe:
            return "added"
        waits = any(not alert.acked for alert in self._live if not self._is_news(alert))
        if waits and self._now - told_at >= self._route.repeat_interval:
            return "repeat"
        taken = any(a.acked and not self._marks[a.alert_id].acked for a in self._live if a.alert_id in self._marks)
        return "acknowledged" if taken else None

    def _tell(self, cause: Cause, due: Mapping[str, Step]) -> tuple[Group, Notice]:
        """Tell all that fires."""
        marks = {id_: mark for id_, mark in self._marks.items() if id_ not in self._over}
        for alert in self._live:
            mark = marks.get(alert.alert_id)
            if mark is None or self._is_news(alert):
                mark = Mark(alert.severity, self._now)
            marks[alert.alert_id] = replace(
                mark, muted=False, acked=alert.acked, escalated=mark.escalated + (alert.alert_id in due)
            )
        channels = joined(self._group.channels, self._route.channels)
        for step in due.values():
            channels = joined(channels, step.channels)
        worst = max([a.severity for a in self._live], key=RANK.__getitem__)
        if self._group.worst is not None:
            worst = max(worst, self._group.worst, key=RANK.__getitem__)
        told_at = self._group.told_at if cause == "acknowledged" else self._now  # which holds nothing else up
        group = replace(
            self._group, number=self._group.number + 1, told_at=told_at, marks=marks, channels=channels, worst=worst
        )
        firing = tuple(alert.alert_id for alert in self._live)
        notice = Notice(
            group, cause, channels, self._now, firing, self._over, _respond_by(group, self._live), tuple(due)
        )
        return group, notice

    def _kept(self) -> Group:
        """The group without a notice: what is muted is noted, and what was acknowledged meanwhile is no news."""
        acked = {alert.alert_id for alert in self._live if alert.acked}
        marks = {id_: replace(mark, muted=False) if id_ in acked else mark for id_, mark in self._marks.items()}
        return replace(self._group, marks=marks)

    def _is_news(self, alert: Standing) -> bool:
        mark = self._marks.get(alert.alert_id)
        return mark is None or alert.rank > mark.rank or (mark.muted and not alert.acked)

    def _is_worse(self, alert: Standing) -> bool:
        return alert.rank > self._marks[alert.alert_id].rank if alert.alert_id in self._marks else False

    def _due(self) -> dict[str, Step]:
        """The alerts whose next step of escalation has come."""
        found = {}
        for alert in self._live:
            mark = self._marks.get(alert.alert_id)
            if mark is None or alert.acked or self._is_news(alert):
                continue
            steps = ladder(self._steps, mark.severity)[mark.escalated :]
            if steps and self._now - mark.told_at >= steps[0].delay(mark.severity):
                found[alert.alert_id] = steps[0]
        return found

    def _is_time(self, told_at: datetime) -> bool:
        return self._now - told_at >= self._route.group_interval


def _respond_by(group: Group, live: Iterable[Standing]) -> datetime | None:
    marks = [group.marks[alert.alert_id] for alert in live if not alert.acked]
    return min((mark.told_at + RESPONSE_TIME[mark.severity] for mark in marks), default=None)


def _rank(severity: Severity | None) -> int:
    return 0 if severity is None else RANK[severity]
