"""Detectors of drift: false alarms and power on labelled shifts of generated texts, and what profiles cost.

    python bench/detection/drift.py [--json] [--quick] [--scenarios FILE ...] [--only WORD]

Scenarios with their seeds are a file (bench/detection/drift.yaml), and so are the grammars that the texts are made from
(bench/detection/drift_texts.yaml). Every record is written, and profiled by the code that does so at ingest; windows
and their baselines are drawn from pools of such records, conversations as wholes, none twice in one comparison. Power
is the share of windows in which the detector finds a dimension that moved, as it is by default: one false alarm in 30
days of windows of an hour, with its floors. False alarms are counted at a level of 1 % for each window, with the floors
and without (the share of windows whose smallest p, adjusted for all dimensions, is at most .01).
"""

# ruff: noqa: E402 - the path comes first

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import numpy as np
import yaml
from machine import describe

from evalpipe.detectors.drift import Pair, finding_of
from evalpipe.detectors.input_drift import INPUT_TESTS, InputDriftParams
from evalpipe.detectors.output_drift import OUTPUT_TESTS, OutputDriftParams
from evalpipe.profiling.embedders.base import open_embedder
from evalpipe.profiling.profiler import Profiler
from evalpipe.record import Record
from evalpipe.release import Release
from evalpipe.stats.shift import holm

AT = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DEFAULT_LEVEL = HOUR / timedelta(days=30)
LEVEL = 0.01
POWER = 0.95
QUICK = 5
QUESTIONS = 60
"""That recur."""
BEFORE, AFTER = 30_000, 6_000
"""Records in the pools that windows and their baselines are drawn from, without drift and with it."""
TEXTS = yaml.safe_load((HERE / "drift_texts.yaml").read_text())
INPUT = InputDriftParams()
OUTPUT = OutputDriftParams()


@dataclass(frozen=True)
class Scenario:
    """See drift.yaml."""

    name: str
    seed: int
    window: int
    baseline: int
    before: dict
    expect: list
    now: dict = field(default_factory=dict)
    turns: int = 1
    heavy: float = 0.0

    @property
    def after(self):
        """The mix of now."""
        return {**self.before, **self.now}


class Writer:
    """Writes records by a mix, and profiles them."""

    def __init__(self, rng):
        self.rng = rng
        self.profiler = Profiler()
        self.n = 0

    def pick(self, shares):
        """One of the names, by their shares."""
        names = list(shares)
        return names[int(self.rng.choice(len(names), p=np.array([shares[n] for n in names])))]

    def any(self, options):
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def question(self, mix):
        """One topic, thing and way of asking; the recurring ones are always the same."""
        topic = self.pick(mix["topic"])
        rng = self.rng
        number = -1  # not one of those that recur
        if rng.random() < mix["recurring"]:
            number = int(rng.integers(QUESTIONS))
            rng = np.random.default_rng([number, sorted(TEXTS["topics"]).index(topic)])
        spec = TEXTS["topics"][topic]
        choice = [int(rng.integers(10**6)) for _ in range(3)]
        thing = spec["things"][choice[0] % 6]
        if number < 0:
            thing = f"{self.any(TEXTS['qualities'])} {thing}"
        return topic, number, thing, spec["verbs"][choice[1] % 6], choice[2]

    def asked(self, mix, language, number, thing, verb, ask):
        """The input's text."""
        if self.rng.random() < mix["json"]:
            body = {"query": f"{verb} {thing}", "limit": int(self.rng.integers(5, 50)), "filters": [thing]}
            if self.rng.random() < mix["new_key"]:
                body["locale"] = language
            return json.dumps(body)
        asks = TEXTS["asks"][language]
        parts = [self.any(TEXTS["openings"][language]), asks[ask % len(asks)].format(verb=verb, thing=thing)]
        if number < 0 and self.rng.random() < mix["long"]:
            parts += [self.any(TEXTS["more"][language]) for _ in range(int(self.rng.integers(1, 4)))]
        if self.rng.random() < mix["contact"]:
            digits = int(self.rng.integers(100, 999))
            parts.append(self.any(TEXTS["contacts"]).format(name=self.any(TEXTS["names"]), digits=digits))
        return " ".join(filter(None, parts))

    def answered(self, mix, language, topic, number, thing):
        """The answer's text."""
        style = TEXTS["styles"][self.pick(mix["style"])]
        facts = TEXTS["topics"][topic]["facts"] if language == "en" else TEXTS["translated"][language]
        fact = facts[int(self.rng.integers(3))] if number < 0 else facts[number % 3]
        if number >= 0 and number < mix["changed"] * QUESTIONS:
            fact = facts[(number + 1) % 3]
        parts = [self.any(style["begin"]).format(thing=thing), fact, self.any(style["end"])]
        if style["format"] == "list":
            steps = [self.any(TEXTS["steps"]) for _ in range(int(self.rng.integers(3, 6)))]
            return "\n".join([parts[0], *(f"- {step}" for step in steps), parts[1], parts[2]])
        return " ".join(filter(None, parts))

    def record(self, mix, session, topic_of=None):
        """One record."""
        topic, number, thing, verb, ask = self.question({**mix, "topic": topic_of or mix["topic"]})
        language = session[1]
        self.n += 1
        return Record(
            record_id=f"r{self.n}",
            trace_id=f"t{self.n}",
            captured_at=AT,
            release=Release(service="desk"),
            feature=self.pick(mix["feature"]),
            session_id=session[0],
            messages=[{"role": "user", "content": self.asked(mix, language, number, thing, verb, ask)}],
            output=self.answered(mix, language, topic, number, thing),
            probability=session[2],
        )

    def profiles(self, mix, n, turns=1, heavy=0.0):
        """So many profiles, in conversations that keep to one language and topic."""
        found = []
        while len(found) < n:
            session = (f"s{self.n}", self.pick(mix["language"]), 0.1 if self.rng.random() < heavy else 1.0)
            topic = {self.pick(mix["topic"]): 1.0} if turns > 1 else None
            found += [self.profiler.profile(self.record(mix, session, topic)) for _ in range(turns)]
        return found[:n]


def look(before, now):
    """Both detectors: which dimensions drift by default and at a level of 1 %, and each p and effect."""
    pair = Pair(before, now)
    found = {"default": [], "level": [], "bare": [], "p": {}, "effect": {}}
    for kind, tests, params in (("input", INPUT_TESTS, INPUT), ("output", OUTPUT_TESTS, OUTPUT)):
        moved = {key: m for key, test in tests.items() if (m := test(pair, params)) is not None}
        for word, level in (("default", DEFAULT_LEVEL), ("level", LEVEL)):
            drifting = finding_of(moved, pair, level, "").numbers["drifting"]
            found[word] += [f"{kind} {key}" for key in drifting]
        found["bare"].append(min(holm({key: m.p for key, m in moved.items()}).values()) <= LEVEL)
        found["p"] |= {f"{kind} {key}": m.p for key, m in moved.items()}
        found["effect"] |= {f"{kind} {key}": m.effect for key, m in moved.items()}
    return found


def play(scenario, windows, pools, part=1):
    """All windows of a scenario, each with a baseline of its own; whole conversations are drawn."""
    rng = np.random.default_rng(scenario.seed)
    before = pool(pools, scenario.before, scenario, BEFORE // part)
    after = pool(pools, scenario.after, scenario, AFTER // part) if scenario.now else before
    found = []
    for _ in range(windows):
        if scenario.now:
            drawn = [
                draw(rng, before, scenario.baseline, scenario.turns),
                draw(rng, after, scenario.window, scenario.turns),
            ]
        else:
            both = draw(rng, before, scenario.baseline + scenario.window, scenario.turns)
            drawn = [both[: scenario.baseline], both[scenario.baseline :]]
        found.append(look(*drawn))
    return summary(scenario, found)


def pool(pools, mix, scenario, n):
    """Profiles to draw from, made once for each mix."""
    key = json.dumps([mix, scenario.turns, scenario.heavy, n])
    if key not in pools:
        writer = Writer(np.random.default_rng(list(key.encode())))
        pools[key] = writer.profiles(mix, n, scenario.turns, scenario.heavy)
    return pools[key]


def draw(rng, profiles, n, turns):
    """So many of them, none twice."""
    starts = rng.choice(len(profiles) // turns, n // turns, replace=False) * turns
    return [profiles[start + i] for start in starts for i in range(turns)]


def summary(scenario, found):
    def share(hits):
        return float(np.mean(hits))

    keys = sorted({key for f in found for key in f["p"]})
    row = {
        "scenario": scenario.name,
        "windows": len(found),
        "per_dimension": {k: share([f["p"][k] <= LEVEL for f in found if k in f["p"]]) for k in keys},
        "input_bare": share([f["bare"][0] for f in found]),
        "output_bare": share([f["bare"][1] for f in found]),
    }
    for kind in ("input", "output"):
        row[f"{kind}_found"] = share([any(d.startswith(kind) for d in f["default"]) for f in found])
        row[f"{kind}_level"] = share([any(d.startswith(kind) for d in f["level"]) for f in found])
    if scenario.expect:
        row["power"] = share([bool(set(scenario.expect) & set(f["default"])) for f in found])
        row["effects"] = {
            k: round(float(np.mean([f["effect"][k] for f in found if k in f["effect"]] or [0.0])), 3)
            for k in scenario.expect
        }
        row["each"] = {k: share([k in f["default"] for f in found]) for k in scenario.expect}
    return row


def met(row):
    if "power" in row:
        return row["power"] >= POWER
    return max(row["input_level"], row["output_level"]) <= LEVEL


def costs(records=3_000):
    """Microseconds of processor time for a profile of an input of 300 and an answer of 1,000 characters, and a part."""
    writer = Writer(np.random.default_rng(1))
    facts = [fact for topic in TEXTS["topics"].values() for fact in topic["facts"]]
    mix = yaml.safe_load((HERE / "drift.yaml").read_text())["defaults"]["before"]
    made = []
    for _ in range(records):
        record = writer.record({**mix, "json": 0.0}, ("s", "en", 1.0))
        asked = " ".join([record.input_text, *(writer.any(TEXTS["more"]["en"]) for _ in range(9))])[:300]
        answer = " ".join([record.output, *(writer.any(facts) for _ in range(20))])[:1_000]
        made.append(replace(record, messages=[{"role": "user", "content": asked}], output=answer))
    embedder = open_embedder("static")
    found = {}
    for name, run in (
        ("embedding of both", lambda r: embedder.embed((r.input_text, r.output))),
        ("profile", writer.profiler.profile),
    ):
        for record in made[:200]:
            run(record)
        started = time.thread_time()
        for record in made:
            run(record)
        found[name] = (time.thread_time() - started) / len(made) * 1e6
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a fifth of the windows, to see that it works")
    parser.add_argument("--scenarios", action="append", type=Path, help="other scenario files; may be repeated")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    options = parser.parse_args()
    machine, started, rows, pools = describe(), time.perf_counter(), [], {}
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        titles = f"{'windows':>8}{'power':>7}{'input':>7}{'output':>7}{'in 1%':>7}{'out 1%':>7}{'no floors':>13}"
        print(f"\n{'scenario':<50}{titles}")
    for path in options.scenarios or [HERE / "drift.yaml"]:
        written = yaml.safe_load(path.read_text())
        for spec in written["scenarios"]:
            if options.only in spec["name"]:
                scenario = Scenario(**{**written["defaults"], **spec})
                windows = 100 if scenario.expect else 300
                rows.append(
                    play(scenario, windows // QUICK if options.quick else windows, pools, 3 if options.quick else 1)
                )
                if not options.json:
                    print(line(rows[-1]), flush=True)
    cost = costs()
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows, "us": cost}, indent=2))
        return
    print(f"\n{', '.join(f'{name} {us:.0f} us' for name, us in cost.items())}; {time.perf_counter() - started:,.0f} s")


def line(row):
    """For people."""
    power = f"{row['power']:.3f}" if "power" in row else ""
    shown = "  ".join(f"{k} {e}: {row['each'][k]:.2f}" for k, e in row.get("effects", {}).items())
    if "power" not in row:
        worst = max(row["per_dimension"], key=row["per_dimension"].get)
        shown = f"worst dimension: {worst} {row['per_dimension'][worst]:.3f}"
    return (f"{row['scenario']:<50.49}{row['windows']:>8,}{power:>7}"
            f"{row['input_found']:>7.3f}{row['output_found']:>7.3f}{row['input_level']:>7.3f}{row['output_level']:>7.3f}{row['input_bare']:>7.3f}{row['output_bare']:>6.3f}"
            f"  {'met' if met(row) else 'MISSED'}  {shown}")  # fmt: skip


if __name__ == "__main__":
    main()
