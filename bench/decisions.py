"""The decisions of a rollout: false rates, delays against the theoretical bound, and rival methods beside them.

    python bench/decisions.py [--json] [--quick] [--part NAME ...] [--scenarios FILE ...] [--seed N] [--share S]

Scenarios with their seeds are files (bench/decisions/scenarios); another file needs no code. Simulations run on the
shipped engine made for many runs at once (bench/decisions/lockstep.py), which tests prove equal to it. ``rate`` is the
share of runs that fire; it may lie 2.6 standard errors beyond its target, as an honest 1 % does in one of 200 benches.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from decisions import engine_cost
from decisions.figures import Row, bound, measured, rows
from decisions.scenarios import Part, load
from decisions.simulate import simulate
from machine import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the runs, to see that it works")
    parser.add_argument("--share", type=float, default=1.0, help="of the runs; 0.2 is five times as quick")
    parser.add_argument("--part", action="append", help="only this part of the table; may be repeated")
    parser.add_argument("--scenarios", action="append", type=Path, help="other scenario files; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="another one for every scenario")
    parser.add_argument("--list", action="store_true", help="name the parts and their scenarios, run nothing")
    options = parser.parse_args()
    parts = [part for part in load(options.scenarios) if not options.part or part.name in options.part]
    speed = engine_cost.PART in options.part if options.part else options.scenarios is None
    if not parts and not speed:
        sys.exit(f"no such part: {', '.join(options.part)}; --list names them")
    if options.list:
        for part in parts:
            print(f"{part.name}: {part.about}", *(f"  {s.name}" for s in part.scenarios), sep="\n")
        print(f"{engine_cost.PART}: {engine_cost.ABOUT}")
        return
    machine = {**describe(), "numpy": version("numpy")}
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
    found, started = [], time.perf_counter()
    for part in parts:
        found += played(part, options.seed, options.share * (0.05 if options.quick else 1), show=not options.json)
    if speed:
        if not options.json:
            print(f"\n{engine_cost.PART}: {engine_cost.ABOUT}")
        for row in engine_cost.rows(quick=options.quick):
            found.append(row)
            if not options.json:
                print(line(row, 0), flush=True)
    if options.json:
        print(json.dumps({"machine": machine, "rows": [row.plain() for row in found]}, indent=2))
        return
    missed = [row for row in found if row.met is False]
    print(f"\n{sum(row.met is not None for row in found)} figures with a target, {len(missed)} missed; "
          f"{time.perf_counter() - started:,.0f} s")  # fmt: skip
    for row in missed:
        print(f"  MISSED {row.part}: {row.scenario}: {row.figure} {told(row)}, not {row.target}")


def played(part: Part, seed: int, of_runs: float, *, show: bool) -> list[Row]:
    """The lines of a part."""
    found: list[Row] = []
    against: dict[str, float] = {}
    if show:
        print(f"\n{part.name}: {part.about}")
    for written in part.scenarios:
        runs = max(40, round(written.replications * of_runs))
        scenario = replace(written, seed=written.seed + 100_000 * seed, replications=runs)
        figures = measured(simulate(scenario, runs))
        least = bound(scenario)
        against |= {f"{figure} of {scenario.name}": value for figure, (value, _) in figures.items()}
        lines = rows(part.name, scenario, figures, against if least is None else {**against, "bound": least})
        found += lines
        if show:
            for row in lines:
                print(line(row, runs), flush=True)
    return found


def line(row: Row, runs: int) -> str:
    """For people."""
    words = {True: "OK", False: "MISSED", None: ""}
    size = f"n {runs}" if runs else ""
    name = f"  {row.scenario:<62.62} {row.figure:<7}{told(row):>26}"
    return f"{name} {row.note:<18} {size:<8}{row.target:<10}{words[row.met]}".rstrip()


def told(row: Row) -> str:
    """A figure with its standard error."""
    if row.figure in {"rate", "any"}:
        return f"{row.value:.2%} +- {row.error:.2%}"
    if row.unit.startswith("x "):
        return f"{row.value:.2f} +- {row.error:.2f} {row.unit}"
    return f"{row.value:,.2f} {row.unit}" if row.error is None else f"{row.value:,.0f} +- {row.error:,.0f} {row.unit}"


if __name__ == "__main__":
    main()
