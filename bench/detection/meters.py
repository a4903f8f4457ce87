"""Detectors of the meter (cost, latency): false alarms on streams that do not drift, and how soon a change is found.

    python bench/detection/meters.py [--json] [--quick] [--scenarios FILE ...] [--only WORD]

Scenarios with their seeds are a file (bench/detection/meters.yaml). False alarms are counted over 100 times the length
that the rule asks for (the rule's second key, the ratio to the usual, is set low: `times: 2` for cost, 1.02 for
latency). Delays are in seconds for cost, with a look every 2 s and hooks that are 3 s behind, and in calls for latency,
with a false alarm a month allowed and a design effect of 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import numpy as np  # noqa: E402 - the paths come first
import yaml  # noqa: E402
from machine import describe  # noqa: E402
from metered_world import START, Past, StreamView, WindowView, sketched, spending  # noqa: E402

from evalpipe.detectors.cost import Cost, CostParams  # noqa: E402
from evalpipe.detectors.latency import Latency, LatencyParams  # noqa: E402
from evalpipe.detectors.view import Calls  # noqa: E402
from evalpipe.scorecard.values import parse_duration  # noqa: E402

LENGTHS = 100
PASTS = 20
"""That streams of latencies are compared with, one after the other: an unlucky one would tell of itself alone."""
RUNS = 20
BEFORE_S = 4_800
MINUTE = timedelta(minutes=1)


def begun(looks):
    """When alarms began, of pairs of time and finding."""
    was, found = False, []
    for at, finding in looks:
        if finding.violated and not was:
            found.append((at, finding))
        was = bool(finding.violated)
    return found


def cost_looks(stream, since, until, every, **params):
    """A look every so many seconds."""
    detector, state = Cost(CostParams(users=False, settle=timedelta(minutes=2), **params)), {}
    for at in np.arange(since, until, every):
        state, finding = detector.look(StreamView(stream, float(at)), state)
        yield float(at), finding


def latencies(rng, a_minute, sigma, factor=1.0):
    """The calls of a minute."""
    calls = Calls(60.0)
    sketch = sketched(factor * rng.lognormal(np.log(800.0), sigma, rng.poisson(a_minute)))
    calls.sums["calls"] = sketch.count
    calls.sketches = {**calls.sketches, "latency": sketch}
    return calls


def latency_looks(rng, minutes, scenario, changed_at=None, **params):
    """A look a minute, against 20,000 calls of before; the windows are the minute itself."""
    sigma, a_minute = scenario.get("sigma", 0.8), scenario["a_minute"]
    past = Calls(20_000 / a_minute * 60.0)
    past.sketches = {**past.sketches, "latency": sketched(rng.lognormal(np.log(800.0), sigma, 20_000))}
    detector, state, n = Latency(LatencyParams(**params)), {}, 0
    for minute in range(minutes):
        factor = scenario.get("factor", 1.0) if changed_at is not None and minute >= changed_at else 1.0
        calls = latencies(rng, a_minute, sigma, factor)
        n += calls.n if changed_at is not None and minute >= changed_at else 0
        at = START + (minute + 1) * MINUTE + timedelta(seconds=12)
        state, finding = detector.look(WindowView(calls, at=at, usual=Past(past)), state)
        yield n, finding


def false_alarms(scenario, quick):
    """How many alarms over so many lengths."""
    every = parse_duration(scenario["every"])
    lengths = LENGTHS // 10 if quick else LENGTHS
    seconds = lengths * every.total_seconds()
    if scenario["detector"] == "latency":
        params = {"false_alarm_every": every, "times": 1.02, "design_effect": 1.0}
        rngs = [np.random.default_rng((scenario["seed"], number)) for number in range(PASTS)]
        streams = [latency_looks(rng, int(seconds / 60 / PASTS), scenario, **params) for rng in rngs]
    else:
        kept = {name: scenario[name] for name in ("sigma", "burst") if name in scenario}
        stream = spending(scenario["seed"], int((BEFORE_S + seconds) / 5), scenario["a_minute"], step_s=5.0, **kept)
        streams = [cost_looks(stream, BEFORE_S, BEFORE_S + seconds, 5.0, false_alarm_every=every, times=2.0,
                              measure="usd", least_usd_per_minute=0.001)]  # fmt: skip
    alarms = sum(len(begun(looks)) for looks in streams)
    return {"name": scenario["name"], "detector": scenario["detector"], "lengths": lengths, "alarms": alarms,
            "met": alarms <= lengths}  # fmt: skip


def delay(scenario, run):
    """Seconds or calls until a change is found, and the severity."""
    if scenario["detector"] == "latency":
        rng = np.random.default_rng((scenario["seed"], run))
        looks = latency_looks(rng, 2_000, scenario, 30, times=scenario["times"], design_effect=1.0)
        return next(((n, finding.severity) for n, finding in looks if finding.violated), (float("nan"), None))
    at = BEFORE_S + 180 + run % 5
    factors = {}
    for name in ("dear", "factor"):
        factors[name] = np.ones(at + 600)
        factors[name][at:] = scenario.get(name, 1.0)
    stream = spending(scenario["seed"] + run, at + 600, scenario["a_minute"], **factors)
    looks = cost_looks(stream, BEFORE_S + 0.37 * run % 2, at + 600, 2.0, times=scenario["times"])
    return next(((seen - at, f.severity) for seen, f in looks if f.violated and seen >= at), (float("nan"), None))


def delays(scenario, quick):
    """Over so many runs."""
    runs = [delay(scenario, run) for run in range(RUNS // 5 if quick else RUNS)]
    found = [value for value, _ in runs if not np.isnan(value)]
    most = scenario.get("at_most_s")
    worst = max(found, default=float("nan"))
    return {"name": scenario["name"], "detector": scenario["detector"], "found": len(found) / len(runs),
            "median": statistics.median(found) if found else None, "most": worst,
            "severities": sorted({severity for _, severity in runs if severity}),
            "met": None if most is None else len(found) == len(runs) and worst <= most}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a tenth of the streams, to see that it works")
    parser.add_argument("--scenarios", action="append", type=Path, help="other scenario files; may be repeated")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    options = parser.parse_args()
    machine, rows = describe(), []
    for path in options.scenarios or [HERE / "meters.yaml"]:
        written = yaml.safe_load(path.read_text())
        for kind, play in (("false_alarms", false_alarms), ("delays", delays)):
            for scenario in written.get(kind, ()):
                if options.only in scenario["name"]:
                    rows.append(play(scenario, options.quick))
                    if not options.json:
                        print(line(rows[-1]), flush=True)
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))


def line(row):
    """One row for people."""
    met = {None: "", True: "met", False: "MISSED"}[row["met"]]
    if "alarms" in row:
        return (
            f"{row['detector']:<9}{row['name']:<40}{row['alarms']:>4} false alarms in {row['lengths']} lengths  {met}"
        )
    unit = "s" if row["detector"] == "cost" else "calls"
    median = f"{row['median']:>9.1f}" if row["median"] is not None else "    never"
    return (f"{row['detector']:<9}{row['name']:<40}{median} {unit} (most {row['most']:.1f}), found {row['found']:.0%}, "
            f"{' '.join(row['severities'])}  {met}")  # fmt: skip


if __name__ == "__main__":
    main()
