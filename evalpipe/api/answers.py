"""What the API answers, field by field. Unknown is null, never 0; NaN and infinity do not occur."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from evalpipe.score import Status


class ScoreAnswer(BaseModel):
    """What a scorer found out about one record and one criterion."""

    record_id: str
    criterion: str
    scorecard: str
    scorecard_version: str
    epoch: str = Field(description="Comparable scores have the same epoch: one definition, one judge.")
    service: str
    feature: str
    environment: str
    variant: str
    release_id: str
    captured_at: datetime
    scored_at: datetime
    status: Status = Field(description="Only `scored` has a value; an error says nothing about the record.")
    value: float | None = Field(description="In [0, 1], where 1 is good; null unless the status is `scored`.")
    label: str
    explanation: str = Field(description="Why; for another status than `scored` the reason. May quote users.")
    weight: float = Field(description="1 / the probability with which this record was captured and judged.")
    scorer: str = Field(description="`heuristic:name@version`, or the judge's version.")
    cost_usd: float
    arm: str = Field(description="`served`, or `shadow`: an answer that nobody saw.")


class Scores(BaseModel):
    """A page of scores, newest first."""

    scores: list[ScoreAnswer]
    next: str | None = Field(description="Ask again with `cursor` set to this for the next page; null on the last.")


class Point(BaseModel):
    """The scores of one bucket."""

    at: datetime = Field(description="Start of the bucket.")
    n_scored: int
    n_skipped: int
    n_abstained: int
    n_error: int
    mean: float | None = Field(
        description="Raw, as the judge says: weighted mean of the scored values; null without any."
    )
    p50: float | None = Field(description="The middle of the scored values, unweighted, to 0.01; null without any.")
    p99: float | None = Field(description="99 % of the scored values are at most this, to 0.01.")
    low: float | None = Field(description="Lower end of its 95 % interval, raw too, for one look; rules do not use it.")
    high: float | None = Field(description="Upper end.")
    n_effective: float | None = Field(description="Scores that equal weights would need for the same precision.")
    corrected_mean: float | None = Field(
        description="What people would have said: `mean` corrected for the judge's measured error. Null without a "
        "calibration of this epoch, and where it cannot tell."
    )
    corrected_low: float | None = Field(description="Lower end of its 95 % interval, the judge's error included.")
    corrected_high: float | None = Field(description="Upper end.")
    correction: Literal["rogan-gladen", "ppi"] | None = Field(
        description="How: by sensitivity and specificity (pass and fail), or prediction-powered (means)."
    )
    correction_reason: str = Field(description="Why there is no corrected mean; empty where there is one.")
    cost_usd: float = Field(description="What the grades behind the scores cost.")


class SeriesAnswer(BaseModel):
    """One criterion of one variant in one epoch: points that may be compared. A new epoch is a new series."""

    service: str
    environment: str
    variant: str
    scorecard: str
    criterion: str
    epoch: str
    calibrated_at: datetime | None = Field(
        description="When the judge was last measured in this epoch: that is what corrects; null if never."
    )
    calibration_n: int | None = Field(description="Labelled records that it was measured on.")
    points: list[Point] = Field(description="In order of time; buckets without any score are left out.")


class SeriesList(BaseModel):
    """Series, by their first point."""

    bucket_s: int
    series: list[SeriesAnswer]


class LedgerLine(BaseModel):
    """What became of the calls of one hour: each number is counted by itself, none is computed as the rest."""

    hour_at: datetime = Field(description="The hour in which the records were captured.")
    service: str
    scorecard: str = Field(
        description="Empty counts records; a name those under that scorecard; name@version those rescored."
    )
    observed: int = Field(description="Calls that hooks saw.")
    not_sampled: int = Field(description="Calls that the hook did not capture.")
    sampled: int = Field(description="Calls that the hook captured.")
    unmetered: int = Field(description="Arrived before their hook's counters; part of observed and sampled.")
    scored: int = Field(description="At least one criterion has a value, and none an error.")
    skipped: int = Field(description="No criterion applied.")
    abstained: int = Field(description="Scorers looked and could not tell.")
    error: int = Field(description="A scorer broke.")
    dead: int = Field(description="Could not be read, or judged after all attempts; kept with the reason.")
    shed: int = Field(description="Dropped by a hook because its buffer or the queue was full.")
    lost: int = Field(description="Enqueued, as the hook says, and nowhere since.")
    in_flight: int = Field(description="Waits in the queue, or for a judge.")
    difference: int = Field(description="Sampled minus all that became of it: 0 at rest.")


class LedgerAnswer(BaseModel):
    """The ledger, by hour, service and scorecard."""

    lines: list[LedgerLine]
    difference: int = Field(description="Sum of the lines' differences without their signs.")
    lag_s: float = Field(description="Hooks' counters and arrivals may differ for so long under traffic.")


class Quantiles(BaseModel):
    """Of a duration in ms; each within 0.5 %."""

    p50: float
    p90: float
    p99: float


class MeterAnswer(BaseModel):
    """What was counted on all calls of one release and feature."""

    service: str
    environment: str
    variant: str
    release_id: str
    feature: str
    calls: int
    errors: int
    error_rate: float | None
    sampled: int = Field(description="Calls that were captured.")
    not_sampled: int
    shed: int = Field(description="Captured and dropped by a hook.")
    input_tokens: int
    cached_tokens: int = Field(description="The part of the input tokens that the provider had cached.")
    output_tokens: int
    cost_usd: float = Field(description="As applications gave it, or by the price list; without the unpriced calls.")
    unpriced: int = Field(description="Calls of a model without a known price: what they cost is unknown.")
    screened: int = Field(description="Answers that the refusal screen looked at.")
    refusals: int
    refusal_rate: float | None = Field(description="Of the screened.")
    blocked: dict[str, int] = Field(description="Calls refused before they were made: `kill_switch`, `budget`.")
    finish_reasons: dict[str, int]
    latency_ms: Quantiles | None
    ttft_ms: Quantiles | None = Field(description="Time to the first token of streams.")
    tpot_ms: Quantiles | None = Field(description="Time of each output token after the first.")


class MeterList(BaseModel):
    """The meters, the busiest first."""

    meters: list[MeterAnswer]


class ProcessAnswer(BaseModel):
    """A process that a hook runs in."""

    process_id: str
    service: str
    hook_version: str
    state: str = Field(
        description="`running`; `ended` with a goodbye; `silent`: without one, so its last seconds may be uncounted."
    )
    started_at: datetime
    sent_at: datetime = Field(description="Of its latest message.")
    ended_at: datetime | None
    sequence: int = Field(description="Of its latest message.")
    messages: int = Field(description="That arrived, each after all that were numbered lower.")
    missing: int = Field(
        description="That did not, or after a later one; counters are cumulative, so the next one makes up for it."
    )
    feedback: dict[str, int]


class Processes(BaseModel):
    """The processes heard of, newest first."""

    processes: list[ProcessAnswer]


class NewestDecision(BaseModel):
    """The newest decision about a rollout, in short."""

    action: str
    cause: str
    gate: str
    reason: str
    actor: str
    decided_at: datetime


class RolloutAnswer(BaseModel):
    """A baseline and a canary that are compared."""

    rollout_id: str
    service: str
    environment: str
    scorecard: str
    scorecard_version: str
    baseline: str
    canary: str
    canary_release_id: str = Field(description="Empty until its first record arrives, if nobody named it.")
    phase: str = Field(
        description="`shadow`, `running`, `paused`; ended: `complete`, `rolled_back` (latched: a person leaves it), "
        "`aborted`, `expired`, or `superseded` by the rollout of a newer canary."
    )
    step: int = Field(description="Of the ramp, from 0.")
    percent: float | None = Field(
        description="Of the users, who should get the canary now; null where others split the traffic."
    )
    plan: dict[str, Any] = Field(description="Gates, steps, durations: frozen when it started. Durations in seconds.")
    actor: str = Field(description="Who started it; `evalpipe` where the canary's first record did.")
    reason: str
    evidence_seq: int = Field(description="Records that entered.")
    folded_seq: int = Field(description="Records that decisions have seen.")
    decision_seq: int = Field(description="Number of the newest decision; 0 before the first.")
    decision: NewestDecision | None = Field(description="The newest one; null before the first.")
    started_at: datetime
    updated_at: datetime
    rolled_back_at: datetime | None
    verified: str = Field(
        description="Of a rollback: `waiting` for the meters, `verified`, `ineffective` or `unknown`; else empty."
    )
    verified_at: datetime | None


class Rollouts(BaseModel):
    """Rollouts, newest first."""

    rollouts: list[RolloutAnswer]


class DecisionAnswer(BaseModel):
    """What was decided about a canary, with the evidence. Decisions are never changed."""

    decision_id: str
    rollout_id: str
    seq: int = Field(description="Rises with each decision of a rollout.")
    action: str = Field(description="`advance`, `hold` or `rollback`.")
    cause: str = Field(description="The kind of reason, for programs.")
    gate: str = Field(description="The gate that it is due to; empty if it is due to none alone.")
    phase: str = Field(description="That the rollout is in from then on.")
    reason: str
    actor: str = Field(description="`evalpipe`, or the person who ordered it.")
    expires_at: datetime | None = Field(description="Of what a person ordered.")
    evidence: dict[str, Any]
    inputs_hash: str = Field(description="The same inputs give the same hash: decisions can be replayed.")
    decided_at: datetime


class Decisions(BaseModel):
    """Decisions, newest first."""

    decisions: list[DecisionAnswer]


class StepAnswer(BaseModel):
    """One step of a ramp."""

    percent: float
    bake_s: float | None = Field(description="It lasts at least so long; null for 100 %, after which nothing follows.")
    min_canary: int | None = Field(description="Canary records that must have been compared in it.")
    enough: str | None = Field(description="To leave it: `no_harm` or `non_inferior`.")
    state: str = Field(description="`done`, `now`, `ended` (there, before it went back to the baseline) or `ahead`.")


class OrderAnswer(BaseModel):
    """What a person ordered of a rollout."""

    order_id: str
    rollout_id: str
    action: str = Field(description="`advance`, `rollback`, `freeze`, `resume` or `abort`.")
    actor: str
    reason: str
    at: datetime
    expires_at: datetime = Field(description="A freeze ends then; another order is void if nobody folded it by then.")
    folded_at: datetime | None = Field(description="When it became a decision; null while it waits.")


class RolloutView(RolloutAnswer):
    """A rollout with everything that is known of it."""

    frozen_until: datetime | None
    gates: list[dict[str, Any]] = Field(
        description="Where each gate stands: `estimate` and `interval` are changes of the canary (-.05 is 5 % lower), "
        "`margin` the change not tolerated, `max_e_value` the evidence of harm of `threshold` needed."
    )
    steps: list[StepAnswer]
    decisions: list[DecisionAnswer] = Field(description="The newest hundred, newest first.")
    orders: list[OrderAnswer] = Field(description="Newest first.")


class RolloutStarted(BaseModel):
    """What came of a start."""

    rollout_id: str
    new: bool = Field(description="False: it had been started before, and nothing changed.")
    superseded: list[str] = Field(description="Rollouts that it ended.")
    published: bool | None = Field(
        description="Whether hooks know its first weights; null where it sets none, false while Redis is away."
    )


class ChangeEventAnswer(BaseModel):
    """A dated change of a service."""

    change_id: str
    at: datetime
    service: str
    environment: str
    variant: str
    kind: str
    source: str
    body: dict[str, Any]
    rollout_id: str = Field(description="The rollout that it started; empty for none.")


class ChangeEvents(BaseModel):
    """Change events, newest first."""

    changes: list[ChangeEventAnswer]


class ChangeTaken(BaseModel):
    """What came of a change event."""

    change_id: str
    new: bool = Field(description="False: it was known, and nothing changed.")
    started: list[RolloutStarted]


class IncidentAnswer(BaseModel):
    """What an alert or a rollback opened."""

    incident_id: str
    service: str
    severity: str
    title: str
    source: str
    evidence: dict[str, Any]
    timeline: list[dict[str, Any]]
    opened_at: datetime
    resolved_at: datetime | None


class Incidents(BaseModel):
    """Incidents, newest first."""

    incidents: list[IncidentAnswer]


class DeliveryAnswer(BaseModel):
    """A notification, and whether it arrived."""

    event_id: str
    type: str
    subject: str
    channel: str
    state: str = Field(description="`pending`, `delivered`, `overtaken` or `dead`.")
    attempts: int
    next_attempt_at: datetime
    reason: str = Field(description="The last error.")
    created_at: datetime
    delivered_at: datetime | None


class Deliveries(BaseModel):
    """Notifications, newest first."""

    deliveries: list[DeliveryAnswer]


class WorkAnswer(BaseModel):
    """A judge call that is owed, done or dead."""

    work_id: str
    scorecard: str
    scorecard_version: str
    criterion: str
    origin: str
    state: str
    due_at: datetime
    attempts: int
    reason: str


class GradeAnswer(BaseModel):
    """What a judge said, with what it took."""

    work_id: str
    judge_version: str
    status: str
    value: float | None
    label: str
    explanation: str
    quotation: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float | None
    latency_ms: float | None
    graded_at: datetime


class Entry(BaseModel):
    """A record's place in a rollout."""

    rollout_id: str
    arm: str
    seq: int
    folded_seq: int = Field(description="Decisions have seen the record once this is `seq` or more.")
    phase: str


class FeedbackAnswer(BaseModel):
    """What somebody said of an answer."""

    feedback_id: str
    trace_id: str
    record_id: str = Field(description="Empty where it is about the whole trace.")
    value: float | None = Field(description="From 0 (bad) to 1 (good) by custom; null where none was given.")
    label: str
    comment: str = Field(description="In their words, redacted.")
    user_id: str
    at: datetime


class RecordAnswer(BaseModel):
    """One record with all that happened to it; not what was said in it."""

    record_id: str
    trace_id: str
    service: str
    feature: str
    environment: str
    variant: str
    release_id: str
    captured_at: datetime
    ingested_at: datetime
    probability: float
    stratum: str
    reason: str = Field(description="Why the sampler kept it.")
    latency_ms: float | None
    cost_usd: float | None
    outcome: str = Field(description="As the ledger counts it: scored, skipped, abstained, error, dead or in_flight.")
    erased: bool = Field(description="Its payload is gone, by erasure or retention.")
    scores: list[ScoreAnswer]
    work: list[WorkAnswer]
    grades: list[GradeAnswer]
    rollouts: list[Entry]
    feedback: list[FeedbackAnswer]


class DeadLetterAnswer(BaseModel):
    """Bytes that could not be read, without the bytes."""

    dead_letter_id: str
    kind: str
    reason: str
    n_records: int
    created_at: datetime


class Why(BaseModel):
    """The records of a trace; or the dead letters that its id occurs in, and feedback that waits for its record."""

    records: list[RecordAnswer]
    dead_letters: list[DeadLetterAnswer]
    feedback: list[FeedbackAnswer] = Field(description="Of a trace whose records are not in the store.")
