"""The simulated service: what its scores, calls, records and prompts look like, with and without an incident."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.played import Fixed
from evalpipe.detectors.view import CALL_SUMS, Calls, Coverage, Place, PrintRun, Stretch
from evalpipe.profile import DIMENSIONS, Profile
from evalpipe.rollup import Rollup
from evalpipe.score import failed, scored
from evalpipe.sketch import Sketch

HERE = Path(__file__).parent
START = datetime(2026, 6, 1, tzinfo=UTC)
DAYS = 30
STEP = timedelta(minutes=5)
STEPS_A_DAY = timedelta(days=1) // STEP
FEATURES = {"refunds": 0.50, "orders": 0.35, "chat": 0.15}
CALLS_A_MINUTE = 400.0
SAMPLED = 0.02
LEVELS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
SHARES = np.array([0.02, 0.05, 0.09, 0.19, 0.65])
"""Of the rubric: mean .85, s.d. .24."""
RATES = {"no_refusal": 0.02, "format_ok": 0.01, "disclosed": 0.005, "complete": 0.005, "retrieved": 0.01,
         "tools_work": 0.01}  # fmt: skip
FALSE_FLAGS = 0.002
JUDGE_ERRORS = 0.005
COST, TOKENS = 0.004, 900.0
PROFILES_A_STEP = 4
PROMPTS = 20
GERMAN = 0.02


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
    """Forty of them: each kind twice, in an order and at times of the seed, with hours of rest between."""
    rng = np.random.default_rng([seed, 1])
    kinds: list[dict[str, Any]] = yaml.safe_load((HERE / "incidents.yaml").read_text()) * 2
    order = rng.permutation(len(kinds))
    lengths = np.array([kinds[i]["hours"] for i in order], float)
    # The first twelve hours are quiet; what is left is shared out as rest, eight hours and a random part of the others.
    left = DAYS * 24 - 12 - lengths.sum() - REST_H * len(kinds)
    extra = rng.dirichlet(np.ones(len(kinds) + 1)) * left
    at, found = 12.0, []
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


REST_H = 10.0
"""Least rest behind an incident: within it everything must have calmed down."""


class World:
    """Feeds a MemoryFeed, step by step."""

    def __init__(self, seed: int, feed: MemoryFeed, found: list[Incident]) -> None:
        self.rng = np.random.default_rng([seed, 2])
        self.feed = feed
        self.incidents = found
        self.topics = _unit(np.random.default_rng(7).standard_normal((12, DIMENSIONS)))
        self.style = _unit(np.random.default_rng(8).standard_normal(DIMENSIONS))
        self.prompt_lengths = np.random.default_rng(9).uniform(100, 600, PROMPTS)
        self.prompt_vectors = _unit(np.random.default_rng(10).standard_normal((PROMPTS, DIMENSIONS)))
        self.number = 0

    def effects(self, at: datetime) -> dict[tuple[str, str], float]:
        """What is wrong now: by what and feature ("" is all)."""
        return {(i.what, i.feature): i.by for i in self.incidents if i.start <= at < i.end}

    def step(self, at: datetime) -> None:
        """Everything that happens from ``at`` on, for one step."""
        wrong = self.effects(at)
        hour = (at - START) / timedelta(hours=1)
        rate = CALLS_A_MINUTE * (1 + 0.6 * np.sin(2 * np.pi * (hour - 9) / 24)) * 5
        for feature, share in FEATURES.items():
            place = Place("support", "production", "baseline", feature, "r1")
            calls = int(self.rng.poisson(rate * share))
            self._calls(place, at, calls, wrong, feature)
            self._scores(place, at, int(self.rng.binomial(calls, SAMPLED)), wrong, feature)
        self._profiles(at, wrong)
        self._coverage(at, wrong, rate)
        if at.minute == 0:
            self._prints(at, wrong)

    def _calls(self, place: Place, at: datetime, n: int, wrong: dict[tuple[str, str], float], feature: str) -> None:
        rng = self.rng
        times = wrong.get(("cost", feature), wrong.get(("cost", ""), 1.0))
        cost = COST / np.exp(0.32) * np.exp(0.8 * rng.standard_normal(n)) * times
        # Rules look at the seconds just before the end of a step, and at whole minutes before.
        slots = rng.integers(0, 60, n)
        slots = np.where(slots < 48, slots // 12, slots - 44)
        sums = {
            "calls": np.bincount(slots, minlength=16),
            "cost_usd": np.bincount(slots, cost, 16),
            "cost_squares": np.bincount(slots, cost * cost, 16),
            "tokens": np.bincount(slots, cost / COST * TOKENS, 16),
        }
        latency = 1200 * np.exp(0.6 * rng.standard_normal(n)) * wrong.get(("latency", ""), 1.0)
        ttft = 300 * np.exp(0.6 * rng.standard_normal(n)) * wrong.get(("ttft", ""), 1.0)
        sketches = {"latency": sketch(latency), "ttft": sketch(ttft)}
        for slot in range(16):
            values = {name: float(counts[slot]) for name, counts in sums.items()}
            seconds = 60 * slot if slot < 4 else 240 + 5 * (slot - 4)
            self.feed.add_calls(place, at + timedelta(seconds=seconds), values, sketches if slot == 0 else None)

    def _scores(self, place: Place, at: datetime, n: int, wrong: dict[tuple[str, str], float], feature: str) -> None:
        rng = self.rng
        errors = int(rng.binomial(n, wrong.get(("judge", ""), JUDGE_ERRORS)))
        quality = wrong.get(("quality", feature), wrong.get(("quality", ""), 1.0))
        counts = rng.multinomial(n - errors, worse(quality))
        self._add("grounded", place, at, rollup(dict(zip(LEVELS, counts, strict=True)), errors=errors))
        for name, usual in RATES.items():
            low = int(rng.binomial(n, wrong.get((name, ""), usual)))
            self._add(name, place, at, rollup({0.0: low, 1.0: n - low}))
        leaks = int(rng.binomial(n, wrong.get(("pii", ""), 0.0)))
        flags = leaks + int(rng.binomial(n - leaks, FALSE_FLAGS))
        self._add("no_pii", place, at, rollup({0.0: flags, 1.0: n - flags}))
        if flags:
            self._add("pii_confirmed", place, at, rollup({0.0: leaks, 1.0: flags - leaks}))

    def _add(self, criterion: str, place: Place, at: datetime, counted: Rollup) -> None:
        if counted.n_scored or counted.n_error:
            self.feed.add_rollup(criterion, place, at, counted, scorecard="support")

    def _profiles(self, at: datetime, wrong: dict[tuple[str, str], float]) -> None:
        features = list(FEATURES)
        for _ in range(PROFILES_A_STEP):
            feature = features[int(self.rng.choice(3, p=list(FEATURES.values())))]
            place = Place("support", "production", "baseline", feature, "r1")
            german, model = wrong.get(("language", ""), GERMAN), ("model", "") in wrong
            self.feed.add_profile(place, self.profile(at, feature, german, other_model=model))

    def profile(self, at: datetime, feature: str, german: float, *, other_model: bool) -> Profile:
        """What one record looks like."""
        rng = self.rng
        self.number += 1
        topic = int(rng.integers(12))
        language = "de" if rng.random() < german else "en"
        length = float(np.round(220 * np.exp(0.5 * rng.standard_normal())))
        answer = float(np.round(500 * np.exp(0.4 * rng.standard_normal()) * (1.5 if other_model else 1.0)))
        shape = str(rng.choice(["prose", "list", "table"], p=[0.4, 0.5, 0.1] if other_model else [0.8, 0.17, 0.03]))
        noise = rng.standard_normal((2, DIMENSIONS)) / 8
        said = self.topics[topic] + noise[0]
        told = self.topics[topic] + noise[1] + (0.5 * self.style if other_model else 0.0)
        return Profile(
            record_id=f"r{self.number}",
            captured_at=at,
            words={"language": language, "output_language": language, "feature": feature, "entities": "",
                   "format": shape, "finish": "stop"},
            sizes={"input_chars": length, "input_words": length / 6, "messages": 2.0, "output_chars": answer,
                   "output_words": answer / 6, "type_token": 0.7},
            input_embedding=tuple(_unit(said).tolist()),
            output_embedding=tuple(_unit(told).tolist()),
            input_key=f"k{int(rng.integers(200))}",
            unit=f"u{self.number}",
            embedder="simulated/1",
        )  # fmt: skip

    def _coverage(self, at: datetime, wrong: dict[tuple[str, str], float], rate: float) -> None:
        sampled = int(self.rng.poisson(rate * SAMPLED))
        failing = wrong.get(("judge", ""), JUDGE_ERRORS)
        waiting_s = 60.0 * wrong.get(("waiting", ""), 0.2)
        place = Place("support", "production", "baseline", "", "")
        self.feed.add_coverage(
            place,
            at,
            Coverage(
                observed=int(rate), sampled=sampled, shed=0, in_flight=int(sampled * waiting_s / 300), oldest_s=waiting_s,
                graded=sampled, judge_errors=int(self.rng.binomial(sampled, failing)), scored=sampled, heard_at=at,
            ),
        )  # fmt: skip

    def _prints(self, at: datetime, wrong: dict[tuple[str, str], float]) -> None:
        rng, other = self.rng, ("model", "") in wrong
        place = Place("support", "production", "baseline", "", "")
        for prompt in range(PROMPTS):
            length = self.prompt_lengths[prompt] * np.exp(0.15 * rng.standard_normal()) * (1.4 if other else 1.0)
            vector = self.prompt_vectors[prompt] + rng.standard_normal(DIMENSIONS) / 16 + (0.4 * self.style if other else 0)
            traits = {"chars": float(round(length)), "refusal": "yes" if rng.random() < 0.02 else "no", "finish": "stop"}
            run = PrintRun(f"p{prompt}", at, traits, "m-1", "f-1", tuple(_unit(vector).tolist()))
            self.feed.add_print(place, "support-model", run)


def baseline(seed: int) -> Fixed:
    """What was captured before the month began: a week of the same service, with its own luck."""
    rng = np.random.default_rng([seed, 3])
    n = int(CALLS_A_MINUTE * SAMPLED * 1440 * 7)
    until, since = START, START - timedelta(days=7)
    errors = int(rng.binomial(n, JUDGE_ERRORS))
    counted = {"grounded": rollup(dict(zip(LEVELS, rng.multinomial(n - errors, SHARES), strict=True)), errors=errors)}
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
        {"latency": sketch(1200 * np.exp(0.6 * rng.standard_normal(calls))),
         "ttft": sketch(300 * np.exp(0.6 * rng.standard_normal(calls))), "tpot": Sketch()},
    )  # fmt: skip
    world = World(seed + 10_000, MemoryFeed(START), [])
    features = list(rng.choice(list(FEATURES), p=list(FEATURES.values()), size=2000))
    looks = [
        world.profile(since + i * timedelta(minutes=5), str(feature), GERMAN, other_model=False)
        for i, feature in enumerate(features)
    ]
    stretches = {name: Stretch(name, "1", one, since, until) for name, one in counted.items()}
    return Fixed("the week before the month", stretches, metered, looks)


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


def rollup(counts: dict[float, int], errors: int = 0) -> Rollup:
    """Scores by value, each of weight 1."""
    made = Rollup()
    for value, count in counts.items():
        if count:
            one = Rollup()
            one.add(scored(float(value)))
            made.merge(_times(one, int(count)))
    if errors:
        one = Rollup()
        one.add(failed("no grade"))
        made.merge(_times(one, errors))
    return made


def _times(one: Rollup, count: int) -> Rollup:
    many = Rollup()
    for name in Rollup.__slots__:
        value = getattr(one, name)
        setattr(many, name, {k: v * count for k, v in value.items()} if isinstance(value, dict) else value * count)
    return many


def sketch(values: np.ndarray) -> Sketch:
    """Of these values in ms."""
    made = Sketch()
    kept, counts = np.unique(np.round(np.log(np.maximum(values, 1e-3)) / 0.01), return_counts=True)
    for key, count in zip(kept, counts, strict=True):
        made.add(float(np.exp(key * 0.01)), int(count))
    return made


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

