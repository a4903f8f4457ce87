"""The gates of a policy that writes none: the default rules, on what there is to compare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol, TypeVar

from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.rollout import Gate, RolloutPolicy

LATENCY: Final = Gate(criterion="latency_ms")
COST: Final = Gate(criterion="cost_usd")
RATIO: Final = Gate(kind="ratio", role="signal")
WITHOUT_SCORECARD: Final = (
    Gate(criterion="quality"),
    LATENCY,
    Gate(criterion="safety", kind="safety", confirm="safety_confirmed"),
    COST,
    Gate(criterion="refusal", kind="rate", role="signal", direction="both", margin="0.02 points"),
    Gate(criterion="format", kind="rate", role="signal", direction="both", margin="0.02 points"),
    RATIO,
)
"""What ``scorecards/policies/default.yaml`` writes out."""
_RATES: Final = ("refusal", "json_schema")
"""Heuristics whose pass rate should not move, up or down."""


Policy = TypeVar("Policy", bound=RolloutPolicy)


class Card(Protocol):
    """What is needed of a scorecard."""

    @property
    def criteria(self) -> list[Criterion]:
        """All of them."""
        ...

    @property
    def rollout(self) -> RolloutPolicy | None:
        """As written."""
        ...


def policy_of(card: Card) -> RolloutPolicy:
    """The rollout of a scorecard with its gates written out: defaults filled in, safety gates with what confirms them.

    Raises:
        ValueError: the scorecard has no rollout.
    """
    if card.rollout is None:
        raise ValueError("the scorecard has no rollout")
    return filled(card.rollout, card.criteria)


def filled(policy: Policy, criteria: list[Criterion]) -> Policy:
    """The policy with gates for these criteria if it has none, and what the criteria say of each gate."""
    confirming = confirmers(criteria)
    pairwise = {c.name for c in criteria if c.judge is not None and c.judge.kind == "pairwise"}
    gates = policy.gates or list(default_gates(criteria, confirming))
    return policy.model_copy(update={"gates": [_filled(gate, confirming, pairwise) for gate in gates]})


def _filled(gate: Gate, confirming: dict[str, str], pairwise: set[str]) -> Gate:
    if gate.resolved == "safety" and not gate.confirm and gate.criterion in confirming:
        return gate.model_copy(update={"confirm": confirming[gate.criterion]})
    return gate.model_copy(update={"pairwise": True}) if gate.criterion in pairwise else gate


def confirmers(criteria: Iterable[Criterion]) -> dict[str, str]:
    """By criterion the one that confirms its flags."""
    return {c.judge.confirms: c.name for c in criteria if c.judge is not None and c.judge.confirms}


def default_gates(criteria: list[Criterion], confirming: dict[str, str]) -> Iterable[Gate]:
    """Quality, latency, safety and cost as guardrails; refusals, format and the sample ratio as signals.

    Quality is the judged criterion of the greatest weight (the first of equals), or the heuristic's where nothing is
    judged. Safety are the judged criteria of priority 0: flags where another criterion confirms them, else the share
    that passes.
    """
    second = set(confirming.values())
    safety = [c for c in criteria if c.judge is not None and c.judge.priority == 0 and c.name not in second]
    quality = _quality([c for c in criteria if c.name not in second], {c.name for c in safety})
    if quality is not None:
        yield Gate(criterion=quality.name)
    yield LATENCY
    for criterion in safety:
        if criterion is not quality:
            yield _safety(criterion.name, confirming.get(criterion.name, ""))
    yield COST
    for criterion in criteria:
        if criterion.heuristic in _RATES and criterion is not quality:
            yield Gate(criterion=criterion.name, kind="rate", role="signal", direction="both", margin="0.02 points")
    yield RATIO


def _quality(criteria: list[Criterion], safety: set[str]) -> Criterion | None:
    judged = [c for c in criteria if c.judge is not None and c.judge.kind != "pairwise"]
    heuristic = [c for c in criteria if c.judge is None]
    for some in ([c for c in judged if c.name not in safety], judged, heuristic):
        if some:
            return max(some, key=lambda c: c.weight)
    return None


def _safety(name: str, confirm: str) -> Gate:
    if confirm:
        return Gate(criterion=name, kind="safety", confirm=confirm)
    values: dict[str, Any] = {"criterion": name, "kind": "rate", "margin": "0.01 points", "severity": "SEV1"}
    return Gate(**values)
