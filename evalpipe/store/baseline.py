"""What is known of a baseline when a rollout of its successor starts: it makes the comparison quicker."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select

from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollup import Rollup
from evalpipe.scorecard.rollout import COST, LATENCY, TTFT
from evalpipe.sketch import Sketch
from evalpipe.stats.moments import Calibration
from evalpipe.store import series
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meter_minutes, records, releases

SCORES_OF: Final = timedelta(days=7)
CALLS_OF: Final = timedelta(hours=1)
"""How far back scores, costs and latencies are looked at; of the latter two there are many."""
LEAST: Final = 30
LEAST_CALLS: Final = 1_000
"""With fewer scores or costs, or calls, nothing is known."""
MOST: Final = 300
"""Past scores stand for so many at the most: what comes soon outweighs them."""
LEAST_VARIANCE: Final = 1e-4
_SKETCHES: Final = {LATENCY: "latency", TTFT: "ttft"}


def calibrated(tx: Transaction, plan: RolloutPlan, environment: str, scorecard: str, now: datetime) -> RolloutPlan:
    """The plan with what is known of its baseline, where a gate says nothing of it itself."""
    open_gates = [gate for gate in plan.gates if gate.calibration is None and gate.kind not in {"safety", "ratio"}]
    if not open_gates:
        return plan
    place = {"service": plan.service, "environment": environment, "variant": plan.baseline}
    scores = _scores(tx, scorecard, now, **place)
    found = {gate.name: _known(tx, gate, scores, now, place) for gate in open_gates}
    gates = (replace(gate, calibration=found.get(gate.name, gate.calibration)) for gate in plan.gates)
    return replace(plan, gates=tuple(gates))


def _known(
    tx: Transaction, gate: Gate, scores: dict[str, Calibration], now: datetime, place: dict[str, str]
) -> Calibration | None:
    if gate.kind == "latency":
        return _quantile(tx, gate, now, **place)
    return _costs(tx, now, **place) if gate.criterion == COST else scores.get(gate.criterion)


def _scores(tx: Transaction, scorecard: str, now: datetime, **place: str) -> dict[str, Calibration]:
    """By criterion, in the newest epoch of each."""
    found = series.read_sums(tx, now - SCORES_OF, None, scorecard=scorecard, **place)
    newest = {one.criterion: one.epoch for _, one, rollup in found if rollup.n_scored}
    sums: dict[str, Rollup] = {}
    for _, one, rollup in found:
        if one.epoch == newest.get(one.criterion):
            sums.setdefault(one.criterion, Rollup()).merge(rollup)
    made = {name: _calibration(s.n_scored, s.sum_w, s.sum_wx, s.sum_wx2) for name, s in sums.items()}
    return {name: known for name, known in made.items() if known is not None}


def _costs(tx: Transaction, now: datetime, **place: str) -> Calibration | None:
    weight, cost = 1.0 / records.c.probability, records.c.cost_usd
    query = select(func.count(), func.sum(weight), func.sum(weight * cost), func.sum(weight * cost * cost)).where(
        *(records.c[name] == value for name, value in place.items()),
        records.c.captured_at >= now - CALLS_OF,
        cost.is_not(None),
    )
    n, weights, sum_, squares = tx.connection.execute(query).one()
    return _calibration(n, float(weights), float(sum_), float(squares), least_variance=0.0) if n else None


def _quantile(tx: Transaction, gate: Gate, now: datetime, **place: str) -> Calibration | None:
    """A quantile of all calls of the last hour, as the mean."""
    column: Any = meter_minutes.c[_SKETCHES.get(gate.criterion, "latency")]
    query = (
        select(column)
        .join(releases, releases.c.release_id == meter_minutes.c.release_id)
        .where(
            *(releases.c[name] == value for name, value in place.items()),
            meter_minutes.c.minute_at >= now - CALLS_OF,
        )
    )
    merged = Sketch()
    for wire in tx.connection.scalars(query):
        merged.merge(Sketch.from_wire(wire))
    quantile = merged.quantile(gate.quantile)
    if merged.count < LEAST_CALLS or not quantile:
        return None
    return Calibration(quantile, quantile, min(MOST, merged.count))


def _calibration(
    n: int, weights: float, sum_: float, squares: float, *, least_variance: float = LEAST_VARIANCE
) -> Calibration | None:
    if n < LEAST or weights <= 0.0:
        return None
    mean = sum_ / weights
    variance = max(squares / weights - mean * mean, least_variance)
    return Calibration(mean, variance, min(MOST, n)) if mean > 0.0 and variance > 0.0 else None
