"""What the benches share: figures with targets, the machine they were measured on, real servers, CPU by process."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from services import Postgres, Valkey, create_database  # noqa: E402 - the tests' servers, which come from wheels

TICKS = os.sysconf("SC_CLK_TCK")
LIBRARIES = ("evalpipe", "celery", "kombu", "redis", "psycopg", "sqlalchemy", "orjson")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        values: one for each round; the median is what counts.
        target: what the median is held to; None for what is only told.
        at_most: whether smaller is better.
    """

    name: str
    values: Sequence[float]
    unit: str
    target: float | None = None
    at_most: bool = False

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.median <= self.target if self.at_most else self.median >= self.target

    def row(self) -> dict[str, object]:
        """For machines."""
        return {
            "name": self.name,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "rounds": len(self.values),
            "unit": self.unit,
            "target": self.target,
            "met": self.met,
        }


def main(doc: str, measure: Callable[[bool], Sequence[Figure]]) -> None:
    """The command line of a bench: measure, then one table with the machine on top, or JSON."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="a smaller run, to see that it works")
    options = parser.parse_args()
    before = describe()
    figures = measure(options.quick)
    if options.json:
        print(json.dumps({"machine": before, "figures": [f.row() for f in figures]}, indent=2))
    else:
        show(before, figures)


def show(machine: Mapping[str, object], figures: Sequence[Figure]) -> None:
    print(", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    width = max(len(f.name) for f in figures)
    print(f"{'figure':<{width}}{'median':>11}{'min':>11}{'max':>11}  {'unit':<14}{'target':>9}")
    for f in figures:
        numbers = "".join(f"{number(v):>11}" for v in (f.median, min(f.values), max(f.values)))
        held = "" if f.target is None else f"{'<=' if f.at_most else '>='} {number(f.target)}"
        print(f"{f.name:<{width}}{numbers}  {f.unit:<14}{held:>9}  {_WORDS[f.met]}".rstrip())


def number(value: float) -> str:
    """Three digits that matter, and no more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def describe() -> dict[str, object]:
    """The machine, its load now, and the versions of what is measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


@contextmanager
def servers() -> Iterator[tuple[Path, Valkey, Postgres]]:
    """A folder, and a Valkey and a PostgreSQL as durable as both are by default."""
    with (
        tempfile.TemporaryDirectory(prefix="evalpipe-bench-") as name,
        Valkey(Path(name) / "valkey") as valkey,
        Postgres(settings={}) as postgres,
    ):
        yield Path(name), valkey, postgres


def databases(name: str) -> Iterator[tuple[str, Path, str]]:
    """SQLite, then PostgreSQL: what it is called, a folder, and the URL of an empty database in or beside it."""
    with Postgres(settings={}) as postgres:
        for database in ("SQLite", "PostgreSQL"):
            with tempfile.TemporaryDirectory(prefix="evalpipe-bench-") as folder:
                url = f"sqlite:///{folder}/evalpipe.db"
                if database == "PostgreSQL":
                    url = create_database(postgres.url(), name)
                yield database, Path(folder), url


class Clock:
    """Wall and CPU time by part, without what the parts inside it took."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._inner = [[0.0, 0.0]]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with its time booked under ``part``."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            self._inner.append([0.0, 0.0])
            started = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                took = time.perf_counter() - started[0], time.thread_time() - started[1]
                inner = self._inner.pop()
                for i in (0, 1):
                    self.spent[part][i] += took[i] - inner[i]
                    self._inner[-1][i] += took[i]

        return run


def busy_s() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / TICKS


def cpu_s(root: int) -> float:
    """CPU seconds of a process, of those it started that live, and of those that it has waited for."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            pid = int(folder.name)
            parents[pid] = int(words[1])
            used[pid] = sum(map(int, words[11:15])) / TICKS
    return sum(spent for pid, spent in used.items() if _descends(pid, root, parents))


def _descends(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "(source)"


_WORDS = {True: "met", False: "MISSED", None: ""}
