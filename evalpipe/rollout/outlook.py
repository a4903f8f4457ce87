"""How long a rollout will take, what harm it will see, and what its judges will cost: reckoned before it starts.

Everything goes by the harmonic number of the arms' scores, h = n_b n_c / (n_b + n_c): a matched-block test at alpha
needs h = 2.2 ln(1/alpha) s^2 / (change x mean)^2 in the median, with the s and mean of one score (2 is the Gaussian
bound; the exact one is 11-19 % higher for scores that pile up at 1). One run in ten takes 2.1 times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import erfc, log, sqrt
from typing import Final

from evalpipe.rollout.plan import Gate, RolloutPlan, Step

FACTOR: Final = 2.2
TAIL_FACTOR: Final = 2.7
"""Instead, for exceedances of a quantile: events of 1 % are far from Gaussian (measured: 21,300 queries at 9:1)."""
SLOW: Final = 2.1
"""The 90th percentile of the time to a decision, in medians."""
MINUTES_A_DAY: Final = 1_440.0
PAIRS_AGREE: Final = 0.6
"""Correlation of two answers to the same input that is assumed in the shadow phase."""
PROVING: Final = ("quality", "rate", "cost", "latency")


@dataclass(frozen=True, slots=True)
class Baseline:
    """One criterion as the baseline has it.

    Attributes:
        mean, sd: of one value; of a latency, sd is that of its logarithm, and the mean does not matter.
        judged: a judge grades it, so the budget bounds how many values there are.
    """

    mean: float
    sd: float
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Traffic:
    """What flows.

    Attributes:
        per_minute: queries of users, or conversations where several queries have one score.
        judged_per_minute: graded records that the budget allows; None without a bound.
        calls_per_record: judge calls for one graded record.
        usd_per_call: None if nobody knows.
    """

    per_minute: float
    judged_per_minute: float | None = None
    calls_per_record: int = 1
    usd_per_call: float | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase or step.

    Attributes:
        name: ``shadow``, or the percent of the canary.
        minutes: how long it lasts, in the median.
        because: what it waits for the longest.
        queries: of users in that time.
        canary: graded records of the canary in that time.
        calls: of the judges in that time.
    """

    name: str
    minutes: float
    because: str
    queries: float
    canary: float
    calls: float


@dataclass(frozen=True, slots=True)
class GateOutlook:
    """What one gate will do.

    Attributes:
        gate: its name.
        margin: the change that is not tolerated, as a share of the baseline's mean.
        proof_minutes: from the first step until harm of the margin is ruled out, if there is none; None: never.
        smallest: the smallest change that it will probably have seen by the end of the ramp, as a share.
        harm_minutes: by the change, how long until it is found in the ramp; None: not before its end.
    """

    gate: str
    margin: float
    proof_minutes: float | None
    smallest: float
    harm_minutes: Mapping[float, float | None]


@dataclass(frozen=True, slots=True)
class Outlook:
    """Of one rollout: its phases, its gates, and what should be known."""

    phases: tuple[Phase, ...]
    gates: tuple[GateOutlook, ...]
    warnings: tuple[str, ...]

    @property
    def minutes(self) -> float:
        """All phases together, in the median."""
        return sum(phase.minutes for phase in self.phases)

    @property
    def calls(self) -> float:
        """Judge calls of all phases."""
        return sum(phase.calls for phase in self.phases)


def needed(gate: Gate, of: Baseline, change: float, alpha: float) -> float:
    """The harmonic number of values at which a change (a share of the mean) is found or excluded, in the median."""
    if gate.kind == "latency":
        rate = 1.0 - gate.quantile
        gap = _exceeding(of.sd, gate.quantile, 1.0 + change) - rate
        return TAIL_FACTOR * log(1.0 / alpha) * rate * (1.0 - rate) / gap**2
    return FACTOR * log(1.0 / alpha) * (of.sd / (change * of.mean)) ** 2


def _exceeding(sigma: float, quantile: float, factor: float) -> float:
    """Share of a log-normal's values beyond its quantile once all are multiplied by ``factor``."""
    low, high = 0.0, 10.0
    for _ in range(60):
        z = (low + high) / 2.0
        low, high = (z, high) if 0.5 * erfc(z / sqrt(2.0)) > 1.0 - quantile else (low, z)
    return 0.5 * erfc((low - log(factor) / sigma) / sqrt(2.0))


def outlook(plan: RolloutPlan, traffic: Traffic, baselines: Mapping[str, Baseline]) -> Outlook:
    """What a plan will take at this traffic.

    Args:
        plan: with steps; without any it is one comparison at one half.
        traffic: what flows.
        baselines: by criterion; a gate on another criterion is passed over with a warning.
    """
    gates = [gate for gate in plan.gates if gate.kind in PROVING and gate.criterion in baselines]
    steps = plan.steps or (Step(50.0, enough="non_inferior"),)
    phases: list[Phase] = []
    if plan.shadow is not None:
        phases.append(_shadow(plan, traffic, gates, baselines))
    seen = dict.fromkeys((gate.name for gate in gates), 0.0)
    course: list[tuple[Step, float]] = []
    for step in steps:
        minutes, because = _lasts(plan, step, traffic, gates, baselines, seen)
        course.append((step, minutes))
        rates = {gate.name: _rates(plan, step, traffic, baselines[gate.criterion], gate) for gate in gates}
        for gate in gates:
            seen[gate.name] += _harmonic(*rates[gate.name]) * minutes
        baseline, canary = _captured(plan, step, traffic, judged=True)
        graded = canary * minutes
        calls = (baseline + canary) * minutes * traffic.calls_per_record
        phases.append(Phase(f"{step.percent:g}%", minutes, because, traffic.per_minute * minutes, graded, calls))
    outlooks = tuple(_of_gate(gate, plan, traffic, baselines[gate.criterion], course) for gate in gates)
    made = Outlook(tuple(phases), outlooks, ())
    return Outlook(made.phases, made.gates, tuple(_warnings(plan, made, baselines)))


def _captured(plan: RolloutPlan, step: Step, traffic: Traffic, *, judged: bool) -> tuple[float, float]:
    """Records a minute of baseline and canary that are captured (and graded): as many of one as of the other."""
    share = step.percent / 100.0
    canary = traffic.per_minute * share * plan.sample
    most = traffic.judged_per_minute
    if judged and most is not None:
        canary = min(canary, max(most / 2.0, most - traffic.per_minute * (1.0 - share) * plan.sample))
    baseline = min(traffic.per_minute * (1.0 - share) * plan.sample, canary)
    return baseline, canary


def _rates(plan: RolloutPlan, step: Step, traffic: Traffic, of: Baseline, gate: Gate) -> tuple[float, float]:
    """Values a minute of both arms that a gate compares; latency is seen by the meter on all calls."""
    if gate.kind == "latency":
        share = step.percent / 100.0
        return traffic.per_minute * (1.0 - share), traffic.per_minute * share
    return _captured(plan, step, traffic, judged=of.judged)


def _harmonic(baseline: float, canary: float) -> float:
    return baseline * canary / (baseline + canary) if baseline > 0.0 and canary > 0.0 else 0.0


def _lasts(
    plan: RolloutPlan,
    step: Step,
    traffic: Traffic,
    gates: Sequence[Gate],
    baselines: Mapping[str, Baseline],
    seen: Mapping[str, float],
) -> tuple[float, str]:
    """How long a step takes, and what it waits for the longest."""
    waits = [(step.bake.total_seconds() / 60.0, "bake")]
    for gate in gates:
        if gate.role == "signal" or gate.dry_run:
            continue
        baseline, canary = _rates(plan, step, traffic, baselines[gate.criterion], gate)
        if canary <= 0.0:
            waits.append((float("inf"), f"{gate.name}: no value of the canary"))
            continue
        least = max(step.min_canary, gate.min_canary if step.enough == "non_inferior" else 0)
        waits.append((least / canary, f"{gate.name}: {least} canary values"))
        if step.enough == "non_inferior" and (rate := _harmonic(baseline, canary)) > 0.0:
            change = _share(gate, baselines[gate.criterion])
            left = needed(gate, baselines[gate.criterion], change, gate.advance_alpha) - seen[gate.name]
            waits.append((max(0.0, left) / rate, f"{gate.name}: proof"))
    return max(waits, key=lambda wait: wait[0])


def _share(gate: Gate, of: Baseline) -> float:
    """The margin as a share of the mean."""
    return gate.margin if gate.relative else gate.margin / of.mean


def _shadow(plan: RolloutPlan, traffic: Traffic, gates: Sequence[Gate], baselines: Mapping[str, Baseline]) -> Phase:
    """Pairs: the variance of a difference is 2 s^2 (1 - correlation)."""
    assert plan.shadow is not None
    rate = traffic.per_minute * plan.shadow.rate
    if traffic.judged_per_minute is not None:
        rate = min(rate, traffic.judged_per_minute / 2.0)
    waits = [
        (plan.shadow.min_duration.total_seconds() / 60.0, "least duration"),
        (plan.shadow.min_pairs / rate if rate else float("inf"), f"{plan.shadow.min_pairs} pairs"),
    ]
    for gate in gates:
        if gate.kind != "latency" and gate.role != "signal" and rate:
            of = baselines[gate.criterion]
            pairs = 2.0 * (1.0 - PAIRS_AGREE) * needed(gate, of, _share(gate, of), gate.advance_alpha)
            waits.append((pairs / rate, f"{gate.name}: proof in pairs"))
    minutes, because = max(waits, key=lambda wait: wait[0])
    calls = 2.0 * rate * minutes * traffic.calls_per_record
    return Phase("shadow", minutes, because, traffic.per_minute * minutes, rate * minutes, calls)


def _of_gate(
    gate: Gate, plan: RolloutPlan, traffic: Traffic, of: Baseline, course: Sequence[tuple[Step, float]]
) -> GateOutlook:
    margin = _share(gate, of)
    rates = [(_harmonic(*_rates(plan, step, traffic, of, gate)), minutes) for step, minutes in course]
    total = sum(rate * minutes for rate, minutes in rates)
    smallest = _smallest(gate, of, total, margin)
    return GateOutlook(
        gate=gate.name,
        margin=margin,
        proof_minutes=_reached(rates, needed(gate, of, margin, gate.advance_alpha), on=True),
        smallest=smallest,
        harm_minutes={
            change: _reached(rates, needed(gate, of, change, gate.alpha), on=False)
            for change in (margin, 2.0 * margin, 4.0 * margin)
            if gate.direction == "rise" or change < 1.0
        },
    )


def _reached(rates: Sequence[tuple[float, float]], wanted: float, *, on: bool) -> float | None:
    """When so much has been seen; ``on``: the last step goes on for as long as that takes."""
    passed = 0.0
    for rate, minutes in rates:
        if rate > 0.0 and wanted <= rate * minutes:
            return passed + wanted / rate
        wanted -= rate * minutes
        passed += minutes
    last = rates[-1][0]
    return passed + wanted / last if on and last > 0.0 else None


def _smallest(gate: Gate, of: Baseline, total: float, margin: float) -> float:
    """The change at which the evidence of the whole ramp is enough; never below what the second key asks for."""
    low, high = gate.estimate_share * margin, 1.0 if gate.direction == "drop" else 20.0
    if total <= 0.0:
        return high
    for _ in range(50):
        change = (low + high) / 2.0
        low, high = (low, change) if needed(gate, of, change, gate.alpha) <= total else (change, high)
    return high


def _warnings(plan: RolloutPlan, made: Outlook, baselines: Mapping[str, Baseline]) -> Iterator[str]:
    for gate in plan.gates:
        if gate.kind in PROVING and gate.criterion not in baselines:
            yield f"{gate.name}: nothing is known of {gate.criterion}, so this gate is not reckoned with"
    for phase in made.phases:
        if phase.minutes > MINUTES_A_DAY and phase.because not in ("bake", "least duration"):
            yield f"at this traffic {phase.because} takes {_days(phase.minutes)} ({phase.name})"
    yield from _late(plan, made)
    for found in made.gates:
        if found.smallest > found.margin * 1.001:
            yield (
                f"{found.gate}: by the end of the ramp it sees changes of {found.smallest:.1%} or more; one of the "
                f"margin, {found.margin:.1%}, will probably go unseen"
            )
    canary = sum(phase.canary for phase in made.phases)
    for gate in plan.gates:
        if gate.kind == "safety" and canary > 1.2 * gate.expected_canary:
            yield f"{gate.name}: expected_canary is {gate.expected_canary:,}, and {canary:,.0f} records will be graded"


def _late(plan: RolloutPlan, made: Outlook) -> Iterator[str]:
    total, most = made.minutes, plan.max_duration.total_seconds() / 60.0
    if total > most:
        yield f"it takes {_days(total)} in the median, and would expire after {_days(most)} (max_duration)"
    elif total * SLOW > most:
        yield f"one rollout in ten takes {_days(total * SLOW)} and would expire after {_days(most)} (max_duration)"


def _days(minutes: float) -> str:
    return "for ever" if minutes == float("inf") else f"{minutes / MINUTES_A_DAY:.1f} days"
