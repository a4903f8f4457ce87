"""Commands that run things: the whole stack on one machine, or one part of a fleet."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

import typer

from evalpipe.embedded import EmbeddedRedis, Supervised
from evalpipe.errors import ConfigError
from evalpipe.settings import PREFIX, Settings


class Stack:
    """Everything on one machine: Redis (embedded unless a URL is set), workers, beat and API, as child processes.

    Children end with this process, however it ends, and one that dies is started again.

    Args:
        environ: ``EVALPIPE_*`` variables for the children, on top of the process's own.
        api_port: where the API listens; None leaves it out.
        log: a file for what the children say.
    """

    def __init__(self, environ: dict[str, str], *, api_port: int | None = 8300, log: Path) -> None:
        self._environ = {**os.environ, **environ}
        self._api_port = api_port
        self._log = log
        self._children: dict[str, Supervised] = {}
        self._commands: dict[str, list[str]] = {}
        self._exits = contextlib.ExitStack()
        self.restarts = 0

    @property
    def settings(self) -> Settings:
        """What the children see."""
        return Settings.from_env(self._environ)

    def __enter__(self) -> Self:
        """Start everything; returns when the database is migrated and the processes run."""
        try:
            self._start()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything: a warm shutdown, so that what is under way is finished or given back."""
        self._stop()
        self._exits.close()

    def _start(self) -> None:
        from evalpipe.store import migrate
        from evalpipe.store.sql import Store

        settings = self.settings
        _check(settings)
        settings.home.mkdir(parents=True, exist_ok=True)
        if not self._environ.get(PREFIX + "REDIS_URL"):
            redis = self._exits.enter_context(EmbeddedRedis(settings.home))
            self._environ[PREFIX + "REDIS_URL"] = redis.url
        self._environ.setdefault(PREFIX + "DATABASE_URL", settings.database_url)
        store = Store(settings.database_url)
        try:
            migrate.upgrade(store)
        finally:
            store.close()
        self._output = self._exits.enter_context(self._log.open("ab"))
        python = [sys.executable, "-m", "evalpipe"]
        self._commands = {
            "worker": [
                *python,
                "worker",
                "--queues",
                "ingest,measure,feedback,evaluate,deliver,maintain,publish",
                "--processes",
                "1",
            ],
            "judge": [*python, "worker", "--queues", "judge", "--processes", "1"],
            "beat": [*python, "beat"],
        }
        if self._api_port is not None:
            self._commands["api"] = [*python, "api", "--port", str(self._api_port)]
        for name in self._commands:
            self._spawn(name)

    def _spawn(self, name: str) -> None:
        self._children[name] = Supervised(self._commands[name], folder=Path.cwd(), log=self._output, env=self._environ)

    def watch(self) -> list[str]:
        """Start again what has died; returns the names."""
        died = [name for name, child in self._children.items() if not child.running]
        for name in died:
            self.restarts += 1
            self._spawn(name)
        return died

    def _stop(self) -> None:
        # All are asked first, so that they end side by side.
        for child in self._children.values():
            child.ask_to_stop()
        for child in self._children.values():
            child.stop()


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def up(
    port: Annotated[int, typer.Option(help="Port of the API on this machine.")] = 8300,
) -> None:
    """Run everything on this machine until Ctrl-C: Redis, workers, beat, API.

    Without settings it keeps its data in SQLite and a Redis of its own, both under EVALPIPE_HOME (.evalpipe). With
    EVALPIPE_DATABASE_URL or EVALPIPE_REDIS_URL it uses yours.
    """
    settings = Settings.from_env()
    environ = {PREFIX + "HOME": str(settings.home.resolve()), PREFIX + "SCORECARDS": str(_scorecards(settings))}
    environ[PREFIX + "DATABASE_URL"] = settings.database_url
    settings.home.mkdir(parents=True, exist_ok=True)
    if not settings.api_keys:
        environ[PREFIX + "API_KEYS"] = api_key(settings.home)
    log = settings.home / "evalpipe.log"
    with _stop_on_signal(), Stack(environ, api_port=port, log=log) as stack:
        from evalpipe.wiring import Wiring

        cards = Wiring(stack.settings).scorecards
        typer.echo(f"evalpipe is up. Log: {log}   Stop: Ctrl-C")
        typer.echo(f"  API         http://127.0.0.1:{port}   (key in {settings.home / 'api-key'})")
        typer.echo(f"  hooks       EVALPIPE_REDIS_URL={stack.settings.redis_url}")
        typer.echo(f"  database    {stack.settings.database_url}")
        typer.echo(f"  scorecards  {', '.join(card.name for card in cards) or 'none yet'}")
        typer.echo(f"  judge       {stack.settings.judge or 'none (set EVALPIPE_JUDGE): judged criteria are skipped'}")
        while True:
            time.sleep(1)
            for name in stack.watch():
                typer.echo(f"evalpipe: {name} died and was started again; the log says why: {log}", err=True)
    typer.echo("evalpipe is down.")


def api_key(home: Path) -> str:
    """The key of the embedded API: made once, readable by its owner alone."""
    import secrets

    path = home / "api-key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text().strip()


def _scorecards(settings: Settings) -> Path:
    """The scorecards' folder: as set, else those that ship, so that a first start has something to show."""
    if settings.scorecards.exists():
        return settings.scorecards.resolve()
    return shipped_scorecards()


def shipped_scorecards() -> Path:
    """The scorecards that come with the package."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_scorecards"
    return installed if installed.is_dir() else package.parent / "scorecards"


def worker(
    queues: Annotated[
        str,
        typer.Option(
            help="Stages that this worker serves: ingest,measure,feedback,judge,evaluate,deliver,maintain,publish."
        ),
    ] = "ingest,measure,feedback,judge,evaluate,deliver,maintain,publish",
    processes: Annotated[int, typer.Option(help="Child processes.", min=1)] = 2,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
) -> None:
    """Run a worker of a fleet (Celery, prefork).

    Serve `judge` by workers of its own: its tasks wait for models for half a minute, and would keep records waiting.

    Example: `evalpipe worker --queues judge --processes 4`
    """
    from evalpipe.store.queue import STAGES
    from evalpipe.worker import app as celery

    wanted = [name.strip() for name in queues.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - set(STAGES)):
        raise ConfigError(f"--queues: no stage named {unknown[0]!r}; there are: {', '.join(STAGES)}")
    _check(Settings.from_env())
    celery.worker_main(
        [
            "worker",
            f"--queues={','.join(f'evalpipe.{name}' for name in wanted)}",
            f"--concurrency={processes}",
            f"--loglevel={log_level}",
            "--without-gossip",
            "--without-mingle",
            f"--hostname={'-'.join(wanted[:2])}.{os.getpid()}@%h",
        ]
    )


def beat(log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING") -> None:
    """Run the scheduler: the backstop that starts what no nudge started. Two of them do no harm."""
    from celery.beat import Scheduler

    from evalpipe.worker import app as celery

    _check(Settings.from_env())
    celery.Beat(loglevel=log_level, scheduler_cls=Scheduler, quiet=True).run()


def api(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8300,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Run the HTTP API: health, readiness, metrics, scores, decisions, ledger."""
    try:
        import uvicorn

        from evalpipe.api.app import make_api
    except ModuleNotFoundError as error:
        raise ConfigError(f"the API needs {error.name!r}: pip install 'evalpipe[api]'") from None
    _check(Settings.from_env())
    uvicorn.run(make_api(Settings.from_env()), host=host, port=port, log_level=log_level, access_log=False)


def migrate(
    revision: Annotated[str, typer.Argument(help="A revision, `head` or `base`.")] = "head",
    down: Annotated[bool, typer.Option("--down", help="Migrate down to the revision: this deletes data.")] = False,
) -> None:
    """Bring the database to the schema of this version. Safe while workers run, and to run twice."""
    from evalpipe.store import migrate as migrations
    from evalpipe.store.sql import Store

    store = Store(Settings.from_env().database_url)
    before = migrations.current(store)
    (migrations.downgrade if down else migrations.upgrade)(store, revision)
    typer.echo(f"{store.url}: {before or 'empty'} -> {migrations.current(store) or 'empty'}")
    store.close()


def _check(settings: Settings) -> None:
    """Fail at the start, in words, and not at the first message."""
    from evalpipe.wiring import Wiring

    wiring = Wiring(settings)
    _ = wiring.plans, wiring.channels
    if wiring.settings.judge:
        from evalpipe.judges.config import judge_config

        judge_config(wiring.settings)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (up, worker, beat, api, migrate):
        app.command()(command)
