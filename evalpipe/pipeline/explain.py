"""What an alert says of itself: the numbers, what is normal, who is affected, and the records that show it best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any, Final

from evalpipe.alerts.round import Firing, Mishap, Round
from evalpipe.alerts.rules import Rule
from evalpipe.detectors.view import Feed
from evalpipe.errors import ConfigError
from evalpipe.pipeline.trust import VersionOf, attribution
from evalpipe.scorecard.model import Scorecard
from evalpipe.store import alerting
from evalpipe.store.sql import Transaction

LOOKUPS: Final = 20
"""Alerts whose records are looked up in one evaluation at the most; the others' follow in the next ones."""
LOOKUPS_S: Final = 1.0
"""And for how long: a page does not wait for the records of the others."""
EXAMPLES: Final = 10
EXAMPLES_OVER: Final = timedelta(hours=1)
"""How far back records are looked for, where the finding names no window."""
LONGEST: Final = timedelta(days=1)
"""And at the most: among the records of weeks the database would look for seconds."""

log = logging.getLogger("evalpipe")


@dataclass(slots=True)
class Explained:
    """By alert id: ``reasons`` where there is more to say than the finding does, and ``documents``."""

    reasons: dict[str, str] = field(default_factory=dict)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)


class Explain:
    """Explains alerts that fire.

    Args:
        cards: by name.
        version_of: names the judges that scorecards mean.
    """

    def __init__(self, cards: Mapping[str, Scorecard], version_of: VersionOf | None) -> None:
        self._cards = cards
        self._version_of = version_of
        self._labels: dict[str, dict[str, str]] = {}

    def __call__(
        self,
        tx: Transaction,
        feed: Feed,
        done: Round,
        rows: Mapping[str, Any],
        now: datetime,
        recover: Callable[[Exception], None],
    ) -> Explained:
        """The explanations of all alerts that fire, each refreshed.

        One that fails is told without its records; ``recover`` is as in ``evaluate``.
        """
        explained, looked_up, until_s = Explained(), 0, perf_counter() + LOOKUPS_S
        began = {change.alert_id for change in done.transitions}
        for id_, firing in done.firing.items():
            before = (id_ in rows and id_ not in began and rows[id_].explanation) or {}
            numbers = _numbers(firing)
            # Where nothing is known any more, what was known last says more.
            document = {**before, **numbers} if firing.finding.violated is not None else {**numbers, **before}
            if "examples" not in before and looked_up < LOOKUPS and perf_counter() < until_s:
                looked_up += 1
                try:
                    document |= self._look_up(tx, feed, id_, firing, now)
                except Exception as error:  # noqa: BLE001 - one alert of many
                    recover(error)
                    done.errors.append(Mishap(firing.rule.full_name, firing.place, error))
            explained.documents[id_] = document
            if "moved_words" in document:
                explained.reasons[id_] = f"{done.standing[id_].reason}; {document['moved_words']}"
        return explained

    def _look_up(self, tx: Transaction, feed: Feed, id_: str, firing: Firing, now: datetime) -> dict[str, Any]:
        """What is looked up once in an episode."""
        found: dict[str, Any] = {"examples": _examples(tx, firing, now), "normal": _normal(feed, firing, id_, now)}
        self._attribute(tx, firing, found, now)
        return found

    def labels(self, rule: Rule) -> dict[str, str]:
        """The labels of a rule's alerts: its own, its criterion, and the versions of the judges that grade it first."""
        key = rule.full_name
        if key not in self._labels:
            judges = sorted({judge for name in rule.scope.criteria for judge in self._judges(rule.scorecard, name)})
            known = {"criterion": rule.criterion, "judge": ", ".join(judges)}
            self._labels[key] = {**rule.labels, **{name: value for name, value in known.items() if value}}
        return self._labels[key]

    def _judges(self, scorecard: str, criterion: str) -> list[str]:
        card = self._cards.get(scorecard)
        if card is None or self._version_of is None or criterion not in {c.name for c in card.criteria}:
            return []
        spec, found = card.criterion(criterion).judge, []
        for model in spec.ladder[0] if spec is not None else ():
            try:
                found.append(self._version_of(model))
            except ConfigError as error:
                log.debug("no version of judge %s: %s", model, error)
        return found

    def _attribute(self, tx: Transaction, firing: Firing, document: dict[str, Any], now: datetime) -> None:
        """Where a judged series moved: whether the judge did."""
        rule, finding, place = firing.rule, firing.finding, firing.place
        card = self._cards.get(rule.scorecard)
        usual = finding.threshold
        if card is None or not rule.scope.criteria or finding.value is None or usual is None or not finding.violated:
            return
        gap = finding.value - usual
        where = {"service": place.service, "environment": place.environment, "variant": place.variant}
        found = attribution(tx, card, rule.scope.criteria[0], gap, now, since=now - _window(firing), **where)
        if found is not None and gap:
            document |= {"moved": found.origin, "moved_words": found.words}


def _numbers(firing: Firing) -> dict[str, Any]:
    rule, finding = firing.rule, firing.finding
    share = {"share": firing.share.to_dict()} if firing.share is not None else {}
    return {
        "runbook": rule.runbook,
        "description": rule.description,
        "criterion": rule.watched,
        "value": finding.value,
        "n": finding.n,
        "threshold": finding.threshold,
        "ratio": finding.ratio,
        "numbers": dict(finding.numbers),
        **share,
    }


def _examples(tx: Transaction, firing: Firing, now: datetime) -> list[dict[str, Any]]:
    rule, place = firing.rule, firing.place
    criterion = rule.scope.criteria[0] if rule.scope.criteria else ""
    if firing.finding.examples:
        return alerting.examples(tx, firing.finding.examples[:EXAMPLES], criterion)
    if not criterion:
        return []
    where = {name: value for name, value in place._asdict().items() if value or name in _ALWAYS}
    if rule.scorecard:
        where["scorecard"] = rule.scorecard
    highest = firing.finding.numbers.get("worst") == "highest"
    return alerting.worst(tx, criterion, where, now - _window(firing), now, highest=highest, limit=EXAMPLES)


_ALWAYS: Final = frozenset({"service", "environment", "variant"})
"""Columns that an alert's place always names; "" of the others stands for all."""


def _normal(feed: Feed, firing: Firing, id_: str, now: datetime) -> str:
    if firing.rule.scope.normal.kind == "none":
        return ""
    normal = feed.view(firing.rule.scope, firing.place, id_).normal(now - _window(firing), now)
    return normal.words if normal is not None else ""


def _window(firing: Firing) -> timedelta:
    seconds = firing.finding.numbers.get("window_s")
    if isinstance(seconds, int | float) and seconds > 0:
        return min(timedelta(seconds=seconds), LONGEST)
    return EXAMPLES_OVER
