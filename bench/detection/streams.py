"""Detectors of streams (quality, rate): false alarms and delays against the CUSUM that is tuned to each change.

    python bench/detection/streams.py [--json] [--quick] [--scenarios FILE ...] [--only WORD]

Scenarios with their seeds are a file (bench/detection/streams.yaml). Run lengths are the total length of drift-free
streams over their alarms, each alarm a new beginning. Delays are from a change after 1,000 drift-free scores (alarms
among these begin anew). The tuned CUSUM (log-likelihood ratio of the changed law against the usual, or against the
nearest one that is tolerated) goes score by score, and its threshold gives it the measured run length of the detector.
``/bound`` is the delay over Wald's ln(wanted run length) / KL(changed, usual).

Where the baseline is estimated, each run has its own estimate and the CUSUM has the same one and the same tolerance;
its threshold is calibrated where the law is known, and the run length is over the streams of 4,000 baselines.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import yaml  # noqa: E402 - the paths come first
from machine import describe  # noqa: E402
from stream_play import Scenario, played  # noqa: E402

from evalpipe.stats.change import fold, limits, mean_bets  # noqa: E402


def met(row):
    """Whether the line meets its target; None without one."""
    held = [row["ratio"] <= row["at_most"]["ratio"]] if "ratio" in row["at_most"] else []
    held += [row["of_bound"] <= row["at_most"]["bound"]] if "bound" in row["at_most"] else []
    held.append(row["run_length_drift_free"] >= row["arl"])
    return all(held) if row["at_most"] else None if held[-1] else False


def speed(quick):
    """Microseconds for a score, in batches of 100 and alone."""
    bets = mean_bets(0.85, 0.056, limits(0.85, 0.056, 3000, 0.01), "down")
    batch, sums, found = [(0.0, 2), (0.25, 4), (0.51, 9), (0.75, 22), (1.0, 63)], [1.0, 1.0, 1.0], []
    for counts, n in ((batch, 100), ([(1.0, 1)], 1)):
        times, rounds = 2_000 if quick else 20_000, []
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(times):
                fold(sums, bets, counts)
            rounds.append((time.perf_counter() - started) / times / n * 1e6)
        found.append(sorted(rounds)[2])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a tenth of the streams, to see that it works")
    parser.add_argument("--scenarios", action="append", type=Path, help="other scenario files; may be repeated")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    options = parser.parse_args()
    machine, started, rows = describe(), time.perf_counter(), []
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        print(f"\n{'detector':<9}{'scenario':<50}{'run length':>11}{'alarms':>8}{'delay':>8}{'+-':>6}{'p90':>7}"
              f"{'tuned':>8}{'ratio':>7}{'/bound':>8}  target")  # fmt: skip
    for path in options.scenarios or [HERE / "streams.yaml"]:
        for written in yaml.safe_load(path.read_text())["scenarios"]:
            if options.only in written["name"]:
                rows.append(played(Scenario(**written), options.quick))
                if not options.json:
                    print(line(rows[-1]), flush=True)
    batch, single = speed(options.quick)
    if options.json:
        print(
            json.dumps({"machine": machine, "rows": rows, "us_a_score": {"in_100": batch, "alone": single}}, indent=2)
        )
        return
    print(
        f"\na score takes {batch:.2f} us in batches of 100, {single:.1f} us alone; "
        f"{time.perf_counter() - started:,.0f} s"
    )


def line(row):
    """For people."""
    target = " ".join(f"{name} <= {most}" for name, most in row["at_most"].items())
    word = {True: "met", False: "MISSED", None: ""}[met(row)]
    return (f"{row['detector']:<9}{row['scenario']:<50.49}{row['run_length_drift_free']:>11,.0f}{row['alarms']:>8,}"
            f"{row['delay']:>8,.1f}{row['error']:>6.1f}{row['p90']:>7,.0f}{row['tuned']:>8,.1f}{row['ratio']:>7.3f}"
            f"{row['of_bound']:>8.2f}  {target} {word}".rstrip())  # fmt: skip


if __name__ == "__main__":
    main()
