"""Plays a month: the production's round of rules and its alert manager, on a clock of the simulation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from detection.month.world import DAYS, HERE, START, STEP, Incident, World, baseline, incidents
from evalpipe.alerts.grouping import Group
from evalpipe.alerts.manager import manage
from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.round import evaluate
from evalpipe.alerts.routing import Routing
from evalpipe.alerts.rules import Rule, rule_of
from evalpipe.alerts.standing import standing_of
from evalpipe.alerts.state import AlertState
from evalpipe.detectors.base import detectors
from evalpipe.judges.base import judges
from evalpipe.scorecard.alert_file import load_alerts
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorers.base import heuristics

FALSE_ALARM_EVERY = "3650d"
EARLY = (timedelta(minutes=1), timedelta(seconds=5))
"""Rules about cost are evaluated so long before the others as well: a service does it every few seconds."""
GRACE = timedelta(hours=1)
"""So long after its end an incident may still be told: it is in the windows that are looked at."""


@dataclass
class Page:
    """An episode of a group: from its first notice until it was told to be over."""

    at: datetime
    severity: str
    alerts: list[str]
    reasons: list[str]
    end: datetime | None = None


@dataclass
class Month:
    """What became of one."""

    seed: int
    incidents: list[Incident]
    pages: list[Page]
    errors: Counter[str] = field(default_factory=Counter)

    def matched(self) -> list[tuple[Incident, list[Page]]]:
        """The pages that began in each incident, or while it was still in the windows that are looked at."""
        return [(one, [p for p in self.pages if one.start <= p.at < one.end + GRACE]) for one in self.incidents]

    @property
    def unprovoked(self) -> list[Page]:
        """Pages without an incident."""
        mine = {id(page) for _, pages in self.matched() for page in pages}
        return [page for page in self.pages if id(page) not in mine]


def rules(false_alarm_every: str) -> list[Rule]:
    """As they stand in the files; each alert may be false once in ``false_alarm_every``."""
    cards = load_scorecards(HERE / "support.yaml", heuristics=heuristics, judges=judges, detectors=detectors)
    found = load_alerts(HERE / "alerts.yaml", cards, detectors)
    made = []
    for card, entry in found.entries:
        params = {**entry.params, "false_alarm_every": false_alarm_every}
        made.append(rule_of(entry.model_copy(update={"params": params}), card, entry.fits(card)))
    return made


def play(seed: int, days: float = DAYS, false_alarm_every: str = FALSE_ALARM_EVERY) -> Month:
    """One month of a seed."""
    feed, found = MemoryFeed(START), incidents(seed)
    world, made = World(seed, feed, found), rules(false_alarm_every)
    hasty = [rule for rule in made if rule.kind == "cost"]
    by_name = {rule.full_name: rule for rule in made}
    feed.set_normal(baseline(seed))
    book: dict[str, AlertState] = {}
    groups: dict[str, Group] = {}
    month, open_pages = Month(seed, found, []), dict[str, Page]()
    at = START
    while at < START + timedelta(days=days):
        world.step(at)
        at += STEP
        for early in EARLY:
            feed.now = at - early
            book |= evaluate(hasty, feed, book, feed.now).states
        feed.now = at
        done = evaluate(made, feed, book, at)
        for mishap in done.errors:
            month.errors[str(mishap)] += 1
        book |= done.states
        standing = [
            standing_of(id_, by_name[s.rule], s)
            for id_, s in book.items()
            if s.severity
            and s.fired_at is not None
            and (s.phase == "firing" or any(id_ in g.marks for g in groups.values()))
        ]
        groups, notices = manage(standing, Routing(), [], groups, at)
        for notice in notices:
            key = notice.group.dedup_key
            if notice.status == "resolved":
                if key in open_pages:
                    open_pages.pop(key).end = at
                continue
            page = open_pages.get(key)
            if page is None:
                page = open_pages[key] = Page(at, notice.group.worst, [], [])
                month.pages.append(page)
            page.severity = min(page.severity, notice.group.worst)
            for id_ in notice.firing:
                if id_ not in page.alerts:
                    page.alerts.append(id_)
                    page.reasons.append(done.standing[id_].reason if id_ in done.standing else "")
    return month
