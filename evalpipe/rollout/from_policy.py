"""The plan of a rollout from what people wrote: defaults filled in, the total alpha split over the guardrails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from evalpipe.rollout.plan import Gate, RolloutPlan, Segments, Shadow, Step
from evalpipe.scorecard import rollout as written
from evalpipe.scorecard.default_gates import WITHOUT_SCORECARD
from evalpipe.stats.moments import Calibration

OTHER_ALPHA: Final = 0.0025
"""Of gates that do not roll back."""
COUNTED: Final = "cost_usd"
"""By which the kind ratio counts units, where nothing is written: every captured record has it."""


def plan_of(
    policy: written.RolloutPolicy,
    *,
    rollout_id: str,
    service: str,
    steps: bool = True,
    calibrations: Mapping[str, Calibration] | None = None,
) -> RolloutPlan:
    """The plan that a policy declares.

    The policy of a scorecard is ``evalpipe.scorecard.default_gates.policy_of(card)``: it knows which criteria there
    are, and which of them confirms a flag. Without gates it is the default rules by their usual names.

    Args:
        policy: checked.
        rollout_id: of the plan.
        service: of both releases.
        steps: whether evalpipe moves the traffic by the ramp; else there is one comparison.
        calibrations: what is known of the baseline, by criterion.

    Raises:
        ValueError: the guardrails' own alphas leave nothing of the total for the others.
    """
    gates = policy.gates or list(WITHOUT_SCORECARD)
    alphas = split(gates, policy.alpha, policy.segments)
    known = calibrations or {}
    return RolloutPlan(
        rollout_id=rollout_id,
        service=service,
        baseline=policy.baseline,
        canary=policy.canary,
        gates=tuple(
            made for gate, alpha in zip(gates, alphas, strict=True) for made in _gates(policy, gate, alpha, known)
        ),
        steps=tuple(_step(step) for step in policy.climb) if steps else (),
        weights=policy.weights if steps else "",
        sample=policy.sample,
        shadow=None if policy.shadow is None else _shadow(policy.shadow),
        segments=None if policy.segments is None else Segments(**policy.segments.model_dump()),
        no_data_after=policy.no_data_after,
        max_duration=policy.max_duration,
        verify_within=policy.verify_within,
    )


def split(gates: Sequence[written.Gate], total: float, segments: written.SegmentSpec | None = None) -> list[float]:
    """The alpha of each gate: its own, or its share of what the guardrails' own alphas leave of ``total``.

    By the union bound the guardrails together roll back a healthy canary with a probability of ``total`` at the most.
    Segments that roll back spend their alpha once more for each guardrail that is looked at by segment.

    Raises:
        ValueError: nothing is left.
    """
    own = sum(gate.alpha for gate in gates if gate.spends and gate.alpha is not None)
    if segments is not None and segments.role == "guardrail":
        own += segments.alpha * sum(gate.spends and gate.resolved in written.SEGMENTED for gate in gates)
    shares = sum(gate.share for gate in gates if gate.spends and gate.alpha is None)
    if shares and own >= total:
        raise ValueError(f"alphas of guardrails and segments add up to {own:g}: nothing is left of the total {total:g}")
    return [
        gate.alpha if gate.alpha is not None else (total - own) * gate.share / shares if gate.spends else OTHER_ALPHA
        for gate in gates
    ]


def _gates(
    policy: written.RolloutPolicy, gate: written.Gate, alpha: float, known: Mapping[str, Calibration]
) -> Iterator[Gate]:
    margin, relative = gate.tolerance
    kind: Any = gate.resolved
    given = {
        key: value for key in ("quantile", "flag_at", "expected_canary") if (value := getattr(gate, key)) is not None
    }
    for direction in gate.directions:
        yield Gate(
            name=gate.called if len(gate.directions) == 1 else f"{gate.called} {direction}",
            criterion=gate.criterion or COUNTED,
            kind=kind,
            role=gate.role,
            direction=direction,
            margin=margin,
            relative=relative,
            estimate_share=written.ESTIMATE_SHARE,
            alpha=alpha / len(gate.directions),
            advance_alpha=gate.advance_alpha or policy.advance_alpha,
            min_canary=gate.min_canary,
            catastrophic=gate.catastrophic,
            no_data=gate.no_data or policy.no_data,
            severity=gate.severity or ("SEV1" if kind == "safety" else "SEV2"),
            dry_run=gate.dry_run,
            calibration=known.get(gate.criterion),
            max_weights=gate.max_weights,
            split=gate.split,
            pairwise=gate.pairwise,
            control=gate.control,
            confirm=gate.confirm,
            false_flags=gate.false_flags,
            false_confirms=gate.false_confirms,
            **given,
        )


def _step(step: written.RampStep) -> Step:
    return Step(step.percent, step.bake, step.min_canary, step.enough or "no_harm")


def _shadow(shadow: written.ShadowPhase) -> Shadow:
    return Shadow(
        min_duration=shadow.min_duration,
        min_pairs=shadow.min_pairs,
        alpha=shadow.alpha,
        rate=shadow.rate,
        per_minute=shadow.per_minute,
    )
