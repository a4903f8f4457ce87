"""Files with alert rules for commands: scorecards, and files of ``alerts:``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalpipe.alerts.routing import Routing, routing_of
from evalpipe.alerts.rules import Rule, rule_of
from evalpipe.detectors.base import detectors
from evalpipe.errors import ConfigError, ScorecardError
from evalpipe.scorecard.alert_file import Alerting, load_alerts
from evalpipe.scorecard.load import load_scorecards, scorecard_files
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.notify_rules import NotifyRules
from evalpipe.scorecard.policy import read_document
from evalpipe.scorers.base import heuristics


@dataclass(slots=True)
class AlertRules:
    """What files say together.

    Attributes:
        cards: the scorecards among them, and those that were known before.
        rules: of them, ready to be evaluated.
        routing: who hears of alerts.
    """

    cards: list[Scorecard] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    routing: Routing = field(default_factory=Routing)


def alert_rules(
    paths: Iterable[Path], cards: Sequence[Scorecard] = (), channels: Collection[str] | None = None
) -> AlertRules:
    """The alert rules in scorecards and in files of ``alerts:``.

    Args:
        paths: files, or folders of them.
        cards: scorecards whose criteria rules may read beside those in ``paths``; their own rules are left out.
        channels: the names of channels that routes may name; without them that is not checked.

    Raises:
        ScorecardError: one line for each problem, with file and line.
        ConfigError: there is no such file, or a rule that cannot work.
    """
    own, files, problems = list[Scorecard](), list[Path](), list[str]()
    for path in paths:
        if not path.exists():
            problems.append(f"{path}: there is no such file or folder of alert rules")
            continue
        for file in scorecard_files(path):
            if not is_scorecard(file):
                files.append(file)
                continue
            try:
                own += load_scorecards(file, heuristics, detectors=detectors)
            except ScorecardError as error:
                problems.append(str(error))
    named = {card.name for card in own}
    known = [*own, *(card for card in cards if card.name not in named)]
    found: list[Alerting] = []
    for file in files:
        try:
            found.append(load_alerts(file, known, detectors, channels))
        except ScorecardError as error:
            problems.append(str(error))
    notifies = [alerting.notify for alerting in found if alerting.notify is not None]
    if len(notifies) > 1:
        problems.append("two files say who hears of alerts ('notify:'); write it in one")
    if problems:
        raise ScorecardError("\n".join(problems))
    rules = [rule_of(written, card, card.match.fits_place) for card in own for written in card.alerts]
    rules += [rule_of(entry, card, entry.fits(card)) for alerting in found for card, entry in alerting.entries]
    _unique(rules)
    return AlertRules(known, rules, routing_of(notifies[0] if notifies else NotifyRules()))


def is_scorecard(file: Path) -> bool:
    """Whether it has criteria; else it is a file of ``alerts:``."""
    value = read_document(file).value
    return isinstance(value, Mapping) and "criteria" in value


def _unique(rules: Iterable[Rule]) -> None:
    seen: set[tuple[str, str]] = set()
    for rule in rules:
        if (rule.scorecard, rule.name) in seen:
            raise ConfigError(f"two alert rules are named {rule.name!r}; rename one of them")
        seen.add((rule.scorecard, rule.name))
