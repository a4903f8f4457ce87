"""The fold of a rollout: inputs in their order in, decisions out.

One piece of evidence at a time, so that what evidence decides does not depend on how it was cut into batches: the same
ordered evidence gives the same decisions, at the same place, with the same ``inputs_hash``. What time decides comes
from ``now``; a log of the batches as they were folded replays that too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime

from evalpipe.rollout.decision import Decision
from evalpipe.rollout.inputs import Batch, Evidence, Health, MeterReading
from evalpipe.rollout.orders import obey
from evalpipe.rollout.outcome import evidence_asked
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState, Track
from evalpipe.rollout.turn import turn
from evalpipe.scorecard.rollout import LATENCY, TTFT

Readers = list[tuple[str, Callable[[Evidence], bool]]]
"""Names and ``take`` of the gates that read a criterion."""


def fold(plan: RolloutPlan, state: RolloutState, batch: Batch) -> tuple[RolloutState, tuple[Decision, ...]]:
    """Fold a batch (possibly empty) and return the new state and the decisions to be logged, in order.

    A decision is returned only where action, cause or gate changes, and for each order of a person, so the log holds
    turns and not ticks. Each criterion's evidence must come in the order of its ``seq``: what is at or before the
    newest folded is skipped and counted, so handing the same batch in twice changes nothing (its orders excepted). In
    a phase that has ended only orders are folded.

    Health applies to the batch that it comes with: what a suspect judge scored is set aside, so it can neither roll
    back nor advance; an outage only keeps from advancing.
    """
    state = state.copy()
    return state, fold_into(plan, state, batch)


def replay(
    plan: RolloutPlan, started_at: datetime, batches: Iterable[Batch]
) -> tuple[RolloutState, tuple[Decision, ...]]:
    """Every decision that the batches of a log lead to, from the start."""
    state = RolloutState.start(plan, started_at)
    return state, tuple(decision for batch in batches for decision in fold_into(plan, state, batch))


def fold_into(plan: RolloutPlan, state: RolloutState, batch: Batch) -> tuple[Decision, ...]:
    """``fold``, but it changes ``state``: for those who have just loaded it and keep no other."""
    log: list[Decision] = []
    for order in batch.overrides:
        obey(plan, state, order, batch.now, log)
    if state.ended:
        return tuple(log)
    if batch.health != state.health:
        _change_health(state, batch.health)
    for reading in batch.meter:
        if not state.ended:
            _meter(plan, state, reading, log)
    if batch.evidence and not state.ended:
        _evidence(plan, state, batch, log)
    if not state.ended:
        turn(plan, state, batch.now, log)
    return tuple(log)


def _change_health(state: RolloutState, health: Health) -> None:
    state.health = health
    state.chain.add_line(f"health|{health.judge}|{health.detail}")
    state.due = state.clock


def _meter(plan: RolloutPlan, state: RolloutState, reading: MeterReading, log: list[Decision]) -> None:
    """Readings are told at the rollout's own clock: theirs may be ahead of the evidence that is still to come."""
    if state.since is not None and reading.at < state.since:
        state.stale += 1
        return
    state.chain.add_line(_meter_line(reading))
    for criterion, bins in ((LATENCY, reading.latency), (TTFT, reading.ttft)):
        if bins and criterion in state.tracks:
            newest = state.tracks[criterion].at
            newest[reading.arm] = max(newest.get(reading.arm, reading.at), reading.at)
    goal, moved = evidence_asked(plan, state), False
    for name, gate in state.gates.items():
        if gate.take_meter(reading):
            moved = _moved(state, name, goal) or moved
    if moved:
        turn(plan, state, state.clock, log)


def _evidence(plan: RolloutPlan, state: RolloutState, batch: Batch, log: list[Decision]) -> None:
    """The loop that a million scores go through: what is not needed for each of them is not done here."""
    suspect, now, clock = batch.health.judge == "suspect", batch.now, state.clock
    goal, readers = evidence_asked(plan, state), _readers(plan, state)
    tracks, folded = state.tracks, list[Evidence]()
    for evidence in batch.evidence:
        track = tracks.get(evidence.criterion)
        if track is None or evidence.seq <= track.seq:
            state.repeated += track is not None
            continue
        track.seq = state.evidence_seq = evidence.seq
        folded.append(evidence)
        if evidence.at > clock:
            clock = min(evidence.at, now)
        taken = evidence._replace(suspect=True) if suspect else evidence
        if _take(state, track, taken, readers[evidence.criterion], goal) or clock >= state.due:
            state.chain.extend(folded)
            folded.clear()
            turn(plan, state, clock, log)
            if state.ended:
                return
            goal, readers = evidence_asked(plan, state), _readers(plan, state)
    state.chain.extend(folded)
    state.clock = max(state.clock, clock)


def _take(state: RolloutState, track: Track, evidence: Evidence, readers: Readers, goal: int) -> bool:
    """Hand one piece of evidence to the gates that read it; whether that can change what follows."""
    _, at, arm, _, criterion, value, _, _, _, pair, _, _ = evidence
    if (state.since is not None and at < state.since) or (pair and not state.shadowing):
        state.stale += 1  # captured before the gates began, or a pair where none are compared
        return False
    moved = False
    if value is not None:
        newest = track.at.get(arm)
        if newest is None or at > newest:
            track.at[arm] = at
        if state.silent:
            moved = (criterion, arm) in state.silent
    for name, take in readers:
        if take(evidence):
            moved = _moved(state, name, goal) or moved
    return moved


def _readers(plan: RolloutPlan, state: RolloutState) -> dict[str, Readers]:
    readers: dict[str, Readers] = {criterion: [] for criterion in state.tracks}
    for gate in plan.gates:
        if gate.name in state.gates:
            for criterion in gate.reads:
                readers[criterion].append((gate.name, state.gates[gate.name].take))
    return readers


def _moved(state: RolloutState, name: str, goal: int) -> bool:
    """Look again where a gate stands; whether that can change what follows: a count matters where it reaches a goal."""
    before, now = state.standings[name], state.gates[name].standing()
    state.standings[name] = now
    base = state.step_seen.get(name, 0)
    return (
        now.seen < before.seen
        or before.seen - base < goal <= now.seen - base
        or now.harmed != before.harmed
        or now.proven != before.proven
        or now.obstacle != before.obstacle
    )


def _meter_line(reading: MeterReading) -> str:
    bins = [sorted(counts.items()) for counts in (reading.latency, reading.ttft)]
    return json.dumps(["meter", reading.at.isoformat(), reading.arm, reading.calls, *bins], separators=(",", ":"))
