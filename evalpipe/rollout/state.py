"""What a rollout remembers between two steps: enough to go on bit by bit after a restart."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, Literal

from evalpipe.errors import ConfigError
from evalpipe.rollout.analysis import GateState
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.stats.matching import Arm

VERSION: Final = 1
"""Of the serialised form; another one is refused."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the judges can be relied on just now.

    Attributes:
        judge: ``outage`` if grades do not come, ``suspect`` if they cannot be trusted.
        detail: why, for the reason of a decision.
    """

    judge: Literal["ok", "outage", "suspect"] = "ok"
    detail: str = ""


HEALTHY: Final = Health()


@dataclass(slots=True)
class RolloutState:
    """The fold's accumulator. ``step`` never changes the one it was given.

    Attributes:
        started_at: when the rollout began, aware UTC.
        gates: by name.
        health: as last told.
        last_seq, last_criterion: place of the newest evidence; what is not beyond it was folded before.
        repeated: pieces of evidence skipped for that reason.
        last_at: capture time of the newest score by arm.
        chain: running hash of all evidence folded.
        decision_seq: number of the newest decision; 0 before the first.
        outcome: action, cause and gate of the newest decision; "" before the first.
        rolled_back: latched.
    """

    started_at: datetime
    gates: dict[str, GateState]
    health: Health = HEALTHY
    last_seq: int = -1
    last_criterion: str = ""
    repeated: int = 0
    last_at: dict[Arm, datetime] = field(default_factory=dict)
    chain: str = ""
    decision_seq: int = 0
    outcome: tuple[str, str, str] = ("", "", "")
    rolled_back: bool = False

    @classmethod
    def start(cls, plan: RolloutPlan, started_at: datetime) -> RolloutState:
        """The state before any evidence."""
        return cls(started_at, {gate.name: GateState(gate) for gate in plan.gates})

    def link(self, line: str) -> None:
        """Append a line to the chain."""
        self.chain = blake2b(f"{self.chain}\n{line}".encode(), digest_size=16).hexdigest()

    def to_state(self, plan: RolloutPlan) -> dict[str, Any]:
        """All of it as JSON-safe values, with the plan's hash."""
        return {
            "version": VERSION,
            "plan_hash": plan.plan_hash,
            "started_at": self.started_at.isoformat(),
            "gates": {name: gate.to_state() for name, gate in self.gates.items()},
            "health": [self.health.judge, self.health.detail],
            "last_seq": self.last_seq,
            "last_criterion": self.last_criterion,
            "repeated": self.repeated,
            "last_at": {arm: at.isoformat() for arm, at in self.last_at.items()},
            "chain": self.chain,
            "decision_seq": self.decision_seq,
            "outcome": list(self.outcome),
            "rolled_back": self.rolled_back,
        }

    @classmethod
    def from_state(cls, plan: RolloutPlan, state: dict[str, Any]) -> RolloutState:
        """The inverse of ``to_state``.

        Raises:
            ConfigError: it was written by another version of the code, or under a plan that has changed since.
        """
        if state["version"] != VERSION:
            raise ConfigError(
                f"rollout {plan.rollout_id!r}: its state has version {state['version']!r}, this code reads {VERSION}; "
                "replay the rollout from its evidence"
            )
        if state["plan_hash"] != plan.plan_hash:
            raise ConfigError(
                f"rollout {plan.rollout_id!r}: its plan changed after it started ({state['plan_hash']} is now "
                f"{plan.plan_hash}); end it and start a new rollout with a new rollout_id"
            )
        return cls(
            started_at=datetime.fromisoformat(state["started_at"]),
            gates={gate.name: GateState.from_state(gate, state["gates"][gate.name]) for gate in plan.gates},
            health=Health(*state["health"]),
            last_seq=state["last_seq"],
            last_criterion=state["last_criterion"],
            repeated=state["repeated"],
            last_at={arm: datetime.fromisoformat(at) for arm, at in state["last_at"].items()},
            chain=state["chain"],
            decision_seq=state["decision_seq"],
            outcome=(state["outcome"][0], state["outcome"][1], state["outcome"][2]),
            rolled_back=state["rolled_back"],
        )
