"""The benches one after the other: their tables, or with --json one document. Writes nothing.

    python bench/run.py [--json] [--quick]

All but those that are compared with other packages and install them first: bench/hook.py and bench/judging.py. Says by
its exit code whether all of them ran, not whether all targets were met.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUICK = ("--quick",)
BENCHES = {
    "throughput": QUICK, "queueing": QUICK, "inserts": QUICK, "latency": QUICK, "rollback": QUICK, "control": QUICK,
    "sampling": QUICK, "heuristics": ("--rounds", "3"), "redaction": (), "grounding": (), "calibration": QUICK,
    "decisions": QUICK, "alerting": QUICK, "cost_alarm": QUICK, "detection": QUICK,
}  # fmt: skip
"""What shows in short that each works."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="smaller runs, to see that they work")
    options = parser.parse_args()
    found, failed = {}, []
    for name, quick in BENCHES.items():
        command = [str(HERE / f"{name}.py"), *(quick if options.quick else ())]
        if not options.json:
            print(f"\n== {name}\n", flush=True)
        done = subprocess.run(
            [sys.executable, *command, *(["--json"] if options.json else [])],
            stdout=subprocess.PIPE if options.json else None,
            check=False,
        )
        if done.returncode:
            failed.append(name)
        elif options.json:
            found[name] = json.loads(done.stdout)
    if options.json:
        print(json.dumps(found, indent=2))
    if failed:
        sys.exit(f"did not run: {', '.join(failed)}")


if __name__ == "__main__":
    main()
