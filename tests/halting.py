"""Processes of a fleet that halt at points of the code, so that a test can kill them there, or what they talk to."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from spine_fleet import _FORKS, Fleet, _serve, wait_until

EVERYTHING = "ingest,measure,feedback,evaluate,oversee,deliver,maintain,publish"


class Halts:
    """Points as ``module:name`` or ``module:Class.name``, each with what a process and the test tell one another.

    A process that comes to one waits there, in every thread, until it may go on. Of several the first that was not
    passed yet halts; the ones after it only once it was.
    """

    def __init__(self, folder: Path, points: Sequence[str]) -> None:
        self._folder = folder
        self.points = points
        folder.mkdir(exist_ok=True)

    def reached(self, point: str) -> bool:
        """Whether a process waits there, or did."""
        return self._mark(point, "reached").exists()

    def go(self, point: str) -> None:
        """Let it go on, and whoever comes there later."""
        self._mark(point, "go").touch()

    def arm(self) -> None:
        """Put the halts into this process."""
        for point in self.points:
            module, _, path = point.partition(":")
            owner: Any = importlib.import_module(module)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            setattr(owner, name, self._halting(point, getattr(owner, name)))

    def _halting(self, point: str, function: Callable[..., Any]) -> Callable[..., Any]:
        earlier = self.points[: self.points.index(point)]

        def halt(*arguments: Any, **options: Any) -> Any:
            if all(self._mark(before, "go").exists() for before in earlier):
                self._mark(point, "reached").touch()
                while not self._mark(point, "go").exists():
                    time.sleep(0.01)
            return function(*arguments, **options)

        return halt

    def _mark(self, point: str, word: str) -> Path:
        return self._folder / f"{point}.{word}"


def start(
    fleet: Fleet,
    name: str,
    halts: Halts | None = None,
    *,
    queues: str = EVERYTHING,
    ahead: timedelta = timedelta(0),
) -> None:
    """Start a worker, of all but judging unless it is said, with these halts, and with a clock that is ahead."""
    arguments = ("worker", "--queues", queues, "--processes", "1")
    process = _FORKS.Process(target=_work, args=(fleet.environ, fleet.log, arguments, halts, ahead))
    process.start()
    fleet.processes[name] = process


def killed_at(fleet: Fleet, folder: Path, point: str, also: Callable[[], bool] = lambda: True) -> None:
    """Start a worker and kill it, as ``kill -9`` does, once it is at ``point`` and this holds too."""
    halts = Halts(folder, [point])
    start(fleet, "worker", halts)
    assert wait_until(lambda: halts.reached(point) and also()), f"{point}\n{fleet.log.read_text()[-3000:]}"
    fleet.kill("worker")


def _work(
    environ: Mapping[str, str], log: Path, arguments: tuple[str, ...], halts: Halts | None, ahead: timedelta
) -> None:
    if halts is not None:
        halts.arm()
    if ahead:
        _set_clock(ahead)
    _serve(environ, log, arguments)


def _set_clock(ahead: timedelta) -> None:
    """Have evalpipe and Celery's look at what a task says of its time see another time in this process."""
    import celery.worker.request

    from evalpipe import wiring

    class Elsewhere(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + ahead

    wiring.now = lambda: datetime.now(UTC) + ahead
    celery.worker.request.datetime = Elsewhere  # type: ignore[attr-defined]
