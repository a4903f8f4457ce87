"""What a rollout remembers between two folds: enough to go on bit by bit after a restart."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from evalpipe.errors import ConfigError
from evalpipe.rollout.chain import Chain
from evalpipe.rollout.gates.base import GateState, Standing, kinds
from evalpipe.rollout.inputs import HEALTHY, Health
from evalpipe.rollout.plan import Gate, RolloutPlan, expected_share
from evalpipe.stats.matching import Arm

VERSION: Final = 2
"""Of the serialised form; another one is refused."""
Phase = Literal["shadow", "running", "paused", "complete", "rolled_back", "aborted", "expired"]
Began = Literal["shadow", "running"]
ENDS: Final = frozenset({"complete", "rolled_back", "aborted", "expired"})
"""Phases in which no evidence is folded any more. Only ``rolled_back`` can be left, by a person's ``resume``."""
PAIRED: Final = frozenset({"quality", "rate", "cost"})
"""Kinds that compare pairs in the shadow phase; the others stay what they are."""
TRANSITION: Final = timedelta(seconds=60)
"""After a change of the ramp the arms' shares are nobody's for so long: hooks learn of it one by one."""
LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Track:
    """How far one criterion was folded.

    Attributes:
        seq: of the newest evidence; what is not beyond it was folded before.
        at: when the newest value of each arm was captured.
    """

    seq: int = -1
    at: dict[Arm, datetime] = field(default_factory=dict)


@dataclass(slots=True)
class RolloutState:
    """The fold's accumulator. ``fold`` never changes the one it was given.

    Attributes:
        started_at: when the rollout began, aware UTC.
        phase: where it is.
        began: the phase that a pause interrupts, and that a resume of a rollback begins again.
        began_at: since when ``max_duration`` is counted.
        phase_at: when the gates began, with no evidence.
        step: index into ``plan.steps``; 0 without steps.
        step_at: when the step began.
        step_seen: by gate, how many canary values had been compared then.
        share_at: when the arms will have the step's shares; None if they have them.
        watching: a plan without steps has advanced, and is watched for harm until ``max_duration``.
        frozen_until: end of a freeze.
        since: evidence captured before is not folded: it belongs to gates that are gone. None: all is folded.
        gates: by name.
        standings: where each of them stands.
        health: as last told.
        tracks: by criterion.
        repeated, stale: pieces of evidence skipped as folded before, and as of another phase.
        evidence_seq: of the newest evidence folded; -1 before the first.
        clock: newest time that evidence or a batch was folded at; it never goes back.
        chain: running hash of all inputs folded.
        decision_seq: number of the newest decision; 0 before the first.
        decided_at: of the newest decision.
        outcome: action, cause and gate of the newest decision that still stands; "" before the first.
        calm_at: when the log will say that what was in the way is gone; None while it is not.
        due: time alone may change the outcome from then on.
        silent: criterion and arm pairs that were silent when last looked at.
    """

    started_at: datetime
    phase: Phase
    began: Began
    began_at: datetime
    phase_at: datetime
    step_at: datetime
    clock: datetime
    step: int = 0
    step_seen: dict[str, int] = field(default_factory=dict)
    share_at: datetime | None = None
    watching: bool = False
    frozen_until: datetime | None = None
    since: datetime | None = None
    gates: dict[str, GateState] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    health: Health = HEALTHY
    tracks: dict[str, Track] = field(default_factory=dict)
    repeated: int = 0
    stale: int = 0
    evidence_seq: int = -1
    chain: Chain = field(default_factory=Chain)
    decision_seq: int = 0
    decided_at: datetime = LONG_AGO
    outcome: tuple[str, str, str] = ("", "", "")
    calm_at: datetime | None = None
    due: datetime = LONG_AGO
    silent: frozenset[tuple[str, Arm]] = frozenset()

    @classmethod
    def start(cls, plan: RolloutPlan, started_at: datetime) -> RolloutState:
        """The state before any evidence."""
        began: Began = "running" if plan.shadow is None else "shadow"
        state = cls(started_at, began, began, started_at, started_at, started_at, started_at)
        state.tracks = {criterion: Track() for criterion in plan.criteria}
        state.begin(plan, began, started_at)
        state.since = None
        return state

    def begin(self, plan: RolloutPlan, phase: Began, at: datetime) -> None:
        """Enter a phase at its first step, with gates that have no evidence."""
        self.phase = self.began = phase
        self.phase_at = self.since = at
        self.watching, self.frozen_until = False, None
        self.standings = {}
        self.gates = {
            gate.name: kinds.get(_kind(gate, phase))(gate_in(plan, gate, phase), plan)
            for gate in plan.gates
            if _is_in(gate, phase)
        }
        self.step_seen = {}
        self.enter_step(plan, 0, at)

    def enter_step(self, plan: RolloutPlan, step: int, at: datetime) -> None:
        """Begin a step of the ramp; the gates keep their evidence.

        What share the arms should have is known where evalpipe sets the weights; a deployer follows when it does.
        """
        self.step, self.step_at = step, at
        self.look()
        self.step_seen = {name: standing.seen for name, standing in self.standings.items()}
        steers = plan.steps and plan.weights and self.phase == "running"
        self.share_at = at + TRANSITION if steers else None
        for gate in self.gates.values():
            gate.set_share(None)

    def look(self) -> None:
        """See where all gates stand; a gate that began anew, with another epoch, begins the step's count anew too."""
        for name, gate in self.gates.items():
            self.standings[name] = standing = gate.standing()
            if standing.seen < self.step_seen.get(name, 0):
                self.step_seen[name] = 0

    def settle_share(self, plan: RolloutPlan) -> None:
        """The ramp's change has reached the hooks: the arms have the step's shares now."""
        self.share_at = None
        for gate in self.gates.values():
            gate.set_share(expected_share(plan.steps[self.step].percent, plan.sample))

    def percent(self, plan: RolloutPlan) -> float | None:
        """Share of units that should get the canary now; None where the plan has no steps and others split traffic."""
        if self.shadowing or self.phase in ("rolled_back", "aborted", "expired"):
            return 0.0
        if not plan.steps:
            return None
        return 100.0 if self.phase == "complete" else plan.steps[self.step].percent

    @property
    def shadowing(self) -> bool:
        """Users get the baseline's answers only, and the canary answers beside it."""
        return self.phase == "shadow" or (self.phase == "paused" and self.began == "shadow")

    @property
    def rolled_back(self) -> bool:
        """Latched: only a person's ``resume`` leaves it."""
        return self.phase == "rolled_back"

    @property
    def ended(self) -> bool:
        """No more evidence is folded (overrides still are)."""
        return self.phase in ENDS

    @property
    def last_seq(self) -> dict[str, int]:
        """Place of the newest evidence of each criterion; -1 before the first."""
        return {criterion: track.seq for criterion, track in self.tracks.items()}

    def copy(self) -> RolloutState:
        """Another one of the same value; much quicker than through ``to_state``."""
        return pickle.loads(pickle.dumps(self, pickle.HIGHEST_PROTOCOL))  # type: ignore[no-any-return]  # noqa: S301 - our own bytes, never stored

    def to_state(self, plan: RolloutPlan) -> dict[str, Any]:
        """All of it as JSON-safe values, with the plan's hash."""
        return {
            "version": VERSION,
            "plan_hash": plan.plan_hash,
            **{name: _text(getattr(self, name)) for name in _TIMES},
            **{name: getattr(self, name) for name in _PLAIN},
            "gates": {name: gate.to_state() for name, gate in self.gates.items()},
            "health": [self.health.judge, self.health.detail],
            "tracks": {
                criterion: [track.seq, {arm: at.isoformat() for arm, at in track.at.items()}]
                for criterion, track in self.tracks.items()
            },
            "chain": self.chain.to_state(),
            "outcome": list(self.outcome),
            "silent": [list(pair) for pair in sorted(self.silent)],
        }

    @classmethod
    def from_state(cls, plan: RolloutPlan, state: dict[str, Any]) -> RolloutState:
        """The inverse of ``to_state``.

        Raises:
            ConfigError: it was written by another version of the code, or under a plan that has changed since.
        """
        _check(plan, state)
        gates = {
            gate.name: kinds.get(_kind(gate, state["began"])).from_state(
                gate_in(plan, gate, state["began"]), plan, state["gates"][gate.name]
            )
            for gate in plan.gates
            if gate.name in state["gates"]
        }
        values: dict[str, Any] = {name: _time(state[name]) for name in _TIMES}
        return cls(
            **values,
            **{name: state[name] for name in _PLAIN},
            gates=gates,
            standings={name: gate.standing() for name, gate in gates.items()},
            health=Health(*state["health"]),
            tracks={
                criterion: Track(seq, {arm: datetime.fromisoformat(at) for arm, at in ats.items()})
                for criterion, (seq, ats) in state["tracks"].items()
            },
            chain=Chain.from_state(state["chain"]),
            outcome=(state["outcome"][0], state["outcome"][1], state["outcome"][2]),
            silent=frozenset((criterion, arm) for criterion, arm in state["silent"]),
        )


_TIMES: Final = (
    "started_at", "began_at", "phase_at", "step_at", "share_at", "frozen_until", "since", "clock", "decided_at",
    "calm_at", "due",
)  # fmt: skip
_PLAIN: Final = (
    "phase", "began", "step", "step_seen", "watching", "repeated", "stale", "evidence_seq", "decision_seq"
)  # fmt: skip


def gate_in(plan: RolloutPlan, gate: Gate, phase: Began) -> Gate:
    """The gate as a phase has it: in the shadow phase those that compare pairs have that phase's alpha."""
    if phase == "running" or plan.shadow is None or gate.kind not in PAIRED:
        return gate
    return replace(gate, alpha=plan.shadow.alpha)


def _is_in(gate: Gate, phase: Began) -> bool:
    """Shares mean nothing where both arms answer everything, and nobody compares two answers where one is given."""
    return gate.kind != "ratio" if phase == "shadow" else not gate.pairwise


def _kind(gate: Gate, phase: Began) -> str:
    return "paired" if phase == "shadow" and gate.kind in PAIRED else gate.kind


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _check(plan: RolloutPlan, state: dict[str, Any]) -> None:
    if state["version"] != VERSION:
        raise ConfigError(
            f"rollout {plan.rollout_id!r}: its state has version {state['version']!r}, this code reads {VERSION}; "
            "replay the rollout from its log"
        )
    if state["plan_hash"] != plan.plan_hash:
        raise ConfigError(
            f"rollout {plan.rollout_id!r}: its plan changed after it started ({state['plan_hash']} is now "
            f"{plan.plan_hash}); end it and start a new rollout with a new rollout_id"
        )
