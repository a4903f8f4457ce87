"""Detection: false alarms, delays and power of every detector, and thirty days of incidents of all kinds.

    python bench/detection.py [--part streams|meters|windows|drift|month ...] [--quick] [--json]
                              [--seeds 1-20] [--jobs 2] [--days 30] [--false-alarm-every 3650d]

Scenarios with their seeds are files: bench/detection/{streams,meters,windows,drift}.yaml, and for the month
bench/detection/month/{incidents,alerts,support}.yaml. The parts but the month run alone, too:
bench/detection/{streams,meters,windows,drift}.py --help.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
ALONE = ("streams", "meters", "windows", "drift")
QUICK_DAYS = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works: 4 minutes")
    parser.add_argument("--part", action="append", choices=(*ALONE, "month"), help="only this one; may be repeated")
    parser.add_argument("--seeds", help="of the month: 1-20, or 3,7; with --quick 1", default=None)
    parser.add_argument("--jobs", type=int, default=2, help="months at once")
    parser.add_argument("--days", type=float, default=None, help="of the month; with --quick 6")
    parser.add_argument("--false-alarm-every", default=None, help="what each alert of the month may: 3650d")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for part in options.part or (*ALONE, "month"):
        if not options.json:
            print(f"\n=== {part}", flush=True)
        found[part] = month(options) if part == "month" else alone(part, options)
    if options.json:
        print(json.dumps(found, indent=2))


def alone(part: str, options: argparse.Namespace) -> Any:
    """A part that is a command of its own."""
    flags = [flag for flag, given in (("--quick", options.quick), ("--json", options.json)) if given]
    command = [sys.executable, str(HERE / "detection" / f"{part}.py"), *flags]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if options.json else None)
    return json.loads(done.stdout) if options.json else None


def month(options: argparse.Namespace) -> Any:
    """The table of the month."""
    from detection.month.play import FALSE_ALARM_EVERY
    from detection.month.table import months, plain, show
    from detection.month.world import DAYS
    from machine import describe

    machine, started = describe(), time.perf_counter()
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    seeds = _seeds(options.seeds or ("1" if options.quick else "1-20"))
    days = options.days or (QUICK_DAYS if options.quick else DAYS)
    played = []
    for seed in months(seeds, min(options.jobs, len(seeds)), days, options.false_alarm_every or FALSE_ALARM_EVERY):
        played.append(seed)
        so_far = f"{len(played)} of {len(seeds)} seeds"
        print(f"seed {seed.seed}: {seed.right} of {len(seed.incidents)} right; {so_far}", file=sys.stderr, flush=True)
    if options.json:
        return {"machine": machine, **plain(played)}
    show(played)
    print(f"{time.perf_counter() - started:,.0f} s")
    return None


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


if __name__ == "__main__":
    main()
