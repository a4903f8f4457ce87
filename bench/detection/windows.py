"""Detectors of windows, flags, users and rounds: false alarms where nothing changes, and how soon a change is found.

    python bench/detection/windows.py [--json] [--quick] [--scenarios FILE ...] [--only WORD]

`coverage`, `burn_rate`, the user test of `cost`, `safety` and `fingerprint`. Scenarios with their seeds are a file
(bench/detection/windows.yaml). False alarms are counted over 100 times the length in which the rule allows one: an
alarm is a beginning, however many looks it lasts. Shares are exactly at the limits that the rule allows. A scenario is
met with at most 100 + 2.6 sqrt(100) alarms: a detector with exactly its stated rate has more in one scenario of 200.
Of `cost` all alarms of the rule count, those of the place too. A change counts as found if an alarm begins after it.
"""

# ruff: noqa: E402 - the paths come first

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import numpy as np
import yaml
from machine import describe
from metered_world import PLACE, START, Stream, StreamView

from evalpipe.alerts.played import Fixed
from evalpipe.detectors.base import detectors
from evalpipe.detectors.view import Coverage, PrintRun, Spender, Stretch
from evalpipe.rollup import BINS, Rollup
from evalpipe.scorecard.values import parse_duration

LENGTHS = 100
RUNS = 20
QUICK = 20
CHANCE = 2.6
"""Standard deviations of a Poisson count by which alarms may exceed the lengths."""
SLOT_S = 5
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
MOST_USERS = 32
"""That a view tells of, the heaviest."""
USD_A_TOKEN = 5e-6


@dataclass(frozen=True)
class Scenario:
    """See windows.yaml."""

    name: str
    detector: str
    seed: int
    params: dict
    world: dict
    now: dict = field(default_factory=dict)
    look_s: int = 15
    streams: int = 1
    within: str = "6h"
    found: float = 1.0

    @property
    def made(self):
        """The detector."""
        made = detectors.get(self.detector)
        return made(made.Params.model_validate(self.params))

    @property
    def every_s(self):
        """In which one false alarm is allowed."""
        return parse_duration(self.params["false_alarm_every"]).total_seconds()

    def by_step(self, name, seconds, changed_s, before=0):
        """A value of the world at each look, from ``before`` seconds earlier on; that of ``now`` after a change."""
        found = np.full((before + seconds) // self.look_s, self.world[name], float)
        if changed_s is not None:
            found[(before + changed_s) // self.look_s :] = self.now.get(name, self.world[name])
        return found


class Counts:
    """Counts by steps of time, added up over windows."""

    def __init__(self, step_s, **counts):
        self.step_s = step_s
        self.sums = {name: [0, *np.cumsum(found).tolist()] for name, found in counts.items()}

    def between(self, name, since_s, until_s):
        """In whole steps."""
        sums = self.sums[name]
        low, high = (min(max(int(at // self.step_s), 0), len(sums) - 1) for at in (since_s, until_s))
        return sums[high] - sums[low]


@dataclass
class Counted:
    """A view of counts at a time, at the grain of the store: hooks by the hour, judges and scores by the minute."""

    counts: Counts
    now_s: int
    place: Any = PLACE

    @property
    def at(self):
        """Now."""
        return START + timedelta(seconds=self.now_s)

    def coverage(self, since, until):
        """The ledger's health; nothing waits, and hooks are heard."""
        first, last = _s(since), _s(until)
        hooks = {name: self.counts.between(name, first // HOUR_S * HOUR_S, last)
                 for name in ("observed", "sampled", "shed")}  # fmt: skip
        judges = {name: self.counts.between(name, -(-first // MINUTE_S) * MINUTE_S, last)
                  for name in ("graded", "judge_errors")}  # fmt: skip
        return Coverage(**hooks, **judges, oldest_s=5.0, heard_at=until)

    def scores(self, criterion, since, until):
        """Passes and failures of a window."""
        first, last = -(-_s(since) // MINUTE_S) * MINUTE_S, _s(until)
        n = self.counts.between("scored", first, last)
        return _stretch(criterion, n, self.counts.between("failed", first, last)) if n else None


def _s(at):
    return int((at - START).total_seconds())


def _stretch(criterion, n, low, since=None, until=None):
    return Stretch(criterion, "1", Rollup(n_scored=n, bins={0: low, BINS + 1: n - low}), since, until)


def coverage_looks(scenario, rng, seconds, changed_s):
    """Hooks count calls, sample some and shed some of these; a judge grades the others."""
    before, step = 2 * HOUR_S, scenario.look_s
    observed = rng.poisson(scenario.by_step("calls_an_hour", seconds, changed_s, before) * step / HOUR_S)
    sampled = rng.binomial(observed, scenario.by_step("sampled", seconds, changed_s, before))
    shed = rng.binomial(sampled, scenario.by_step("shed", seconds, changed_s, before))
    errors = rng.binomial(sampled - shed, scenario.by_step("judge_errors", seconds, changed_s, before))
    counts = Counts(step, observed=observed, sampled=sampled, shed=shed, graded=sampled - shed, judge_errors=errors)
    yield from looked(scenario, Counted(counts, 0), before, seconds)


def burn_rate_looks(scenario, rng, seconds, changed_s):
    """Scores pass or fail."""
    before, step = 6 * HOUR_S, scenario.look_s
    scored = rng.poisson(scenario.by_step("scores_an_hour", seconds, changed_s, before) * step / HOUR_S)
    failed = rng.binomial(scored, scenario.by_step("failing", seconds, changed_s, before))
    yield from looked(scenario, Counted(Counts(step, scored=scored, failed=failed), 0), before, seconds)


def looked(scenario, view, before, seconds):
    """A look at each step; seconds since the first, and what was found."""
    detector, state = scenario.made, {}
    for at in range(scenario.look_s, seconds + 1, scenario.look_s):
        view.now_s = before + at
        state, finding = detector.look(view, state)
        yield at, finding.violated


@dataclass
class Spending(StreamView):
    """A stream whose calls have users: what each spent, added up by the minute."""

    by_user: Any = None

    def users(self, since, until):
        """The heaviest of a window."""
        first, last = (min(max(_s(at) // MINUTE_S, 0), len(self.by_user) - 1) for at in (since, until))
        spent = self.by_user[last] - self.by_user[first]
        heaviest = np.argsort(-spent[:, 1], kind="stable")[:MOST_USERS]
        return [Spender(f"u{user}", float(spent[user, 0]), float(spent[user, 1] / USD_A_TOKEN), float(spent[user, 1]))
                for user in heaviest if spent[user, 0]]  # fmt: skip


def spent(scenario, rng, seconds, changed_s):
    """Calls as they come: when, whose, and what each costs.

    Sessions of a user begin at random; their calls come one after the other. From the change on the first user makes
    ``runaway`` calls a minute more.
    """
    world = scenario.world
    sessions = rng.poisson(world["sessions_an_hour"] * world["users"] * seconds / HOUR_S * 2)
    began = rng.uniform(0, seconds, sessions)
    began = began[rng.random(sessions) < _day(began, world["morning"]) / 2]
    many = rng.geometric(1.0 / world["calls"], len(began))
    gaps = rng.exponential(world["gap_s"], int(many.sum()))
    sums = np.cumsum(gaps)
    first = np.cumsum(many) - many
    when = np.repeat(began, many) + sums - np.repeat(sums[first], many)
    whose = np.repeat(rng.integers(0, world["users"], len(began)), many)
    if changed_s is not None:
        more = rng.poisson(scenario.now["runaway"] * (seconds - changed_s) / MINUTE_S)
        when = np.concatenate([when, rng.uniform(changed_s, seconds, more)])
        whose = np.concatenate([whose, np.zeros(more, int)])
    kept = when < seconds
    sigma = world["sigma"]
    costs = rng.lognormal(np.log(world["usd"]) - sigma * sigma / 2, sigma, int(kept.sum()))
    return when[kept], whose[kept], costs


def _day(at, morning):
    """Traffic by the hour: at night a part of that of the day, which it reaches from 8 to 9; mean 1 without nights."""
    hour = at % DAY_S / HOUR_S
    day = np.clip(hour - 8.0, 0.0, 1.0) * np.clip(21.0 - hour, 0.0, 1.0)
    return 1.0 / morning + (1.0 - 1.0 / morning) * day


def users_looks(scenario, rng, seconds, changed_s):
    """A look a minute, when hooks have told all of it."""
    before = 90 * MINUTE_S
    seconds += before
    when, whose, costs = spent(scenario, rng, seconds, None if changed_s is None else before + changed_s)
    slots, users = seconds // SLOT_S, scenario.world["users"]
    slot, minute = (when // SLOT_S).astype(int), (when // MINUTE_S).astype(int)
    cost, squares = np.bincount(slot, costs, slots), np.bincount(slot, costs * costs, slots)
    stream = Stream(float(SLOT_S), np.bincount(slot, minlength=slots).astype(float), cost / USD_A_TOKEN, cost, squares)
    by_user = np.zeros((seconds // MINUTE_S + 1, users, 2))
    np.add.at(by_user, (minute + 1, whose), np.stack([np.ones(len(costs)), costs], axis=1))
    view = Spending(stream, 0.0, by_user=by_user.cumsum(axis=0))
    detector, state = scenario.made, {}
    for at in range(MINUTE_S, seconds, MINUTE_S):
        view.now_s = at + 5.0
        state, finding = detector.look(view, state)
        if at >= before:
            yield at - before, finding.violated


@dataclass
class Flagged:
    """A view of scores as they arrive, with a baseline."""

    base: Fixed
    now_s: int = 0
    arrived: dict = field(default_factory=dict)
    place: Any = PLACE

    @property
    def at(self):
        """Now."""
        return START + timedelta(seconds=self.now_s)

    def growth(self, criterion):
        """What arrived since the last look."""
        n, low = self.arrived.get(criterion, (0, 0))
        return _stretch(criterion, n, low, self.at, self.at) if n else None

    def normal(self, since, until):
        """The baseline."""
        return self.base


def safety_looks(scenario, rng, seconds, changed_s):
    """Scores flag some records that are clean; each flag is confirmed, or not, some time later.

    Each stream has a baseline of its own, drawn from the same law.
    """
    world, step = scenario.world, scenario.look_s
    confirm, late = scenario.params.get("confirm", ""), int(world.get("late_s", 0)) // step
    rate = world["scores_an_hour"] * step / HOUR_S
    n = rng.poisson(rate, seconds // step)
    flags = rng.binomial(n, scenario.by_step("flagged", seconds, changed_s))
    confirmed = rng.binomial(flags, scenario.by_step("confirmed", seconds, changed_s)) if confirm else flags
    of_base = world["baseline"]
    usual = int(rng.binomial(of_base, world["flagged"]))
    span = START - timedelta(seconds=of_base / world["scores_an_hour"] * HOUR_S), START
    base = {"flag": _stretch("flag", of_base, usual, *span)}
    if confirm:
        base[confirm] = _stretch(confirm, usual, int(rng.binomial(usual, world["confirmed"])), *span)
    view, detector, state = Flagged(Fixed(by_criterion=base)), scenario.made, {}
    for i in range(len(n)):
        view.now_s = (i + 1) * step
        view.arrived = {"flag": (int(n[i]), int(flags[i]))}
        if confirm and i >= late:
            view.arrived[confirm] = int(flags[i - late]), int(confirmed[i - late])
        state, finding = detector.look(view, state)
        yield view.now_s, finding.violated


class Model:
    """Answers prompts, some of them always alike, and others as a temperature above 0 does."""

    def __init__(self, rng, world):
        self.rng, self.world = rng, world
        prompts = world["prompts"]
        self.chars = rng.uniform(100, 900, prompts)
        self.lists = rng.choice([0.0, 0.0, 0.3, 1.0], prompts)
        self.sure = rng.uniform(-0.8, -0.1, prompts)
        self.meaning = rng.standard_normal((prompts, 24))
        self.same = rng.random(prompts) < world["same"]

    def round(self, at, longer=1.0, refusals=None):
        """One answer to each prompt."""
        rng, world, found = self.rng, self.world, []
        refusals = world["refusals"] if refusals is None else refusals
        together = np.exp(world["round_sd"] * rng.standard_normal())
        for prompt in range(world["prompts"]):
            if rng.random() < world["unanswered"]:
                continue
            spread = 0.0 if self.same[prompt] else world["spread"]
            chars = round(self.chars[prompt] * np.exp(spread * rng.standard_normal()) * together * longer)
            refuses = rng.random() < refusals
            chars = 80 if refuses else chars
            vector = self.meaning[prompt] + 3.0 * spread * rng.standard_normal(24)
            vector = np.ones(24) if refuses else vector
            traits = {
                "chars": float(chars),
                "words": float(round(chars / 5.7)),
                "output_tokens": float(round(chars / 4.1)),
                "refusal": "yes" if refuses else "no",
                "format": "list" if not refuses and rng.random() < self.lists[prompt] else "prose",
                "finish": "stop" if chars < 1_200 else "length",
            }
            if world["logprobs"]:
                traits["logprob"] = float(self.sure[prompt] + 0.4 * spread * rng.standard_normal())
            embedding = tuple((vector / np.linalg.norm(vector)).tolist())
            found.append(PrintRun(f"p{prompt}", at, traits, "m-1", "", embedding))
        return found


@dataclass
class Asked:
    """A view of nothing but rounds."""

    runs: list
    at: datetime = START
    place: Any = PLACE

    def prints(self, name, since):
        """All of them."""
        return self.runs


def fingerprint_looks(scenario, rng, seconds, changed_s):
    """A round each ``look_s``, after those of the reference and of the first comparison."""
    detector, model, state = scenario.made, Model(rng, scenario.world), {}
    view, before = Asked([]), scenario.params.get("reference_rounds", 12) + scenario.params.get("rounds", 3) - 1
    for i in range(before + seconds // scenario.look_s):
        since = (i - before) * scenario.look_s
        now = scenario.now if changed_s is not None and since >= changed_s else {}
        view.at = START + timedelta(seconds=i * scenario.look_s)
        view.runs += model.round(view.at, **now)
        if i >= before:
            state, finding = detector.look(view, state)
            yield since, finding.violated


LOOKS = {"coverage": coverage_looks, "burn_rate": burn_rate_looks, "cost": users_looks, "safety": safety_looks,
         "fingerprint": fingerprint_looks}  # fmt: skip


def false_alarms(scenario, quick):
    """How many alarms over so many lengths, and in how much of the time there was one, or nothing could be told."""
    lengths = LENGTHS // QUICK if quick else LENGTHS
    streams = max(1, scenario.streams // QUICK) if quick else scenario.streams
    alarms = looks = unknown = held = 0
    for number in range(streams):
        was = False
        rng = np.random.default_rng((scenario.seed, number))
        for _, violated in LOOKS[scenario.detector](scenario, rng, int(lengths * scenario.every_s / streams), None):
            alarms += bool(violated) and not was
            was = bool(violated)
            looks, unknown, held = looks + 1, unknown + (violated is None), held + was
    most = lengths + CHANCE * math.sqrt(lengths)
    return {"name": scenario.name, "detector": scenario.detector, "every": scenario.params["false_alarm_every"],
            "lengths": lengths, "looks": looks, "alarms": alarms, "most": most, "violated": held / looks,
            "unknown": unknown / looks, "met": alarms <= most and unknown < looks}  # fmt: skip


def delays(scenario, quick):
    """From the change on, over so many runs, each with another time of the day; alarms of before have ended."""
    runs, within, found = RUNS // QUICK * 4 if quick else RUNS, int(parse_duration(scenario.within).total_seconds()), []
    for run in range(runs):
        rng = np.random.default_rng((scenario.seed, run))
        changed_s = HOUR_S + run * HOUR_S // RUNS // scenario.look_s * scenario.look_s
        was = False
        for at, violated in LOOKS[scenario.detector](scenario, rng, changed_s + within, changed_s):
            if violated and not was and at >= changed_s:
                found.append((at - changed_s) / MINUTE_S)
                break
            was = bool(violated)
    return {"name": scenario.name, "detector": scenario.detector, "every": scenario.params["false_alarm_every"],
            "runs": runs, "found": len(found) / runs, "within": scenario.within,
            "median": statistics.median(found) if found else None, "most": max(found, default=None),
            "met": len(found) / runs >= scenario.found}  # fmt: skip


def scenarios(paths, word):
    """Each with how it is played."""
    for path in paths:
        written = yaml.safe_load(path.read_text())
        for kind, play in (("false_alarms", false_alarms), ("delays", delays)):
            for spec in written.get(kind) or ():
                if word in spec["name"] or word == spec["detector"]:
                    usual = written["defaults"].get(spec["detector"], {})
                    both = {name: {**usual.get(name, {}), **spec.get(name, {})} for name in ("params", "world")}
                    yield play, Scenario(**{**usual, **spec, **both})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the lengths, to see that it works")
    parser.add_argument("--scenarios", action="append", type=Path, help="other scenario files; may be repeated")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it, or of this detector")
    options = parser.parse_args()
    machine, started, rows, title = describe(), time.process_time(), [], None
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for play, scenario in scenarios(options.scenarios or [HERE / "windows.yaml"], options.only):
        print(f"{time.process_time() - started:6.0f} s: {scenario.detector}, {scenario.name}", file=sys.stderr)
        rows.append(play(scenario, options.quick))
        if not options.json:
            if title is not play:
                print(titles(title := play))
            print(line(rows[-1]), flush=True)
    spent_s = time.process_time() - started
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows, "cpu_s": spent_s}, indent=2))
        return
    print(f"\n{spent_s:,.0f} s of CPU")


def titles(play):
    """Of the columns."""
    if play is false_alarms:
        return (f"\n{'detector':<12}{'nothing changes':<62}{'every':>6}{'lengths':>9}{'alarms':>8}{'at most':>9}"
                f"{'violated':>10}{'unknown':>9}")  # fmt: skip
    return f"\n{'detector':<12}{'change':<62}{'every':>6}{'runs':>6}{'found':>7}{'within':>8}{'median':>8}{'most':>7}"


def line(row):
    """One row for people."""
    head = f"{row['detector']:<12}{row['name']:<62.61}{row['every']:>6}"
    met = "met" if row["met"] else "MISSED"
    if "alarms" in row:
        return (f"{head}{row['lengths']:>9}{row['alarms']:>8}{row['most']:>9.0f}{row['violated']:>10.2%}"
                f"{row['unknown']:>9.2%}  {met}")  # fmt: skip
    times = "".join(f"{'never' if row[k] is None else f'{row[k]:.1f}':>{w}}" for k, w in (("median", 8), ("most", 7)))
    return f"{head}{row['runs']:>6}{row['found']:>7.0%}{row['within']:>8}{times} min  {met}"


if __name__ == "__main__":
    main()
