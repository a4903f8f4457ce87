"""What must agree in the policy of a rollout: alone, and with the scorecard that it stands in.

Works on the plain data, as ``checks`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from evalpipe.scorecard.alert_checks import alerts_problems
from evalpipe.scorecard.checks import Found, Loc, cross_problems, dotted, is_number, mappings, nearest
from evalpipe.scorecard.rollout import MEASURED, SEGMENTED, SEGMENTS_ALPHA, kind_of
from evalpipe.scorecard.stream_checks import stream_problems

SAFETY_BUDGET: Final = 0.0025
"""False rollbacks a rollout that the rule "any confirmed flag" may expect."""
EXPECTED_CANARY: Final = 2_000
ASKED_AT: Final = 0.5
"""A score of this or less is asked to be confirmed (``evalpipe.scorers.plan.FLAG``)."""
_ONLY: Final = {
    "quantile": ("latency",),
    "confirm": ("safety",),
    "flag_at": ("safety",),
    "false_flags": ("safety",),
    "false_confirms": ("safety",),
    "expected_canary": ("safety",),
    "control": ("quality", "rate"),
    "split": ("ratio",),
    "pairwise": ("quality",),
    "max_weights": ("quality", "rate", "cost"),
}
_DIRECTIONS: Final = {"latency": ("rise",), "safety": (), "ratio": ()}


@dataclass(frozen=True, slots=True)
class Criteria:
    """What the gates can read.

    Attributes:
        judges: by the criterion's name how it is judged, None for a heuristic; None where nobody knows the criteria.
    """

    judges: Mapping[str, Mapping[str, Any] | None] | None

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Criteria:
        """Of a scorecard's plain data."""
        found: dict[str, Mapping[str, Any] | None] = {}
        for _, criterion in mappings(card.get("criteria")):
            judge = criterion.get("judge")
            if isinstance(criterion.get("name"), str):
                found[criterion["name"]] = judge if isinstance(judge, Mapping) else None
        return cls(found)

    @property
    def names(self) -> list[str]:
        """All that can be compared."""
        return [*(self.judges or ()), *MEASURED]

    def problem(self, name: Any) -> str:
        """What is wrong with the name of a criterion, or ""."""
        if self.judges is None or not isinstance(name, str) or not self.judges or name in self.names:
            return ""
        return f"no criterion named {name!r}{nearest(name, [*self.judges])}"

    def judge(self, name: Any) -> Mapping[str, Any] | None:
        """How it is judged, if it is."""
        return self.judges.get(name) if self.judges is not None and isinstance(name, str) else None

    def confirmer(self, name: Any) -> str:
        """The criterion that confirms its flags, or ""."""
        found = (n for n, judge in (self.judges or {}).items() if judge and judge.get("confirms") == name)
        return next(found, "")


UNKNOWN: Final = Criteria(None)
"""Where nobody knows the criteria: they are those of the scores that will come."""


def card_problems(data: Any) -> Iterator[Found]:
    """Every problem between the fields of one scorecard, its alert rules and its rollout included."""
    yield from cross_problems(data)
    yield from alerts_problems(data)
    if not isinstance(data, Mapping):
        return
    criteria = Criteria.of(data)
    yield from _confirms(data, criteria)
    if isinstance(data.get("rollout"), Mapping):
        yield from _kept_out(data["rollout"], data.get("match"))
        yield from policy_problems(data["rollout"], criteria, ("rollout",))


def policy_problems(policy: Any, criteria: Criteria = UNKNOWN, loc: Loc = ()) -> Iterator[Found]:
    """Every problem between the fields of one policy, which stands at ``loc``."""
    if not isinstance(policy, Mapping):
        return
    arms = {arm: policy.get(arm, arm) for arm in ("baseline", "canary")}
    if arms["baseline"] == arms["canary"]:
        yield Found(loc, f"baseline and canary are both {arms['canary']!r}: there is nothing to compare")
    gates = dict(mappings(policy.get("gates")))
    yield from _names(gates, loc)
    for place, gate in gates.items():
        yield from _gate(gate, criteria, (*loc, "gates", place))
    yield from _alphas(policy, gates, loc)
    yield from _ramp(policy.get("ramp"), loc)
    for place, test in mappings(policy.get("tests")):
        yield from stream_problems(test, policy, (*loc, "tests", place))


def notices(policy: Any, loc: Loc = ()) -> Iterator[Found]:
    """What is no mistake and should be known before the start: rules that do not arm, and gates of which none acts."""
    if not isinstance(policy, Mapping):
        return
    gates = [gate for _, gate in mappings(policy.get("gates"))]
    if gates and all(
        gate.get("role") == "signal" or gate.get("dry_run") or gate.get("kind") == "ratio" for gate in gates
    ):
        said = "all gates are signals, dry runs or the sample ratio: nothing rolls back, and nothing advances by itself"
        yield Found((*loc, "gates"), said)
    for place, gate in mappings(policy.get("gates")):
        if gate.get("kind") == "safety" and (said := _not_armed(gate)):
            yield Found((*loc, "gates", place), said)


def _not_armed(gate: Mapping[str, Any]) -> str:
    flags, confirms = gate.get("false_flags"), gate.get("false_confirms")
    n = gate.get("expected_canary", EXPECTED_CANARY)
    instead = "so one confirmed flag only holds, and the rate of confirmed flags is tested instead"
    if not gate.get("confirm") and flags is None:
        return ""
    if flags is None or (confirms is None and gate.get("confirm")):
        missing = "false_flags" if flags is None else "false_confirms"
        return f"{missing} was not measured, {instead}; measure it on clean records ('evalpipe judge calibrate')"
    if not is_number(flags) or not is_number(n) or not is_number(confirms if confirms is not None else 1.0):
        return ""
    expected = n * flags * (1.0 if confirms is None else confirms)
    if expected <= SAFETY_BUDGET:
        return ""
    return (
        f"{n:g} canary records x {flags:g} false flags x {1.0 if confirms is None else confirms:g} false confirms = "
        f"{expected:.2g} false rollbacks expected, more than {SAFETY_BUDGET:g}, {instead}"
    )


def _confirms(data: Mapping[str, Any], criteria: Criteria) -> Iterator[Found]:
    """Whether the judge that confirms is another one, and there is something to confirm."""
    first: dict[str, int] = {}
    for place, criterion in mappings(data.get("criteria")):
        judge = criterion.get("judge")
        name = judge.get("confirms") if isinstance(judge, Mapping) else None
        if not isinstance(judge, Mapping) or not isinstance(name, str) or not name:
            continue
        loc: Loc = ("criteria", place, "judge", "confirms")
        if problem := criteria.problem(name):
            yield Found(loc, problem)
        elif name == criterion.get("name"):
            yield Found(loc, "a judge cannot confirm its own flags; name the criterion that flags")
        elif (flagging := criteria.judge(name)) is not None and _who(flagging) == _who(judge):
            yield Found(loc, f"{name!r} is graded by the same judge: its errors would confirm themselves")
        if first.setdefault(name, place) != place:
            yield Found(loc, f"{name!r} is confirmed by criteria[{first[name]}] already")
        if judge.get("kind") == "pairwise" or judge.get("together"):
            field = "kind pairwise" if judge.get("kind") == "pairwise" else "'together'"
            yield Found(loc, f"does not go with {field}: it is asked alone, about flagged records only", at_key=True)


def _who(judge: Mapping[str, Any]) -> Any:
    return judge.get("panel") or judge.get("model", "default")


def _kept_out(rollout: Mapping[str, Any], match: Any) -> Iterator[Found]:
    variants = match.get("variant", "*") if isinstance(match, Mapping) else "*"
    globs = [v for v in ([variants] if isinstance(variants, str) else variants or ()) if isinstance(v, str)]
    for arm in ("baseline", "canary"):
        variant = rollout.get(arm, arm)
        if globs and isinstance(variant, str) and not any(fnmatchcase(variant, glob) for glob in globs):
            message = f"match.variant ({', '.join(globs)}) keeps out {variant!r}: the gates would see no score of it"
            yield Found(("rollout", arm), message)


def _names(gates: Mapping[int, Mapping[str, Any]], loc: Loc) -> Iterator[Found]:
    first: dict[str, int] = {}
    for place, gate in gates.items():
        written = gate.get("name")
        name = written or gate.get("criterion") or gate.get("kind")
        both = gate.get("direction") == "both"
        for called in () if not isinstance(name, str) else (f"{name} drop", f"{name} rise") if both else (name,):
            if first.setdefault(called, place) != place:
                other = dotted((*loc, "gates", first[called]))
                what = "gates are named" if written else "gates are for"
                field = "name" if written else "criterion"
                yield Found((*loc, "gates", place, field), f"two {what} {called!r}; the other is {other}")
                break


def _gate(gate: Mapping[str, Any], criteria: Criteria, loc: Loc) -> Iterator[Found]:
    name, kind = gate.get("criterion"), kind_of(gate.get("criterion"), gate.get("kind"))
    if not name and kind != "ratio":
        yield Found(loc, f"compares nothing: give it a 'criterion'{_one_of(criteria)}")
    for field in ("criterion", "control", "confirm"):
        if gate.get(field) and (problem := criteria.problem(gate[field])):
            yield Found((*loc, field), problem)
    yield from _kind(gate, kind, loc)
    yield from _others(gate, kind, criteria, loc)


def _one_of(criteria: Criteria) -> str:
    return f" ({', '.join(criteria.names)})" if criteria.judges else ""


def _kind(gate: Mapping[str, Any], kind: str, loc: Loc) -> Iterator[Found]:
    """Whether the kind goes with what is compared, and the fields with the kind."""
    name, direction = gate.get("criterion"), gate.get("direction")
    fits = {"cost": ("cost_usd",), "latency": MEASURED[1:]}.get(kind)
    if fits is not None and isinstance(name, str) and name and name not in fits:
        yield Found((*loc, "kind"), f"{kind} compares {' or '.join(fits)}, not {name!r}; scores are quality or rate")
    if fits is None and name in MEASURED and kind != "ratio":
        yield Found((*loc, "kind"), f"{kind} compares scores from 0 to 1, and {name} is none; leave 'kind' out")
    for field, kinds in _ONLY.items():
        if gate.get(field) and kind not in kinds:
            yield Found((*loc, field), f"belongs to kind {' or '.join(kinds)}, but kind is {kind!r}", at_key=True)
    if direction is not None and kind in _DIRECTIONS and direction not in _DIRECTIONS[kind]:
        yield Found((*loc, "direction"), f"does not go with kind {kind!r}: leave it out", at_key=True)
    margin = gate.get("margin")
    if isinstance(margin, str) and "point" in margin and kind not in ("quality", "rate"):
        yield Found((*loc, "margin"), f"points are of scores from 0 to 1: for {kind} write a share such as 20%")
    drops = direction in ("drop", "both") or (direction is None and kind not in ("cost", "latency"))
    if drops and is_number(share := _share(margin)) and share >= 1.0:
        yield Found((*loc, "margin"), "a drop of 100% or more can never be seen; write less")


def _share(margin: Any) -> Any:
    if isinstance(margin, str) and margin.rstrip().endswith("%"):
        try:
            return float(margin.rstrip(" %")) / 100.0
        except ValueError:
            return None
    return margin


def _others(gate: Mapping[str, Any], kind: str, criteria: Criteria, loc: Loc) -> Iterator[Found]:
    """Whether control and confirm are what they must be."""
    name, control, confirm = gate.get("criterion"), gate.get("control"), gate.get("confirm")
    if control and control == name:
        yield Found((*loc, "control"), "is the criterion itself; name a heuristic that goes with it")
    elif control and criteria.judge(control) is not None:
        yield Found((*loc, "control"), f"{control!r} is graded by a judge: a control must be scored on every record")
    if kind != "safety":
        return
    if confirm and confirm == name:
        yield Found((*loc, "confirm"), "a judge cannot confirm its own flags; name another criterion")
    flag_at = gate.get("flag_at")
    if is_number(flag_at) and flag_at > ASKED_AT and criteria.confirmer(name):
        asked = f"only scores of {ASKED_AT:g} or less are confirmed, so a flag above it would never act; write no more"
        yield Found((*loc, "flag_at"), asked)
    if not confirm and criteria.judge(name) is not None and not criteria.confirmer(name):
        message = (
            f"{name!r} is graded by a judge, whose flag another must confirm: add a criterion with another model and "
            f"'confirms: {name}', or make this gate 'kind: rate'"
        )
        yield Found(loc, message)


def _alphas(policy: Mapping[str, Any], gates: Mapping[int, Mapping[str, Any]], loc: Loc) -> Iterator[Found]:
    total = policy.get("alpha", 0.01)
    spending = {
        place: gate for place, gate in gates.items()
        if gate.get("role", "guardrail") == "guardrail" and not gate.get("dry_run") and gate.get("kind") != "ratio"
    }  # fmt: skip
    own = sum(gate["alpha"] for gate in spending.values() if is_number(gate.get("alpha")))
    share = [place for place, gate in spending.items() if gate.get("alpha") is None]
    segments = policy.get("segments")
    if isinstance(segments, Mapping) and segments.get("role") == "guardrail" and is_number(segments.get("alpha", 0)):
        watched = [g for g in spending.values() if kind_of(g.get("criterion"), g.get("kind")) in SEGMENTED]
        own += segments.get("alpha", SEGMENTS_ALPHA) * len(watched)
    if not is_number(total):
        return
    if own > total * (1 + 1e-9):
        where = (*loc, "alpha") if "alpha" in policy else (*loc, "gates")
        yield Found(where, f"alphas of guardrails and segments add up to {own:g}, more than the rollout's {total:g}")
    elif share and own >= total * (1 - 1e-9):
        message = f"alphas of other guardrails and segments take all of the rollout's {total:g}: nothing is left"
        yield Found((*loc, "gates", share[0]), message)


def _ramp(ramp: Any, loc: Loc) -> Iterator[Found]:
    last = 0.0
    steps: Iterable[Any] = ramp if isinstance(ramp, list) else ()
    for place, step in enumerate(steps):
        percent = _number(step.get("percent") if isinstance(step, Mapping) else step)
        if percent is None:
            continue
        at = (*loc, "ramp", place, "percent") if isinstance(step, Mapping) else (*loc, "ramp", place)
        if percent <= last:
            yield Found(at, f"the steps must rise: {percent:g} follows {last:g}")
        last = percent
    if isinstance(ramp, list) and len(ramp) == 1 and last >= 100.0:
        yield Found((*loc, "ramp"), "has no step before 100 percent: nothing would be compared")


def _number(percent: Any) -> float | None:
    if isinstance(percent, str):
        try:
            return float(percent.rstrip(" %"))
        except ValueError:
            return None
    return float(percent) if is_number(percent) else None
