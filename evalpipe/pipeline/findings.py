"""What scorers found out about records, on its way into the store: shared by ingest, judging and rescoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from evalpipe.profile import Profile
from evalpipe.record import Record
from evalpipe.score import Score, skipped
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.judged import skip_reason
from evalpipe.scorers.plan import Finding, ScoringPlan, epoch_of, is_flag, nothing_to_confirm
from evalpipe.store import intake, ledgers, series, works
from evalpipe.store.ledgers import Counts, hour_of, label, outcome_of
from evalpipe.store.rollout_meter import SHADOW_VARIANT
from evalpipe.store.sql import Transaction
from evalpipe.store.works import Work

URGENCY_OF_ROLLOUT = 3
"""How much sooner the work of a running rollout is judged than the same work else."""
FIRST = -10
"""The priority of what confirms a flag: a rollout may wait for nothing else."""
NEVER_THINNED = 4
"""The last priority of which nothing is left out for want of money, and the last that a running rollout's work has."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A record with all that it leads to, ready to commit; the profile of one that is taken in."""

    record: Record
    payload: bytes
    findings: Sequence[tuple[Scorecard, Sequence[Finding]]]
    profile: Profile | None = None

    @property
    def outcome(self) -> str:
        """Of the record as a whole."""
        return _outcome([f for _, findings in self.findings for f in findings])


def score_record(record: Record, plans: Sequence[ScoringPlan]) -> list[tuple[Scorecard, list[Finding]]]:
    """What every scorecard that matches says of the record."""
    return [(plan.scorecard, plan.score(record)) for plan in plans if plan.scorecard.matches(record)]


def add_findings(
    tx: Transaction,
    scored: Sequence[Scored],
    now: datetime,
    *,
    urgent: frozenset[str] = frozenset(),
    origin: str = "ingest",
    booked: Counts | None = None,
) -> int:
    """Write scores, rollups, the scorecards' ledger lines, and the judge calls owed; returns how many of those.

    Args:
        tx: the transaction.
        scored: records with their findings.
        now: aware UTC.
        urgent: ids of records that a running rollout waits for.
        origin: ``ingest`` or ``rescore``.
        booked: further ledger lines. All lines of a transaction are written at once, in the one order in which every
            transaction locks them.
    """
    entries, owed = [], []
    counts: Counter[tuple[datetime, str, str, str]] = Counter(booked)
    for _, card in sorted({card.version: card for s in scored for card, _ in s.findings}.items()):
        intake.add_scorecard(tx, card.version, card.name, card.body(), now)
    for s in scored:
        for card, findings in s.findings:
            name = label(card.name, card.version, origin)
            key = hour_of(s.record.captured_at), s.record.release.service, name
            counts[*key, "sampled"] += 1
            if (outcome := _outcome(findings)) != "in_flight":
                counts[*key, outcome] += 1
            for finding in findings:
                if finding.score is None:
                    owed.append(_work(s.record, card, finding, s.record.record_id in urgent, origin))
                else:
                    entries.append(
                        entry(
                            s.record,
                            card,
                            finding.criterion.name,
                            finding.score,
                            epoch=finding.epoch,
                            weight=finding.weight,
                            scorer=finding.scorer,
                            arrived=origin == "ingest",
                        )
                    )
    n_owed = works.add_work(tx, owed, now)
    series.add_scores(tx, entries, now)
    ledgers.count(tx, counts)
    return n_owed


def entry(
    record: Record,
    card: Scorecard,
    criterion: str,
    score: Score,
    *,
    epoch: str,
    weight: float,
    scorer: str,
    arrived: bool = True,
) -> series.Entry:
    """A score as a row of its series; ``arrived`` with its record, so that it says something about now."""
    release = record.release
    found = series.Series(
        release.service,
        record.feature,
        release.environment,
        release.variant,
        release.release_id,
        card.name,
        criterion,
        epoch,
        series.SHADOW if is_shadow(record) else series.SERVED,
    )
    made = series.Entry(record.record_id, card.version, found, record.captured_at, score, weight, scorer)
    return replace(made, grown=_in_growth(record, weight) if arrived else 0.0)


def is_shadow(record: Record) -> bool:
    """Whether a record is the answer of a shadow, which no user saw: the hook gives it the variant and the name."""
    named = record.attributes.get("shadow") or record.attributes.get("shadow_of")
    return bool(named) or record.release.variant == SHADOW_VARIANT


def _in_growth(record: Record, weight: float) -> float:
    """What a score weighs among those drawn by their rate alone.

    Nothing, where its record was kept for what it is (``keep:``, feedback): a rule that begins to fit would look like a
    change. And what drew it by its rate weighs as the rate says, also where a rule would have kept it anyhow.
    """
    if record.reason.startswith("keep:"):
        return 0.0
    if record.rate_probability is None:
        return weight
    return weight * record.probability / record.rate_probability


def _outcome(findings: Sequence[Finding]) -> str:
    if any(f.score is None for f in findings):
        return "in_flight"
    return outcome_of([f.score.status.value for f in findings if f.score is not None])


def follow_up(
    tx: Transaction, graded: Sequence[tuple[Record, Scorecard, Work, Score]], now: datetime
) -> list[series.Entry]:
    """What follows where criteria confirm the flags of those just graded: calls owed, or scores that say why not.

    In the transaction that stores the grades, and for each of them once; the caller stores the scores with its own.

    Args:
        tx: the transaction.
        graded: records with what was owed and its score.
        now: aware UTC.
    """
    owed, entries = [], []
    for record, card, item, score in graded:
        for criterion in card.criteria:
            if criterion.judge is None or criterion.judge.confirms != item.criterion:
                continue
            reason = skip_reason(criterion.judge, record)
            if is_flag(score) and reason is None:
                second = replace(item, criterion=criterion.name, fence=0, attempts=0)
                owed.append(replace(second, priority=FIRST, lane="now") if item.origin == "ingest" else second)
                continue
            why = nothing_to_confirm(item.criterion) if reason is None or not is_flag(score) else skipped(reason)
            made = entry(
                record,
                card,
                criterion.name,
                why,
                epoch=epoch_of(card, criterion, "judge"),
                weight=item.weight,
                scorer="judge",
                arrived=item.origin == "ingest",
            )
            entries.append(made)
    works.add_work(tx, owed, now)
    return entries


def _work(record: Record, card: Scorecard, finding: Finding, urgent: bool, origin: str) -> Work:
    spec = finding.criterion.judge
    assert spec is not None
    if spec.confirms and origin == "ingest":
        urgent, priority = True, FIRST
    else:
        priority = min(spec.priority - URGENCY_OF_ROLLOUT, NEVER_THINNED) if urgent else spec.priority
    return Work(
        record_id=record.record_id,
        scorecard=card.name,
        scorecard_version=card.version,
        criterion=finding.criterion.name,
        service=record.release.service,
        captured_at=record.captured_at,
        weight=finding.weight,
        priority=priority,
        origin=origin,
        lane="now" if urgent else spec.lane,
    )
