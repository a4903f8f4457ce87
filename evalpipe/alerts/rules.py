"""What an alert rule needs to be evaluated: its detector, where it looks, and the life of its alerts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import ValidationError

from evalpipe.detectors.base import Detector, DetectorParams, detectors
from evalpipe.detectors.view import NormalSpec, Place, Scope
from evalpipe.errors import ConfigError
from evalpipe.scorecard.alert_rule import AlertRule
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.wording import worded

Severity = Literal["SEV1", "SEV2", "SEV3", "SEV4"]
Policy = Literal["keep", "ok", "firing"]

LONGEST_KEY: Final = 1_000
"""Bytes of a key that a database's index takes without question."""
FIRES_AT_LEAST: Final = timedelta(minutes=1)
"""Rules are evaluated with each commit of scores, twice a second at times; so soon a firing is not taken back."""
WEEK: Final = timedelta(weeks=1)


@dataclass(frozen=True, slots=True)
class Life:
    """How an alert goes from inactive over pending and firing to resolved.

    Attributes:
        name: of its rule.
        for_: how long every evaluation must be true before the alert fires; zero fires at once.
        keep_firing_for: how long it keeps firing after the condition cleared.
        fires_at_least: how long a firing lasts at the least: who evaluates with each new score sees the mean of a young
            window cross the threshold to and fro, which is one firing and no three.
        no_data: what a finding that cannot tell counts as: ``keep`` leaves the alert as it is (CloudWatch's ``ignore``,
            Grafana's "Keep Last State"), ``ok`` counts as clear, ``firing`` as a violation.
        on_error: the same of an evaluation that failed.
        severity: of the alert and its incident; ``table`` where that follows from what is found.
    """

    name: str
    for_: timedelta = timedelta(0)
    keep_firing_for: timedelta = timedelta(0)
    fires_at_least: timedelta = timedelta(0)
    no_data: Policy = "keep"
    on_error: Policy = "keep"
    severity: Severity | Literal["table"] = "SEV3"

    def __post_init__(self) -> None:
        """Refuse durations that make no sense."""
        if min(self.for_, self.keep_firing_for, self.fires_at_least) < timedelta(0):
            raise ValueError(f"alert rule {self.name!r}: for and keep_firing_for must not be negative")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, ready to be evaluated.

    Attributes:
        name: unique in its scorecard, or in the files of ``alerts:``.
        scorecard: whose scores it reads; "" where it belongs to none.
        detector: what it looks for.
        detector_key: names the detector, its version and its parameters: states of another one mean nothing to it.
        scope: where it looks.
        life: of its alerts.
        dry_run: nobody is told, and no incident is opened.
        kill_switch: when it fires, the calls of its place are stopped.
        labels, runbook, description: for people, routes and silences.
        watched: the criterion, the value of the meter, or the detector; for people.
    """

    name: str
    scorecard: str
    detector: Detector
    detector_key: str
    scope: Scope
    life: Life
    dry_run: bool = False
    kill_switch: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    runbook: str = ""
    description: str = ""
    watched: str = ""

    @property
    def full_name(self) -> str:
        """Unique among all rules; what the states of its alerts name it by."""
        return f"{self.scorecard}/{self.name}"

    @property
    def criterion(self) -> str:
        """What its alerts are about; "" if it is no single criterion."""
        return self.watched if self.watched in self.scope.criteria else ""

    @property
    def severity(self) -> Severity | Literal["table"]:
        """Of its alerts; see ``Life``."""
        return self.life.severity

    @property
    def kind(self) -> str:
        """What its alerts are about."""
        return self.detector.kind


def rule_of(written: AlertRule, card: Scorecard | None, fits: Callable[[Place], bool]) -> Rule:
    """The rule that somebody wrote.

    Args:
        written: as it stands in the file.
        card: whose scores it reads; None for none.
        fits: whether a place (with service, environment, variant and feature) belongs to it.

    Raises:
        ConfigError: there is no such detector, or its parameters cannot work.
    """
    name, given = detector_of(written)
    params = _validated(name, given, written.name)
    built = detectors.get(name)(params)
    return Rule(
        name=written.name,
        scorecard=card.name if card is not None else "",
        detector=built,
        detector_key=_key(name, built.version, params),
        scope=Scope(
            scorecard=card.name if card is not None else "",
            inputs=built.inputs,
            criteria=tuple(built.criteria),
            fits=fits,
            by=tuple(written.by),
            normal=_normal(written),
            across_epochs=written.across_epochs,
        ),
        life=Life(
            name=written.name,
            for_=written.for_,
            keep_firing_for=written.keep_firing_for,
            fires_at_least=FIRES_AT_LEAST,
            no_data=written.no_data,
            on_error=written.on_error,
            severity=written.severity or ("SEV3" if written.detect is None else "table"),
        ),
        dry_run=written.dry_run,
        kill_switch=written.kill_switch,
        labels=dict(written.labels),
        runbook=written.runbook,
        description=written.description,
        watched=_watched(params, built) or written.watched,
    )


def _watched(params: DetectorParams, built: Detector) -> str:
    """The one criterion that is looked at, where there is one; another may confirm it."""
    return getattr(params, "criterion", "") or (built.criteria[0] if len(built.criteria) == 1 else "")


def detector_of(written: AlertRule) -> tuple[str, dict[str, Any]]:
    """The detector that a rule means, and its parameters: ``mean`` and ``meter`` are short forms."""
    if written.detect is not None:
        return written.detect, dict(written.params)
    line = written.line.model_dump(exclude_none=True)
    line |= {"window": written.window, "min_sample": written.min_sample}
    if written.meter is not None:
        return "meter", {"meter": written.meter, **line}
    return "mean", {"criterion": written.criterion, **line}


def _validated(name: str, given: Mapping[str, Any], rule: str) -> DetectorParams:
    model = detectors.get(name).Params
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        said = "; ".join(str(found) for found in worded(error, model, prefix=("params",)))
        raise ConfigError(f"alert rule {rule!r}: {said}") from None


def _normal(written: AlertRule) -> NormalSpec:
    said = written.normal
    if said is None:
        return NormalSpec() if written.detect is None else NormalSpec("baseline")
    if said.previous is not None:
        return NormalSpec("previous", span=said.previous)
    if said.seasonal is not None:
        return NormalSpec("seasonal", span=said.seasonal * WEEK)
    return NormalSpec("baseline", name=said.baseline or "latest")


def bounded_key(text: str) -> str:
    """``text`` as a key: what is too long is cut, with a digest of the whole."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= LONGEST_KEY:
        return text
    return f"{raw[: LONGEST_KEY - 17].decode('utf-8', 'ignore')}~{hashlib.sha256(raw).hexdigest()[:16]}"


def _key(name: str, version: str, params: DetectorParams) -> str:
    text = json.dumps([name, version, params.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
