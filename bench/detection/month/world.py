"""The simulated service: what its scores, calls, records and prompts look like, with and without an incident."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.played import Fixed
from evalpipe.detectors.view import CALL_SUMS, Calls, Coverage, Place, PrintRun, Spender, Stretch
from evalpipe.profile import DIMENSIONS, Profile
from evalpipe.rollup import Rollup, bin_of
from evalpipe.sketch import Sketch

HERE = Path(__file__).parent
START = datetime(2026, 6, 1, tzinfo=UTC)
DAYS = 30
STEP = timedelta(minutes=5)
STEPS_A_DAY = timedelta(days=1) // STEP
FEATURES = {"refunds": 0.50, "orders": 0.35, "chat": 0.15}
CALLS_A_MINUTE = 1600.0
SAMPLED = 0.005
LEVELS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
SHARES = np.array([0.02, 0.05, 0.09, 0.19, 0.65])
"""Of the rubric: mean .85, s.d. .24."""
RATES = {"no_refusal": 0.02, "format_ok": 0.01, "disclosed": 0.005, "complete": 0.005, "retrieved": 0.01,
         "tools_work": 0.01}  # fmt: skip
FALSE_FLAGS = 0.002
JUDGE_ERRORS = 0.005
COST, TOKENS = 0.004, 900.0
INCIDENTS = 40
QUIET_H = 26.0
"""Without incidents at the beginning: the fingerprint asks its reference."""
REST_H = 10.0
"""Least rest behind an incident: within it everything must have calmed down."""
USERS = 5
"""Heavy ones of a feature, each with a hundredth of its calls."""
PROFILES_A_STEP = 4
"""Fewer than the 40 that would be sampled, in longer windows of the drift rules: it saves time, and is harder."""
PROMPTS = 12
GERMAN = 0.02
SHED = 0.001
SECONDS = (0, *range(225, 300, 5))
"""Where the calls of a step are: the newest, which rules look at one by one, by the five seconds of the meter."""
LASTING = np.diff([*SECONDS, 300]) / 300
_STEPS = np.arange(-4.0, 4.0, 0.06 / 0.6)
TIMES = np.exp(0.6 * _STEPS).tolist()
TIME_SHARES = np.exp(-_STEPS * _STEPS / 2)
TIME_SHARES /= TIME_SHARES.sum()


Effects = dict[tuple[str, str], float]
"""What is wrong now: by what and feature ("" is all)."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident of the month."""

    name: str
    what: str
    by: float
    severity: str
    start: datetime
    end: datetime
    feature: str = ""


def incidents(seed: int) -> list[Incident]:
    """Forty: each kind once, and some kinds of the seed's choice twice, in an order and at times that it draws."""
    rng = np.random.default_rng([seed, 1])
    kinds: list[dict[str, Any]] = yaml.safe_load((HERE / "incidents.yaml").read_text())
    kinds += [kinds[i] for i in rng.choice(len(kinds), INCIDENTS - len(kinds), replace=False)]
    order = rng.permutation(len(kinds))
    lengths = np.array([kinds[i]["hours"] for i in order], float)
    # The first hours are quiet; what is left is shared out as rest behind each, at least ten hours.
    left = DAYS * 24 - QUIET_H - lengths.sum() - REST_H * len(kinds)
    extra = rng.dirichlet(np.ones(len(kinds) + 1)) * left
    at, found = QUIET_H, []
    for index, kind in enumerate(order):
        at += extra[index]
        told = kinds[kind]
        start = START + timedelta(minutes=5 * round(at * 12))
        end = start + timedelta(hours=told["hours"])
        found.append(
            Incident(told["name"], told["what"], told["by"], told["severity"], start, end, told.get("feature", ""))
        )
        at += told["hours"] + REST_H
    return found


class World:
    """Feeds a MemoryFeed, step by step."""

    def __init__(self, seed: int, feed: MemoryFeed, found: list[Incident]) -> None:
        self.rng = np.random.default_rng([seed, 2])
        self.feed = feed
        self.incidents = found
        self.topics = _unit(np.random.default_rng(7).standard_normal((13, DIMENSIONS)))
        self.style = _unit(np.random.default_rng(8).standard_normal(DIMENSIONS))
        self.prompt_lengths = np.random.default_rng(9).uniform(100, 600, PROMPTS)
        self.prompt_vectors = _unit(np.random.default_rng(10).standard_normal((PROMPTS, DIMENSIONS)))
        self.number = 0

    def effects(self, at: datetime) -> Effects:
        """What is wrong now."""
        return {(i.what, i.feature): i.by for i in self.incidents if i.start <= at < i.end}

    def step(self, at: datetime) -> None:
        """Everything that happens from ``at`` on, for one step."""
        wrong = self.effects(at)
        if ("silent", "") in wrong:
            return
        hour = (at - START) / timedelta(hours=1)
        rate = CALLS_A_MINUTE * (1 + 0.6 * np.sin(2 * np.pi * (hour - 9) / 24)) * 5
        for feature, share in FEATURES.items():
            place = Place("support", "production", "baseline", feature, "r1")
            calls = int(self.rng.poisson(rate * share))
            self._calls(place, at, calls, wrong)
            self._users(place, at, rate * share, wrong)
            self._scores(place, at, int(self.rng.binomial(calls, SAMPLED)), wrong)
        self._profiles(at, wrong)
        self._coverage(at, wrong, rate)
        if at.minute == 0 and at.hour % 2 == 0:
            self._prints(at, wrong)

    def _calls(self, place: Place, at: datetime, n: int, wrong: Effects) -> None:
        rng = self.rng
        times = of(wrong, "cost", place.feature, 1.0)
        cost = COST / np.exp(0.32) * np.exp(0.8 * rng.standard_normal(n)) * times
        # Rules look at the newest seconds one by one, and at whole minutes before.
        slots = rng.choice(len(SECONDS), n, p=LASTING)
        counted = np.bincount(slots, minlength=len(SECONDS))
        spent, squares = np.bincount(slots, cost, len(SECONDS)), np.bincount(slots, cost * cost, len(SECONDS))
        runaway = wrong.get(("user", place.feature), 0.0) * COST * LASTING * n
        spent, squares = spent + runaway, squares + runaway * COST
        latency = slow(rng, n, 1200.0 * of(wrong, "latency", place.feature, 1.0))
        ttft = slow(rng, n, 300.0 * of(wrong, "ttft", place.feature, 1.0))
        for slot, second in enumerate(SECONDS):
            sums = {"calls": float(counted[slot]), "cost_usd": float(spent[slot]), "cost_squares": float(squares[slot]),
                    "tokens": float(spent[slot] / COST * TOKENS)}  # fmt: skip
            sketches = {"latency": latency, "ttft": ttft} if slot == 0 else None
            self.feed.add_calls(place, at + timedelta(seconds=second), sums, sketches)

    def _users(self, place: Place, at: datetime, calls: float, wrong: Effects) -> None:
        """The meter of the heaviest users; the one that runs away spends so many times what the feature does."""
        for user in range(USERS):
            n = float(self.rng.poisson(calls / 100))
            self.feed.add_spender(place, at, Spender(f"u{user}", n, n * TOKENS, n * COST))
        if times := wrong.get(("user", place.feature)):
            n = times * calls
            self.feed.add_spender(place, at, Spender("u-runaway", n, n * TOKENS, n * COST))

    def _scores(self, place: Place, at: datetime, n: int, wrong: Effects) -> None:
        rng, feature = self.rng, place.feature
        errors = int(rng.binomial(n, of(wrong, "judge", feature, JUDGE_ERRORS)))
        counts = rng.multinomial(n - errors, worse(of(wrong, "quality", feature, 1.0)))
        self._add("grounded", place, at, rollup(_counts(counts), errors))
        for name, usual in RATES.items():
            low = int(rng.binomial(n, of(wrong, name, feature, usual)))
            self._add(name, place, at, rollup({0.0: low, 1.0: n - low}))
        leaks = int(rng.binomial(n, of(wrong, "pii", feature, 0.0)))
        flags = leaks + int(rng.binomial(n - leaks, FALSE_FLAGS))
        self._add("no_pii", place, at, rollup({0.0: flags, 1.0: n - flags}))
        if flags:
            self._add("pii_confirmed", place, at, rollup({0.0: leaks, 1.0: flags - leaks}))

    def _add(self, criterion: str, place: Place, at: datetime, counted: Rollup) -> None:
        if counted.n_scored or counted.n_error:
            self.feed.add_rollup(criterion, place, at, counted, scorecard="support")

    def _profiles(self, at: datetime, wrong: Effects) -> None:
        features = list(FEATURES)
        for _ in range(PROFILES_A_STEP):
            feature = features[int(self.rng.choice(3, p=list(FEATURES.values())))]
            place = Place("support", "production", "baseline", feature, "r1")
            self.feed.add_profile(place, self.profile(at, feature, wrong))

    def profile(self, at: datetime, feature: str, wrong: Effects) -> Profile:
        """What one record looks like."""
        rng = self.rng
        self.number += 1
        other_model = ("model", "") in wrong
        topic = 12 if rng.random() < wrong.get(("topic", ""), 0.0) else int(rng.integers(12))
        language = "de" if rng.random() < wrong.get(("language", ""), GERMAN) else "en"
        schema = "order.v2" if rng.random() < wrong.get(("schema", ""), 0.0) else "order.v1"
        length = float(np.round(220 * np.exp(0.5 * rng.standard_normal()) * wrong.get(("length", ""), 1.0)))
        answer = float(np.round(500 * np.exp(0.4 * rng.standard_normal()) * (1.5 if other_model else 1.0)))
        shape = str(rng.choice(["prose", "list", "table"], p=[0.4, 0.5, 0.1] if other_model else [0.8, 0.17, 0.03]))
        noise = rng.standard_normal((2, DIMENSIONS)) / 8
        said = self.topics[topic] + noise[0]
        told = self.topics[topic] + noise[1] + (0.5 * self.style if other_model else 0.0)
        return Profile(
            record_id=f"r{self.number}",
            captured_at=at,
            words={"language": language, "output_language": language, "feature": feature, "entities": "",
                   "input_schema": schema, "format": shape, "finish": "stop"},
            sizes={"input_chars": length, "input_words": length / 6, "messages": 2.0, "output_chars": answer,
                   "output_words": answer / 6, "type_token": 0.7},
            input_embedding=tuple(_unit(said).tolist()),
            output_embedding=tuple(_unit(told).tolist()),
            input_key=f"k{int(rng.integers(200))}",
            unit=f"u{self.number}",
            embedder="simulated/1",
        )  # fmt: skip

    def _coverage(self, at: datetime, wrong: Effects, rate: float) -> None:
        sampled = int(self.rng.poisson(rate * SAMPLED))
        failing = wrong.get(("judge", ""), JUDGE_ERRORS)
        waiting_s = 60.0 * wrong.get(("waiting", ""), 0.2)
        place = Place("support", "production", "baseline", "", "")
        shed = int(self.rng.binomial(sampled, wrong.get(("shed", ""), SHED)))
        self.feed.add_coverage(
            place,
            at,
            Coverage(
                observed=int(rate), sampled=sampled, shed=shed, in_flight=int(sampled * waiting_s / 300),
                oldest_s=waiting_s, graded=sampled, judge_errors=int(self.rng.binomial(sampled, failing)),
                scored=sampled - shed, heard_at=at + STEP,
            ),
        )  # fmt: skip

    def _prints(self, at: datetime, wrong: Effects) -> None:
        rng, other = self.rng, ("model", "") in wrong
        place = Place("support", "production", "baseline", "", "")
        for prompt in range(PROMPTS):
            length = self.prompt_lengths[prompt] * np.exp(0.15 * rng.standard_normal()) * (1.4 if other else 1.0)
            vector = (
                self.prompt_vectors[prompt] + rng.standard_normal(DIMENSIONS) / 16 + (0.4 * self.style if other else 0)
            )
            traits = {
                "chars": float(round(length)),
                "refusal": "yes" if rng.random() < 0.02 else "no",
                "finish": "stop",
            }
            run = PrintRun(f"p{prompt}", at, traits, "m-1", "f-1", tuple(_unit(vector).tolist()))
            self.feed.add_print(place, "support-model", run)


def baseline(seed: int) -> Fixed:
    """What was captured before the month began: a week of the same service, with its own luck."""
    rng = np.random.default_rng([seed, 3])
    n = int(CALLS_A_MINUTE * SAMPLED * 1440 * 7)
    until, since = START, START - timedelta(days=7)
    errors = int(rng.binomial(n, JUDGE_ERRORS))
    counted = {"grounded": rollup(_counts(rng.multinomial(n - errors, SHARES)), errors)}
    for name, usual in RATES.items():
        low = int(rng.binomial(n, usual))
        counted[name] = rollup({0.0: low, 1.0: n - low})
    flags = int(rng.binomial(n, FALSE_FLAGS))
    counted["no_pii"] = rollup({0.0: flags, 1.0: n - flags})
    counted["pii_confirmed"] = rollup({1.0: flags})
    calls = 2_000_000
    metered = Calls(
        7 * 86_400.0,
        {**dict.fromkeys(CALL_SUMS, 0.0), "calls": CALLS_A_MINUTE * 1440 * 7},
        {"latency": slow(rng, calls, 1200.0), "ttft": slow(rng, calls, 300.0), "tpot": Sketch()},
    )  # fmt: skip
    world = World(seed + 10_000, MemoryFeed(START), [])
    features = list(rng.choice(list(FEATURES), p=list(FEATURES.values()), size=1200))
    looks = [world.profile(since + i * timedelta(minutes=8), str(feature), {}) for i, feature in enumerate(features)]
    stretches = {name: Stretch(name, "1", one, since, until) for name, one in counted.items()}
    return Fixed("the week before the month", stretches, metered, looks)


@cache
def worse(times: float) -> np.ndarray:
    """The rubric's shares with the mean lowered to so many times: tilted towards the low grades."""
    if times == 1.0:
        return SHARES
    wanted, low, high = times * float(SHARES @ LEVELS), 0.0, 50.0
    for _ in range(60):
        tilt = (low + high) / 2
        shares = SHARES * np.exp(-tilt * LEVELS)
        shares /= shares.sum()
        low, high = (tilt, high) if float(shares @ LEVELS) > wanted else (low, tilt)
    return shares


def of(wrong: Effects, what: str, feature: str, usual: float) -> float:
    """What is so in a feature: what is wrong there, or everywhere, or what is usual."""
    return wrong.get((what, feature), wrong.get((what, ""), usual))


def rollup(counts: dict[float, int], errors: int = 0) -> Rollup:
    """Scores by value, each of weight 1."""
    made = Rollup(n_scored=sum(counts.values()), n_error=errors)
    made.sum_w = made.sum_w2 = float(made.n_scored)
    made.sum_wx = made.sum_w2x = float(sum(value * n for value, n in counts.items()))
    made.sum_wx2 = made.sum_w2x2 = float(sum(value * value * n for value, n in counts.items()))
    made.bins = {bin_of(value): n for value, n in counts.items() if n}
    return made


def slow(rng: np.random.Generator, n: int, median: float) -> Sketch:
    """The times of n calls in ms: lognormal, to 6 %."""
    made = Sketch()
    for at, count in zip(TIMES, rng.multinomial(n, TIME_SHARES).tolist(), strict=True):
        if count:
            made.add(median * at, count)
    return made


def _counts(counts: Any) -> dict[float, int]:
    return dict(zip(LEVELS.tolist(), counts.tolist(), strict=True))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
