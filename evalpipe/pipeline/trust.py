"""Whether a rollout's judges can be relied on, and whether a judged series moved because its judge did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.rollout.inputs import HEALTHY, Health
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.plan import epoch_of
from evalpipe.stats.attribution import Attribution, attribute
from evalpipe.store import anchors, judge_states, series
from evalpipe.store.rollout_evidence import Reading
from evalpipe.store.sql import Transaction

OVERDUE = timedelta(seconds=60)
"""A score that is later than this means that the judge does not answer: the rollout holds, and says so."""

VersionOf = Callable[[str], str]
"""The version of the judge that a scorecard's word for a model means; may raise ConfigError."""


def judge_health(
    tx: Transaction,
    card: Scorecard | None,
    criteria: Iterable[str],
    found: Sequence[Reading],
    waits_since: datetime | None,
    now: datetime,
    version_of: VersionOf | None = None,
) -> Health:
    """Whether a rollout's judges can be relied on: a suspect one comes first, then one that gives no grades.

    Args:
        tx: the transaction.
        card: the rollout's scorecard; None if this process does not know it.
        criteria: that the gates compare.
        found: the evidence that waits to be folded.
        waits_since: arrival of the oldest of it that has no score yet; None if all has.
        now: aware UTC.
        version_of: names the judges, to find their breakers; without it late grades alone tell of an outage.
    """
    if card is not None:
        judged = [c for c in card.criteria if c.name in set(criteria) and c.judge is not None]
        if reason := _suspect(tx, card, [c.name for c in judged], found):
            return Health("suspect", reason)
        if judged and version_of is not None and (reason := _stopped(tx, card, judged, version_of)):
            return Health("outage", reason)
    if waits_since is not None and waits_since < now - OVERDUE:
        return Health("outage", f"grades are more than {OVERDUE.total_seconds():.0f} s late")
    return HEALTHY


def attribution(
    tx: Transaction, card: Scorecard, criterion: str, gap: float, now: datetime, *, since: datetime, **place: str
) -> Attribution | None:
    """Whether the judge or the product moved, where a series crossed a line; None where no judge grades the criterion.

    Args:
        tx: the transaction.
        card: of the series.
        criterion: of the series.
        gap: how far the series is beyond the line, signed as a change of the value.
        now: aware UTC.
        since: when the scores begin that crossed the line, aware UTC.
        place: service, environment and variant of the series: its newest epoch names the judge.
    """
    if criterion not in {c.name for c in card.criteria if c.judge is not None}:
        return None
    rows = anchors.health(tx, scorecard=card.name, criterion=criterion)
    if not rows:
        why = "its anchors are not graded yet"
        judge = card.criterion(criterion).judge
        if judge is not None and judge.kind == "pairwise":
            why = "a criterion of kind pairwise has no anchors"
        elif (card.name, criterion) not in anchors.counts(tx):
            why = "it has no anchors (evalpipe judge anchors add)"
        return Attribution("unknown", f"whether the judge moved is unknown: {why}")
    sums = series.read_sums(tx, since, None, scorecard=card.name, criterion=criterion, **place)
    epochs = [one.epoch for _, one, rollup in sums if rollup.n_scored]
    for row in rows:
        if epochs and epoch_of(card, card.criterion(criterion), row["judge_version"]) == epochs[-1]:
            return attribute(anchors.standing(row), gap, now, since + (now - since) / 2)
    return Attribution("unknown", "whether the judge moved is unknown: of who gave these scores no anchors are graded")


def told(tx: Transaction, scorecard: str, criterion: str) -> dict[str, Any] | None:
    """How the judge of a criterion stands, for a decision's notification; None where nobody set anchors."""
    rows = anchors.health(tx, scorecard=scorecard, criterion=criterion)
    if not rows:
        return None
    row = rows[0]
    return {
        "judge": row["judge_version"],
        "state": row["state"],
        "reason": row["reason"],
        "anchors": row["n"],
        "tested_at": row["tested_at"].isoformat() if row["tested_at"] is not None else None,
    }


def _suspect(tx: Transaction, card: Scorecard, criteria: Sequence[str], found: Sequence[Reading]) -> str:
    """Why one of the judges is suspect: the one that grades a criterion now, or one that graded this evidence."""
    if not criteria:
        return ""
    epochs = {(reading.criterion, reading.epoch) for reading in found}
    for row in anchors.health(tx, scorecard=card.name):
        name = row["criterion"]
        if row["state"] != "suspect" or name not in criteria:
            continue
        if row["current"] or (name, epoch_of(card, card.criterion(name), row["judge_version"])) in epochs:
            return f"{row['judge_version']} is suspect on {name}: {row['reason']}"
    return ""


def _stopped(tx: Transaction, card: Scorecard, judged: Sequence[Any], version_of: VersionOf) -> str:
    """Why nobody can grade one of the criteria: no step of its ladder has all its judges."""
    states = judge_states.read(tx)
    for criterion in judged:
        problems = [_first_problem(step, states, version_of) for step in criterion.judge.ladder]
        if all(problems):
            return f"{problems[0]}, and nobody else grades {card.name}/{criterion.name}"
    return ""


def _first_problem(step: Sequence[str], states: Mapping[str, judge_states.JudgeState], version_of: VersionOf) -> str:
    for model in step:
        try:
            version = version_of(model)
        except ConfigError:
            return ""  # not known here; a worker that grades will tell
        state = states.get(version)
        # Also while an open breaker tries again: an outage is over when the judge answers.
        if state is not None and state.state != "closed":
            return f"judge {version} is {state.state.replace('_', ' ')} ({state.reason or state.cause})"
    return ""
