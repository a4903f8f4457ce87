"""The reason of a decision: one sentence for people, with the numbers and the key of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from evalpipe.rollout.outcome import (
    COMPARING,
    Outcome,
    asked,
    bakes_until,
    evidence_asked,
    proof_asked,
    seen_in_step,
    silent_arms,
)
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.scorecard.values import format_duration

Numbers = Mapping[str, Mapping[str, Any]]


def reason(plan: RolloutPlan, state: RolloutState, outcome: Outcome, gate: Gate, numbers: Numbers, at: datetime) -> str:
    """Why ``outcome`` follows; ``gate`` is the one to show numbers of, ``numbers`` are those of all gates."""
    seen = numbers.get(gate.name, {})
    if outcome.cause == "expired":
        return _expired(plan, outcome)
    if outcome.cause == "no_data" and outcome.action == "rollback":
        return (
            f"no {gate.criterion} of {plan.canary} for {_quiet(plan)} while "
            f"{plan.baseline} goes on: rollout.gates.{gate.name}.no_data = rollback"
        )
    if outcome.action == "rollback":
        harm = _harm(gate, seen, state, outcome)
        return f"{comparison(plan, gate, seen)}; {harm}" if gate.kind in COMPARING else harm
    if outcome.action == "advance":
        return f"{_move(plan, state)}: {_advance(plan, state, numbers, at)}"
    return _obstacle(plan, state, outcome, gate, seen, at) or _waiting(plan, state, numbers, at)


def comparison(plan: RolloutPlan, gate: Gate, seen: Mapping[str, Any]) -> str:
    """The estimated change in words."""
    change, baseline, canary = seen.get("estimate"), seen.get("mean_baseline"), seen.get("mean_canary")
    what = f"p{100 * gate.quantile:g} of {gate.criterion}" if gate.kind == "latency" else gate.criterion or gate.name
    if change is None:
        return f"{what}: nothing compared yet"
    side = "below" if change < 0 else "above"
    means = "" if baseline is None or canary is None else f"{canary:.4g} against {baseline:.4g}, "
    return (
        f"{what} of {plan.canary} is {abs(change):.1%} {side} {plan.baseline} "
        f"({means}{seen.get('matched_canary') or 0} against {seen.get('matched_baseline') or 0} values)"
    )


def _harm(gate: Gate, seen: Mapping[str, Any], state: RolloutState, outcome: Outcome) -> str:
    key = f"rollout.gates.{gate.name}"
    detail = state.standings[gate.name].detail
    if outcome.cause == "confirmed_flag":
        return f"{detail or 'a flag was confirmed'} ({key}.confirm = {gate.confirm or 'none is needed'})"
    if seen.get("max_e_value") is None or seen.get("threshold") is None:
        return f"{detail or f'gate {gate.name} has found harm'} ({key}.alpha = {gate.alpha:g})"
    if detail and seen["max_e_value"] < seen["threshold"]:
        return f"harm is proven in a part of the traffic: {detail} (rollout.segments.role = guardrail)"
    proof = (
        f"evidence of harm reached E = {seen['max_e_value']:.4g} of {seen['threshold']:g} needed "
        f"({key}.alpha = {gate.alpha:g})"
    )
    if gate.kind not in COMPARING:
        return f"{detail or f'gate {gate.name} has found harm'}: {proof}"
    early = (
        f", so far beyond {key}.margin that it did not wait for {key}.min_canary = {gate.min_canary}"
        if outcome.cause == "catastrophic_harm"
        else ""
    )
    beyond = f"{gate.estimate_share:g} x {key}.margin = {_amount(gate, gate.estimate_share * gate.margin)}"
    return f"{proof}, and the {gate.direction} is beyond {beyond}{early}{f' ({detail})' if detail else ''}"


def _amount(gate: Gate, size: float) -> str:
    return f"{size:.1%}" if gate.relative else f"{size:g}"


def _expired(plan: RolloutPlan, outcome: Outcome) -> str:
    time = f"{format_duration(plan.max_duration)} (rollout.max_duration)"
    if outcome.action == "advance":
        return f"{plan.canary} was watched for {time} and no harm was found"
    return f"neither harm nor its absence was proven within {time}; all traffic goes back to {plan.baseline}"


def _quiet(plan: RolloutPlan) -> str:
    return f"{format_duration(plan.no_data_after)} (rollout.no_data_after)"


def _move(plan: RolloutPlan, state: RolloutState) -> str:
    if state.shadowing:
        return (
            f"the shadow phase is over, on to {plan.steps[0].percent:g} %" if plan.steps else "the shadow phase is over"
        )
    if not plan.steps:
        return f"{plan.canary} may take over"
    if state.step + 1 < len(plan.steps):
        return f"on from {plan.steps[state.step].percent:g} % to {plan.steps[state.step + 1].percent:g} %"
    return f"on from {plan.steps[state.step].percent:g} % to 100 %"


def _advance(plan: RolloutPlan, state: RolloutState, numbers: Numbers, at: datetime) -> str:
    waited_for = asked(plan, state, at)
    if not proof_asked(plan, state):
        least = min((seen_in_step(state, gate, standing) for gate, standing in waited_for), default=0)
        return (
            f"no gate has found harm in at least {least} canary values of this step (rollout.ramp asks for "
            f"{evidence_asked(plan, state)}); that harm is excluded is not asked here"
        )
    said = [_excluded(gate, numbers.get(gate.name, {})) for gate, standing in waited_for if standing.proven]
    return "; ".join(said) or "no gate has found harm, and none could exclude it"


def _excluded(gate: Gate, seen: Mapping[str, Any]) -> str:
    if gate.kind not in COMPARING:
        return f"gate {gate.name} has found no harm"
    key = f"rollout.gates.{gate.name}"
    text = f"a {gate.direction} of {gate.criterion} by {_amount(gate, gate.margin)} or more ({key}.margin) is excluded"
    if seen.get("max_safe_e_value") is None or seen.get("safe_threshold") is None:
        return text
    return (
        f"{text}, evidence of no harm reached E = {seen['max_safe_e_value']:.4g} of {seen['safe_threshold']:g} needed "
        f"({key}.advance_alpha = {gate.advance_alpha:g})"
    )


def _obstacle(
    plan: RolloutPlan, state: RolloutState, outcome: Outcome, gate: Gate, seen: Mapping[str, Any], at: datetime
) -> str:
    """What is in the way; "" where it is only time and evidence."""
    key, health = f"rollout.gates.{gate.name}", f" ({state.health.detail})" if state.health.detail else ""
    standing = state.standings.get(gate.name)
    detail = f" ({standing.detail})" if standing is not None and standing.detail else ""
    silent = " and the ".join(silent_arms(plan, state, gate, at)) or "canary"
    return {
        "judge_outage": f"the judge does not answer{health}; nothing advances until it does",
        "judge_suspect": f"the judge cannot be trusted{health}; nothing advances on its scores",
        "epochs_differ": f"{gate.criterion} of the two arms is scored by different versions{detail}; the "
        "comparison goes on when both arms have the same",
        "missing_scores": f"too many {gate.criterion} scores are missing{detail}; at most "
        f"{gate.max_missing:.0%} of the recent ones may",
        "unconfirmed_flag": f"a flag of {gate.criterion} waits for confirmation{detail}, {key}.confirm = "
        f"{gate.confirm or 'none'}",
        "sample_ratio": f"the arms do not get the shares that the ramp gives them{detail}, so what is compared may not "
        f"be alike; look at who is assigned how ({key}.alpha = {gate.alpha:g})",
        "no_data": f"no {gate.criterion} of the {silent} for {_quiet(plan)}, {key}.no_data = {gate.no_data}",
        "frozen": f"frozen until {_until(state)}: nothing advances before",
        "signal_harmed": f"{comparison(plan, gate, seen)}; harm is proven, and {key}.role = {gate.role} holds{detail}",
        "segment_harmed": f"{gate.criterion} is harmed in a part of the traffic{detail}, rollout.segments.role "
        "= signal holds",
        "unequal_weights": f"{gate.criterion} scores of one arm were sampled at unequal rates{detail}; set "
        f"{key}.max_weights to the largest weight (1 / sampling rate) of each arm",
        "baking": f"{_stage(plan, state)} lasts at least until {bakes_until(plan, state):%Y-%m-%d %H:%M:%S} UTC",
    }.get(outcome.cause, "")


def _until(state: RolloutState) -> str:
    return "someone resumes" if state.frozen_until is None else f"{state.frozen_until:%Y-%m-%d %H:%M:%S} UTC"


def _stage(plan: RolloutPlan, state: RolloutState) -> str:
    if state.shadowing:
        return "the shadow phase (rollout.shadow.min_duration)"
    return f"the step of {plan.steps[state.step].percent:g} % (rollout.ramp)" if plan.steps else "the comparison"


def _waiting(plan: RolloutPlan, state: RolloutState, numbers: Numbers, at: datetime) -> str:
    """How far each gate is that an advance waits for."""
    least, proof = evidence_asked(plan, state), proof_asked(plan, state)
    said = []
    for gate, standing in asked(plan, state, at):
        seen, compared = numbers.get(gate.name, {}), max(seen_in_step(state, gate, standing), 0)
        progress = _progress(seen) if proof else ""
        said.append(f"{comparison(plan, gate, seen)}, {compared} of {least} in this step{progress}")
    return f"not enough evidence yet: {'; '.join(said) or 'no gate that acts has any'}"


def _progress(seen: Mapping[str, Any]) -> str:
    known = [
        f"{name} E = {seen[value]:.3g} of {seen[bound]:g}"
        for name, value, bound in (
            ("of harm", "max_e_value", "threshold"),
            ("of no harm", "max_safe_e_value", "safe_threshold"),
        )
        if seen.get(value) is not None and seen.get(bound) is not None
    ]
    return f", evidence {', '.join(known)}" if known else ""
