"""The reason of a decision: one sentence for people, with the numbers and the key of the configuration."""

from __future__ import annotations

from datetime import datetime

from evalpipe.rollout.analysis import GateState
from evalpipe.rollout.outcome import Outcome, silent_arm
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import RolloutState


def reason(plan: RolloutPlan, state: RolloutState, outcome: Outcome, gate: Gate, at: datetime) -> str:
    """Why ``outcome`` follows; ``gate`` is the one to show numbers of."""
    if outcome.cause == "insufficient_evidence":
        standing = "; ".join(_standing(plan, g, state.gates[g.name]) for g in plan.gates)
        return f"not enough evidence yet: {standing}"
    if outcome.action != "hold":
        return f"{_comparison(plan, gate, state.gates[gate.name])}; {_proof(state.gates[gate.name], gate, outcome)}"
    return _obstacle(plan, state, outcome, gate, at)


def _proof(state: GateState, gate: Gate, outcome: Outcome) -> str:
    key = f"rollout.gates.{gate.name}"
    if outcome.action == "rollback":
        return (
            f"evidence of harm reached E = {state.harm.max_e_value:.4g} of {1 / gate.alpha:g} needed "
            f"({key}.alpha = {gate.alpha:g}), and the {gate.direction} is beyond "
            f"{gate.estimate_share * gate.margin:.1%} ({gate.estimate_share:g} x {key}.margin = {gate.margin:g})"
        )
    return (
        f"a {gate.direction} of {gate.margin:.1%} or more ({key}.margin) is excluded: evidence of no harm reached "
        f"E = {state.safe.max_e_value:.4g} of {1 / gate.promote_alpha:g} needed "
        f"({key}.promote_alpha = {gate.promote_alpha:g}), and so for every other gate"
    )


def _obstacle(plan: RolloutPlan, state: RolloutState, outcome: Outcome, gate: Gate, at: datetime) -> str:
    key, gate_state = f"rollout.gates.{gate.name}", state.gates[gate.name]
    baseline, canary = gate_state.baseline, gate_state.canary
    detail = f" ({state.health.detail})" if state.health.detail else ""
    return {
        "judge_outage": f"the judge does not answer{detail}; nothing advances until it does",
        "judge_suspect": f"the judge cannot be trusted{detail}; nothing advances on its scores",
        "epochs_differ": f"{gate.criterion} is scored by {baseline.epoch!r} in the baseline and by {canary.epoch!r} in "
        "the canary; the comparison goes on when both arms have the same",
        "missing_scores": f"too many {gate.criterion} scores are missing: {canary.missing_share:.0%} of recent ones in "
        f"the canary, {baseline.missing_share:.0%} in the baseline ({key}.max_missing = {gate.max_missing:g})",
        "unequal_weights": f"{gate.criterion} scores of one arm were sampled at unequal rates; set {key}.max_weights "
        "to the largest weight (1 / sampling rate) of each arm",
        "no_data": f"no score of the {silent_arm(plan, state, at)} for more than {plan.no_data_after} "
        "(rollout.no_data_after)",
    }[outcome.cause]


def _comparison(plan: RolloutPlan, gate: Gate, state: GateState) -> str:
    baseline, canary = state.estimate.means
    change = state.change()
    if baseline is None or canary is None or change is None:
        return f"{gate.criterion}: nothing compared yet"
    side = "below" if change < 0 else "above"
    return (
        f"{gate.criterion} of {plan.canary} is {abs(change):.1%} {side} {plan.baseline} "
        f"(mean {canary:.3f} against {baseline:.3f}, {state.estimate.n_canary} against {state.estimate.n_baseline} "
        "scores)"
    )


def _standing(plan: RolloutPlan, gate: Gate, state: GateState) -> str:
    return (
        f"{_comparison(plan, gate, state)}, evidence of harm E = {state.harm.max_e_value:.3g} of {1 / gate.alpha:g}, "
        f"of no harm E = {state.safe.max_e_value:.3g} of {1 / gate.promote_alpha:g}"
    )
