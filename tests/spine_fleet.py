"""The pipeline with real services: Redis, PostgreSQL or SQLite, Celery workers, HTTP."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from evalpipe import Hook, Release
from evalpipe.settings import Settings
from evalpipe.store import ledgers, migrate
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store
from evalpipe.store.tables import alerts, evidence, rollouts, scores, work

SCORECARD = """
name: support
match: {service: support-desk}
criteria:
  - {name: refusal, heuristic: refusal}
  - {name: length, heuristic: length, params: {max: 2000}}
  - name: grounded
    judge: {kind: boolean, rubric: "Does the answer promise only what the policy says?"}
alerts:
  - {name: too-low, criterion: grounded, mean: {below: 0.8}, min_sample: 20, severity: SEV2}
rollout:
  gates:
    - {criterion: grounded, min_canary: 20}
"""
"""Judged by a fake that passes an answer unless it says REFUND."""
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["evalpipe.cli.app", "celery.bin.celery", "celery.concurrency.prefork", "celery.beat",
                               "kombu.transport.redis", "openai", "aiohttp"])  # fmt: skip
"""To read all that takes longer than most of what tests wait for: it is read once, and processes fork from there."""
JUDGE = 'fake:demo?rules={"REFUND": "fail"}&acts=pass'

PATIENCE_S = 100.0
"""For what must happen: a machine that is slow or busy costs time and fails no test. Who waits as long has failed."""

AT_ONCE = "notify:\n  routes:\n    - {name: all, group_by: [alert_id], group_wait: 0s, group_interval: 0s}\n"
"""Each alert is told by itself, and none gathers: a test does not wait for half a minute."""


class Fleet:
    """A small fleet on one Redis and one database: workers as processes, to be killed and started again.

    Attributes:
        settings: what the processes see.
        store: for looking at what they did.
    """

    def __init__(self, folder: Path, redis_url: str, database_url: str, environ: Mapping[str, str]) -> None:
        cards = folder / "scorecards"
        cards.mkdir()
        (cards / "support.yaml").write_text(SCORECARD)
        (folder / "alerts.yaml").write_text(AT_ONCE)
        self.environ = {
            **os.environ,
            "EVALPIPE_HOME": str(folder),
            "EVALPIPE_REDIS_URL": redis_url,
            "EVALPIPE_DATABASE_URL": database_url,
            "EVALPIPE_SCORECARDS": str(cards),
            "EVALPIPE_ALERTS": str(folder / "alerts.yaml"),
            "EVALPIPE_JUDGE": JUDGE,
            "EVALPIPE_VISIBILITY_TIMEOUT_S": "3",
            "EVALPIPE_LEASE_S": "3",
            "EVALPIPE_DRAIN_S": "5",
            **environ,
        }
        self.settings = Settings.from_env(self.environ)
        self.store = Store(database_url)
        migrate.upgrade(self.store)
        self.queue = Queue(redis_url)
        self.log = folder / "fleet.log"
        self.processes: dict[str, Any] = {}
        self.hooks: list[Hook] = []

    def start(self, name: str, *arguments: str) -> None:
        """Start one process: ``evalpipe`` with these arguments."""
        process = _FORKS.Process(target=_serve, args=(self.environ, self.log, arguments))
        process.start()
        self.processes[name] = process

    def start_all(self) -> None:
        """Start a worker for records, one for judging, and the beat."""
        self.start(
            "worker",
            "worker",
            "--queues",
            "ingest,measure,feedback,evaluate,oversee,deliver,maintain,publish",
            "--processes",
            "1",
        )
        self.start("judge", "worker", "--queues", "judge,anchors", "--processes", "1")
        self.start("beat", "beat")

    def kill(self, name: str) -> None:
        """Kill a process and its children as a crash would."""
        try:
            os.killpg(self.processes[name].pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or has no session of its own yet
            self.processes[name].kill()
        self.processes[name].join(60)

    def hook(self, variant: str = "baseline", **options: Any) -> Hook:
        """A hook as an application has it, that samples everything."""
        settings = {"sample_rate": 1.0, "flush_interval_s": 0.1, **options}
        made = Hook("support-desk", Release(variant=variant), redis_url=self.settings.redis_url, **settings)
        self.hooks.append(made)
        return made

    def lines(self, lag_s: float = 3.0) -> list[ledgers.Line]:
        """The ledger now; hooks that are silent for ``lag_s`` are taken at their word."""
        with self.store.read() as tx:
            return ledgers.read(tx, self.queue.queued(), datetime.now(UTC), lag=timedelta(seconds=lag_s))

    def whole(self, lag_s: float = 3.0) -> ledgers.Line:
        """The ledger of records, all hours together."""
        total = ledgers.Line(datetime.now(UTC), "support-desk", "")
        for line in self.lines(lag_s):
            if not line.scorecard:
                for name in ("observed", "not_sampled", "sampled", "unmetered", *ledgers.OUTCOMES, "shed", "lost",
                             "in_flight"):  # fmt: skip
                    setattr(total, name, getattr(total, name) + getattr(line, name))
        return total

    def at_rest(self) -> bool:
        """Whether every call of the hooks was counted, nothing is in flight, and every line of the ledger adds up."""
        lines = self.lines()
        settled = bool(lines) and all(line.difference == 0 and line.in_flight == 0 for line in lines)
        calls = sum(hook.stats().calls for hook in self.hooks)
        return settled and sum(line.observed for line in lines if not line.scorecard) >= calls

    def count(self, table: Any, **where: Any) -> int:
        """Rows of a table."""
        query = select(func.count()).select_from(table)
        for name, value in where.items():
            query = query.where(table.c[name] == value)
        with self.store.read() as tx:
            return tx.connection.scalar(query) or 0

    def scored_twice(self) -> int:
        """Records with more than one score for a criterion."""
        doubled = select(scores.c.record_id).group_by(scores.c.record_id, scores.c.criterion).having(func.count() > 1)
        with self.store.read() as tx:
            return len(tx.connection.execute(doubled).all())

    def folded(self) -> bool:
        """Whether every rollout has folded all the evidence it has."""
        newest = select(evidence.c.rollout_id, func.max(evidence.c.seq)).group_by(evidence.c.rollout_id)
        with self.store.read() as tx:
            seen = {row[0]: row[1] for row in tx.connection.execute(newest)}
            done = {row.rollout_id: row.folded_seq for row in tx.connection.execute(select(rollouts))}
        return bool(seen) and all(done[i] == seq for i, seq in seen.items())

    def alert_statuses(self) -> set[str]:
        """What states the alerts are in."""
        with self.store.read() as tx:
            return set(tx.connection.scalars(select(alerts.c.status)))

    def dead_work(self) -> int:
        """Judge calls given up."""
        return self.count(work, state="dead")

    def close(self) -> None:
        """End everything at once: nothing is looked at after that."""
        for hook in self.hooks:
            hook.shutdown(1)
        for name in self.processes:
            self.kill(name)
        self.store.close()
        self.queue.close()


def _serve(environ: Mapping[str, str], log: Path, arguments: tuple[str, ...]) -> None:
    """Be ``evalpipe`` with these arguments, in a session of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    with log.open("ab") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from evalpipe.cli.app import app

    app(list(arguments), prog_name="evalpipe")


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Whether ``condition`` came true in time; errors of a service that is away count as not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if condition():
                return True
        time.sleep(0.1)
    return condition()


def talk(hook: Hook, n: int, output: str = "You can return it within 30 days.", prefix: str = "s") -> None:
    """Let customers ask ``n`` questions, each in a conversation of its own."""
    for i in range(n):
        with hook.call(feature="chat", session_id=f"{prefix}-{i}", user_id=f"user-{i % 7}") as call:
            call.messages = [{"role": "user", "content": f"question {i}"}]
            call.output = f"{output} ({i})"
