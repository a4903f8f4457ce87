"""Whether a model behaves as it did: the same prompts, asked again and again, answered in another way.

A provider may change what is behind a model's name without a word. The fixed set of prompts is asked on a schedule,
through the application's own model settings, so a change is seen with no traffic at all. The newest rounds are
compared with the first ones (the reference), trait by trait, by an exact permutation test within each prompt; Holm's
correction over the traits keeps the rate of the whole look (Holm, Scand. J. Statistics 6, 1979). A model that was
never returned before is told at once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import sqrt
from statistics import median
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, RatedParams, State, detectors
from evalpipe.detectors.view import PrintRun, View
from evalpipe.stats.shift import holm
from evalpipe.stats.stratified import Stratum, beyond_noise, least_p, p_value

EMBEDDING = "embedding"
FLOORS: Mapping[str, float] = {"number": 0.1, "word": 0.1, EMBEDDING: 0.05}
"""Least effects that are worth a word: a relative change of the mean, a share of the answers, a distance of the mean
embeddings (0 is the same, 1 unrelated); each without what chance makes of it in so few rounds."""
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class FingerprintParams(RatedParams):
    """Of ``fingerprint``."""

    fingerprint: str = Field(min_length=1, description="The set of prompts, by its name in a file of `fingerprints:`.")
    reference_rounds: int = Field(
        default=12, ge=4, le=100, description="How many rounds from the start are the reference."
    )
    rounds: int = Field(default=3, ge=1, le=24, description="How many of the newest rounds are compared with it.")
    system_fingerprint: bool = Field(
        default=False, description="Also alert when the provider returns a new system fingerprint; some do daily."
    )


class _Trait(NamedTuple):
    """One characteristic, in both stretches.

    Attributes:
        effect: in the unit of ``FLOORS``.
        words: what changed, for people.
    """

    name: str
    kind: str
    p: float
    effect: float
    words: str


@detectors.register("fingerprint")
class Fingerprint:
    """Compares the newest rounds of a fixed set of prompts with the first ones."""

    Params: ClassVar[type[DetectorParams]] = FingerprintParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "fingerprint"
    inputs: ClassVar[frozenset[Input]] = frozenset({"prints"})
    criteria: tuple[str, ...] = ()

    def __init__(self, params: Any) -> None:
        assert isinstance(params, FingerprintParams)
        self._params = params

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Once for each round; between rounds the last finding stands."""
        runs = view.prints(self._params.fingerprint, BEGINNING)
        latest = max((run.at for run in runs), default=None)
        if latest is not None and state.get("latest") == latest.isoformat():
            return state, _stored(state)
        finding = self.compare(runs)
        if latest is None:
            return {}, finding
        kept = {"violated": finding.violated, "value": finding.value, "n": finding.n, "reason": finding.reason}
        return {"latest": latest.isoformat(), **kept, "numbers": dict(finding.numbers)}, finding

    def compare(self, runs: Sequence[PrintRun]) -> Finding:
        """The newest rounds of these runs with the first ones."""
        rounds = sorted({run.at for run in runs})
        if not rounds:
            return Finding(None, reason=f"fingerprint {self._params.fingerprint!r} has not run yet")
        return self._compare(runs, rounds)

    def _compare(self, runs: Sequence[PrintRun], rounds: Sequence[datetime]) -> Finding:
        wanted = self._params.reference_rounds
        first, newest = set(rounds[:wanted]), set(rounds[wanted:][-self._params.rounds :])
        reference = [run for run in runs if run.at in first]
        current = [run for run in runs if run.at in newest]
        if not current:
            return Finding(None, n=len(rounds), reason=f"{len(rounds)} of {wanted} rounds of the reference have run")
        if new := sorted({r.model for r in current if r.at == rounds[-1]} - {r.model for r in reference} - {""}):
            before = ", ".join(sorted({r.model for r in reference} - {""})) or "none"
            reason = f"the provider returned the model {', '.join(new)}, never seen in the reference ({before})"
            return Finding(True, n=len(current), reason=reason, numbers={"models": new, **_sizes(reference, current)})
        prints = sorted({r.fingerprint for r in current} - {r.fingerprint for r in reference} - {""})
        level = _level(rounds, self._params.false_alarm_every)
        seed = int.from_bytes(
            hashlib.blake2b(f"{self._params.fingerprint}{rounds[-1]}".encode(), digest_size=8).digest()
        )
        traits = list(_traits(reference, current, level, seed))
        if not prints and (why := _blind(reference, current, level / max(len(traits), 1))):
            return Finding(None, n=len(current), reason=why, numbers=_sizes(reference, current))
        moved = _moved(traits, level)
        numbers = {
            "level": level,
            "moved": [trait.name for trait in moved],
            "traits": {t.name: {"p": round(t.p, 6), "effect": round(t.effect, 4)} for t in traits},
            "system_fingerprints": prints,
            **_sizes(reference, current),
        }
        told = [trait.words for trait in moved]
        if prints:
            told.append(f"the provider returned a new system fingerprint ({', '.join(prints[:3])})")
        violated = bool(moved) or (bool(prints) and self._params.system_fingerprint)
        calm = f"answers to {len({r.prompt for r in current})} prompts are as in the reference"
        return Finding(
            violated, value=float(len(moved)), n=len(current), reason="; ".join(told) or calm, numbers=numbers
        )


def _stored(state: State) -> Finding:
    return Finding(state["violated"], state["value"], state["n"], state["reason"], numbers=state["numbers"])


def _sizes(reference: Sequence[PrintRun], current: Sequence[PrintRun]) -> dict[str, Any]:
    return {
        "reference": {"n": len(reference), "since": min(r.at for r in reference).isoformat()},
        "current": {"n": len(current), "since": min(r.at for r in current).isoformat()},
    }


def _blind(reference: Sequence[PrintRun], current: Sequence[PrintRun], level: float) -> str:
    """Why no change whatever could be seen; "" if one can."""
    sides = _by_prompt(reference), _by_prompt(current)
    sizes = [(len(sides[0][prompt]), len(sides[1][prompt])) for prompt in sides[0].keys() & sides[1].keys()]
    if least_p(sizes) <= level:
        return ""
    return (
        f"{len(sizes)} prompts in common, {len(reference)} answers of before and {len(current)} of now are too few to "
        f"tell any change from chance at this rate of false alarms (a p-value of {level:.1g} is needed, and "
        f"{least_p(sizes):.1g} is the smallest there can be): add prompts or rounds"
    )


def _level(rounds: Sequence[datetime], false_alarm_every: timedelta) -> float:
    """Of one look, so that false alarms are as rare as wanted: there is a look for each round."""
    gaps_s = [(b - a).total_seconds() for a, b in pairwise(rounds)]
    return min(max(median(gaps_s) / false_alarm_every.total_seconds(), 1e-4), 0.05)


def _moved(traits: Sequence[_Trait], level: float) -> list[_Trait]:
    """The traits that moved at this level, all tests together, and by more than their floor."""
    adjusted = holm({trait.name: trait.p for trait in traits})
    moved = (t for t in traits if adjusted[t.name] <= level and t.effect >= FLOORS[t.kind])
    return sorted(moved, key=lambda t: t.p)


def _traits(reference: Sequence[PrintRun], current: Sequence[PrintRun], level: float, seed: int) -> Iterable[_Trait]:
    sides = _by_prompt(reference), _by_prompt(current)
    prompts = sorted(sides[0].keys() & sides[1].keys())
    names = sorted({name for run in current for name in run.traits})
    share = level / (len(names) + 1)  # Holm's strictest level
    for number, name in enumerate(names):
        then, now = ({p: [r.traits[name] for r in side[p] if name in r.traits] for p in prompts} for side in sides)
        some = [value for values in (*then.values(), *now.values()) for value in values]
        made = _words if any(isinstance(value, str) for value in some) else _numbers
        yield made(name, then, now, share, seed + number)
    embedded = [{p: np.array([r.embedding for r in side[p] if r.embedding]) for p in prompts} for side in sides]
    strata = [Stratum(embedded[0][p], embedded[1][p]) for p in prompts if len(embedded[0][p]) and len(embedded[1][p])]
    if strata:
        apart = float(np.mean([_apart(stratum) for stratum in strata])) * beyond_noise(strata)
        said = f"answers mean something else: their embeddings are {apart:.2f} apart"
        yield _Trait(EMBEDDING, EMBEDDING, p_value(strata, level=share, seed=seed + len(names)), apart, said)


def _numbers(
    name: str, then: Mapping[str, Sequence[Any]], now: Mapping[str, Sequence[Any]], level: float, seed: int
) -> _Trait:
    strata = [Stratum(np.array(then[p], float), np.array(now[p], float)) for p in then if then[p] and now[p]]
    before = float(np.mean([s.reference.mean() for s in strata])) if strata else 0.0
    after = float(np.mean([s.current.mean() for s in strata])) if strata else 0.0
    typical = float(np.mean([abs(s.reference.mean()) for s in strata])) if strata else 0.0
    moved = float(np.mean([abs(s.current.mean() - s.reference.mean()) for s in strata])) if strata else 0.0
    effect = moved / max(typical, 1e-9) * sqrt(beyond_noise(strata))
    said = f"{name} {before:.3g} -> {after:.3g} on the average"
    return _Trait(name, "number", p_value(strata, level=level, seed=seed), effect, said)


def _words(
    name: str, then: Mapping[str, Sequence[Any]], now: Mapping[str, Sequence[Any]], level: float, seed: int
) -> _Trait:
    values = sorted({str(v) for side in (then, now) for given in side.values() for v in given})
    strata = [Stratum(_one_hot(then[p], values), _one_hot(now[p], values)) for p in then if then[p] and now[p]]
    if not strata:
        return _Trait(name, "word", 1.0, 0.0, "")
    before, after = (np.mean([side.mean(axis=0) for side in sides], axis=0) for sides in zip(*strata, strict=True))
    effect = float(np.mean([np.abs(s.current.mean(axis=0) - s.reference.mean(axis=0)).sum() / 2 for s in strata]))
    effect *= sqrt(beyond_noise(strata))
    most = int(np.argmax(np.abs(after - before)))
    said = f"{name} {values[most]!r} {before[most]:.0%} -> {after[most]:.0%}"
    return _Trait(name, "word", p_value(strata, level=level, seed=seed), effect, said)


def _by_prompt(runs: Sequence[PrintRun]) -> dict[str, list[PrintRun]]:
    found: dict[str, list[PrintRun]] = defaultdict(list)
    for run in runs:
        found[run.prompt].append(run)
    return found


def _one_hot(given: Sequence[Any], values: Sequence[str]) -> NDArray[Any]:
    return np.array([[str(value) == word for word in values] for value in given], float)


def _apart(stratum: Stratum) -> float:
    """1 - the cosine of the two mean embeddings."""
    a, b = stratum.reference.mean(axis=0), stratum.current.mean(axis=0)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / length if length else 0.0
