"""Metrics of alerts, of what evaluates and tells them, and of what they compare with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.core import Metric

from evalpipe.api.metric_families import counter, gauge, one
from evalpipe.store.alert_totals import Around, is_acked
from evalpipe.store.evaluations import Evaluation

STATES = ("inactive", "pending", "firing", "resolved")
ALERT = ("scorecard", "rule", "kind", "service", "environment", "variant", "feature", "severity", "dry_run")
"""Labels of an alert. Its release and its own labels are left out: they would be ever more."""


def families(around: Around, at: datetime) -> list[Metric]:
    """All of them."""
    return [*_of_alerts(around), *_of_evaluation(around, at), *_of_telling(around, at), *_of_normal(around, at)]


def _of_alerts(around: Around) -> list[Metric]:
    states: Counter[tuple[str, ...]] = Counter()
    acked: Counter[tuple[str, ...]] = Counter()
    muted: Counter[tuple[str, ...]] = Counter()
    for row in around.shown:
        labels = (*(str(getattr(row, name)) for name in ALERT[:-1]), _bool(row.dry_run))
        states.update({(*labels, state): int(row.status == state) for state in STATES})
        if row.status == "firing":
            acked[labels] += is_acked(row)
            muted[labels] += bool(row.muted_by)
    counted = [([row.kind, _bool(row.dry_run), row.status], row.n) for row in around.counted]
    what = "Of the alerts that fire with these labels, how many"
    return [
        gauge("alerts", "Alerts, all of them.", ["kind", "dry_run", "state"], counted),
        gauge("alert_state", "Alerts with these labels in this state, mostly 1 or 0; the thousand most urgent ones.",
              [*ALERT, "state"], states.items()),
        gauge("alert_acked", f"{what} somebody has taken.", ALERT, acked.items()),
        gauge("alert_muted", f"{what} a silence or another alert keeps from being told.", ALERT, muted.items()),
    ]  # fmt: skip


def _of_evaluation(around: Around, at: datetime) -> list[Metric]:
    rows, oldest = around.growths
    found: list[Metric] = [
        one("growth_waiting", "Commits of scores that alert rules have not seen.", rows),
        one(
            "growth_oldest_seconds",
            "How long the oldest of these has waited: the lag of alert rules.",
            _age(oldest, at),
        ),
    ]
    last: Evaluation | None = around.evaluation
    if last is None:
        return found
    return [
        *found,
        one("evaluation_age_seconds", "How long ago the alert rules were last evaluated.", _age(last.at, at)),
        one("evaluation_seconds", "How long that took.", last.seconds),
        one("evaluation_rules", "Alert rules that it evaluated.", last.rules),
        one("evaluation_alerts", "Alerts that these rules have.", last.alerts),
        gauge("evaluation_errors", "Places at which a rule could not be evaluated.", ["scorecard", "rule"],
              _by_rule(last.errors)),
    ]  # fmt: skip


def _of_telling(around: Around, at: datetime) -> list[Metric]:
    told = [([row.cause, row.severity], row.n) for row in around.notices]
    waiting, oldest = around.exports
    return [
        counter("notices", "Notices of alerts made today.", ["cause", "severity"], told),
        one("silences_active", "Silences that mute now.", around.silences),
        one("exports_waiting", "Scores owed to the OpenTelemetry endpoint.", waiting),
        one("exports_oldest_seconds", "How long the oldest of these has waited.", _age(oldest, at)),
    ]


def _of_normal(around: Around, at: datetime) -> list[Metric]:
    place = ["service", "environment", "variant"]
    ages = [([row.service, row.environment, row.variant], _age(row.until_at, at)) for row in around.baselines]
    name = ["fingerprint"]
    asked = [([row.name], _age(row.round_at, at)) for row in around.prints if row.round_at is not None]
    return [
        gauge("baseline_age_seconds", "How old the newest data of the newest baseline in use is.", place, ages),
        gauge("fingerprint_rounds", "Rounds of answers since its reference began.", name, [
            ([row.name], row.rounds) for row in around.prints
        ]),
        gauge("fingerprint_age_seconds", "How long ago it was last asked.", name, asked),
        gauge("fingerprint_failed", "1 if its last round failed.", name, [
            ([row.name], bool(row.error)) for row in around.prints
        ]),
    ]  # fmt: skip


def _by_rule(errors: Mapping[str, int]) -> Iterable[tuple[list[str], float]]:
    for name, n in errors.items():
        scorecard, _, rule = name.rpartition("/")
        yield [scorecard, rule], n


def _bool(value: Any) -> str:
    return "true" if value else "false"


def _age(since: datetime | None, at: datetime) -> float:
    return 0.0 if since is None else max(0.0, (at - since).total_seconds())
