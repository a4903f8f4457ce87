"""The contract of a gate's state: evidence in, where it stands out. Pure, in constant memory, and serialisable."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from evalpipe.registry import Registry
from evalpipe.rollout.inputs import Evidence, MeterReading
from evalpipe.rollout.plan import Gate, RolloutPlan

Obstacle = Literal["", "epochs_differ", "missing_scores", "unequal_weights", "unconfirmed_flag", "segment_harmed"]
HarmCause = Literal["", "confirmed_flag", "catastrophic_harm"]


class Standing(NamedTuple):
    """Where a gate stands.

    Attributes:
        harmed: both keys of a rollback are turned, and there is the evidence asked for (or harm is catastrophic).
        proven: harm of the margin or more was excluded.
        seen: canary values compared so far.
        obstacle: why its evidence cannot be relied on, or must be waited for; "" if nothing is in the way.
        detail: the obstacle in words, with its numbers; or the segment that is harmed.
        cause: why it is harmed, where that is not proof over the evidence asked for.
    """

    harmed: bool = False
    proven: bool = False
    seen: int = 0
    obstacle: Obstacle = ""
    detail: str = ""
    cause: HarmCause = ""


class GateState(Protocol):
    """The evidence of one gate."""

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        """Begin with no evidence."""

    def take(self, evidence: Evidence) -> bool:
        """Take one piece of evidence of a criterion that the gate reads; True if its standing may have changed.

        Of ``seen`` only the counts matter that somebody waits for: the gate's, a step's and the shadow phase's least.
        It is called for each score, so it must be cheap, and so must a False.
        """
        ...

    def take_meter(self, reading: MeterReading) -> bool:
        """Take what the meters counted of one arm; True if the standing may have changed."""
        ...

    def set_share(self, share: float | None) -> None:
        """The ramp moved: the canary should get this share of the captured units; None if nobody knows."""
        ...

    def standing(self) -> Standing:
        """Where it stands now."""
        ...

    def numbers(self) -> dict[str, Any]:
        """JSON-safe evidence for a decision: see ``docs/rollouts.md``; changes are relative, -.05 is 5 % lower."""
        ...

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        ...

    @classmethod
    def from_state(cls, gate: Gate, plan: RolloutPlan, state: dict[str, Any]) -> GateState:
        """The inverse of ``to_state``, bit by bit."""
        ...


kinds: Registry[type[GateState]] = Registry("gate", "evalpipe.rollout.gates")
"""The states of gates by kind, and ``paired`` for quality and rates in the shadow phase."""
