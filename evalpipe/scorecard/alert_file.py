"""Files of ``alerts:``: rules beside those of scorecards, and who hears of alerts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from evalpipe.errors import ScorecardError
from evalpipe.scorecard.alert_checks import HOMELESS, alert_problems, detector_problems, names_of
from evalpipe.scorecard.alert_rule import AlertRule
from evalpipe.scorecard.checks import Found, Loc, mappings, nearest, twice
from evalpipe.scorecard.criterion import Written
from evalpipe.scorecard.document import Document
from evalpipe.scorecard.load import Names, scorecard_files
from evalpipe.scorecard.model import Match, Scorecard
from evalpipe.scorecard.notify_rules import NotifyRules, notify_problems
from evalpipe.scorecard.policy import read_document
from evalpipe.scorecard.wording import worded

OUTSIDE: Final = ""
"""The scorecard of a rule that belongs to none."""
_EVERYWHERE: Final = Match()


class AlertEntry(AlertRule):
    """One rule of a file of ``alerts:``."""

    scorecard: str = Field(
        default=OUTSIDE,
        description="Whose criteria it reads; not needed by detectors that read none (cost, latency, coverage ...).",
    )
    match: Match | None = Field(
        default=None, description="Where it looks; where the scorecard applies without it, or everywhere."
    )

    def fits(self, card: Scorecard | None) -> Callable[[Any], bool]:
        """Whether a place (with service, environment, variant and feature) belongs to it; ``card`` is its scorecard."""
        match = self.match or (card.match if card is not None else _EVERYWHERE)
        return match.fits_place


class AlertFile(Written):
    """A file of ``alerts:``."""

    alerts: list[AlertEntry] = Field(default_factory=list, description="Each a rule.")
    notify: NotifyRules | None = Field(default=None, description="Who hears of alerts; in one file only.")


@dataclass(slots=True)
class Alerting:
    """What files of ``alerts:`` say together.

    Attributes:
        entries: the rules, each with the scorecard that it names, or None.
        notify: who hears of alerts; None where no file says it.
    """

    entries: list[tuple[Scorecard | None, AlertEntry]] = field(default_factory=list)
    notify: NotifyRules | None = None


def load_alerts(
    path: Path | str,
    cards: Iterable[Scorecard],
    detectors: Names,
    channels: Collection[str] | None = None,
) -> Alerting:
    """The rules in a file, or in the files of a folder by name.

    Args:
        path: a file or a folder of ``*.yaml`` and ``*.yml``.
        cards: the scorecards that there are.
        detectors: the registry of detectors, whose parameters are checked too.
        channels: the names of the channels that there are; without them routes' channels are not checked.

    Raises:
        ScorecardError: one line for each problem in any of the files.
        ConfigError: there is no such file or folder.
    """
    known = {card.name: card for card in cards}
    made, problems = Alerting(), list[str]()
    rules = {(card.name, rule.name): str(card.path) for card in known.values() for rule in card.alerts}
    notifies = ""
    for file in scorecard_files(Path(path), "alerts", "EVALPIPE_ALERTS"):
        document = read_document(file)
        read, found = _read(document, known, detectors, channels)
        for place, entry in enumerate(read.alerts):
            key = entry.scorecard, entry.name
            if rules.setdefault(key, document.file) != document.file:
                message = f"{rules[key]} has an alert rule {entry.name!r} of the same scorecard; rename one of them"
                found.append(Found(("alerts", place, "name"), message))
        if read.notify is not None and notifies:
            found.append(Found(("notify",), f"{notifies} says who hears of alerts; write it in one file"))
        problems += [str(problem) for problem in document.placed(found)]
        made.entries += [(known.get(entry.scorecard), entry) for entry in read.alerts]
        if read.notify is not None:
            made.notify, notifies = read.notify, document.file
    if problems:
        raise ScorecardError("\n".join(problems))
    return made


def _read(
    document: Document, cards: Mapping[str, Scorecard], detectors: Names, channels: Collection[str] | None
) -> tuple[AlertFile, list[Found]]:
    read, found = AlertFile(), list[Found]()
    if document.value is not None or not document.problems:
        try:
            read = AlertFile.model_validate(document.value if document.value is not None else {})
        except ValidationError as error:
            found += worded(error, AlertFile)
    value = document.value if isinstance(document.value, Mapping) else {}
    rows = dict(mappings(value.get("alerts")))
    found += twice("alerts", {i: _named(row) for i, row in rows.items()}, "name", "alert rules are named")
    for place, row in rows.items():
        found += _rule_problems(row, ("alerts", place), cards, detectors)
    if read.notify is not None and channels is not None:
        found += [Found(("notify", *loc), message) for loc, message in notify_problems(read.notify, channels)]
    return read, found


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rules of two scorecards may have one name."""
    name = row.get("name")
    card = row.get("scorecard")
    return {"name": f"{card}/{name}" if isinstance(card, str) and card and isinstance(name, str) else name}


def _rule_problems(
    row: Mapping[str, Any], loc: Loc, cards: Mapping[str, Scorecard], detectors: Names
) -> Iterator[Found]:
    name = row.get("scorecard")
    card = cards.get(name) if isinstance(name, str) else None
    if isinstance(name, str) and name and card is None:
        yield Found((*loc, "scorecard"), f"no scorecard named {name!r}{nearest(name, cards)}")
        return
    plain = card.body() if card is not None else {}
    yield from alert_problems(row, loc, plain)
    if card is None and isinstance(row.get("mean"), Mapping):
        yield Found(loc, HOMELESS.format(row.get("criterion")))
    yield from detector_problems(row, loc, detectors, names_of(plain) if card is not None else None)
