"""Commands that run things: the whole stack on one machine, or one part of a fleet."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Self

import typer

from evalpipe.cli.up_text import tell
from evalpipe.embedded import LAST_PORT, EmbeddedRedis, Supervised, port_trouble, write_private
from evalpipe.errors import ConfigError, PermanentError
from evalpipe.settings import PREFIX, REDIS_FILE, Settings
from evalpipe.store.queue import STAGES

YOUNG_S = 30.0
"""A process that dies within this time of its start may never run."""
DEATHS = 5
"""After so many of these in a row it is given up."""
REDIS = "redis"
API_FILE = "api.url"
"""In the home: where the API of the ``evalpipe up`` that runs there, or ran last, listens."""
PATIENCE_S = 2.0
"""How long the API's port may still be taken: a stack that was just killed needs a moment to end."""


class Stack:
    """Everything on one machine: Redis (embedded unless a URL is set), workers, beat and API, as child processes.

    Children end with this process, however it ends, and one that dies is started again. The URLs of the Redis and of
    the API are noted in the home, where the command line finds them.

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
        self._redis: EmbeddedRedis | None = None
        self._started: dict[str, tuple[float, int]] = {}  # by name: when, and the end of its log then
        self._deaths: Counter[str] = Counter()
        self._exits = contextlib.ExitStack()
        self.restarts = 0

    @property
    def settings(self) -> Settings:
        """What the children see."""
        return Settings.from_env(self._environ)

    @property
    def redis_moved_from(self) -> int:
        """The port that the embedded Redis had the last time, if it could not have it again; else 0."""
        return self._redis.moved_from if self._redis else 0

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
        _check(settings, STAGES)
        settings.home.mkdir(parents=True, exist_ok=True)
        if not self._environ.get(PREFIX + "REDIS_URL"):
            self._redis = self._exits.enter_context(EmbeddedRedis(settings.home))
            self._environ[PREFIX + "REDIS_URL"] = self._redis.url
            self._note_start(REDIS)
        write_private(settings.home / REDIS_FILE, self._environ[PREFIX + "REDIS_URL"])
        if self._api_port is not None:
            write_private(settings.home / API_FILE, f"http://127.0.0.1:{self._api_port}")
        self._environ.setdefault(PREFIX + "DATABASE_URL", settings.database_url)
        store = Store(settings.database_url)
        try:
            migrate.upgrade(store)
        finally:
            store.close()
        self._output = self._exits.enter_context(self._log.open("ab"))
        self._commands = _commands(self._api_port)
        for name in self._commands:
            self._spawn(name)

    def _spawn(self, name: str) -> None:
        self._note_start(name)
        self._children[name] = Supervised(self._commands[name], folder=Path.cwd(), log=self._output, env=self._environ)

    def _note_start(self, name: str) -> None:
        log = self.log_of(name)
        self._started[name] = (time.monotonic(), log.stat().st_size if log.exists() else 0)

    def watch(self) -> list[str]:
        """Start again what has died; returns the names.

        Raises:
            PermanentError: it dies again and again as soon as it is started.
        """
        died = [] if self._redis is None or self._redis.running else [REDIS]
        died += [name for name, child in self._children.items() if not child.running]
        for name in died:
            self._count_death(name)
            self.restarts += 1
            if name == REDIS:
                self._restart_redis()
            else:
                self._children[name].stop()  # what is left of it
                self._spawn(name)
        return died

    def _restart_redis(self) -> None:
        assert self._redis is not None
        self._note_start(REDIS)
        try:
            self._redis.start()  # on its port, with its data
        except ConfigError as error:
            self._output.write(f"{error}\n".encode())  # it counts as another death
            self._output.flush()

    def _count_death(self, name: str) -> None:
        started, log_end = self._started[name]
        self._deaths[name] = self._deaths[name] + 1 if time.monotonic() - started < YOUNG_S else 0
        if self._deaths[name] >= DEATHS:
            with self.log_of(name).open("rb") as log:
                log.seek(log_end)
                said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            last = said[-1].strip() if said else f"nothing; see {self.log_of(name)}"
            raise PermanentError(
                f"{name} died {DEATHS} times within {YOUNG_S:.0f} s of its start; given up. Its last words: {last}"
            )

    def log_of(self, name: str) -> Path:
        """Where this process says what happens to it."""
        return self._redis.folder / "valkey.log" if name == REDIS and self._redis else self._log

    def _stop(self) -> None:
        # All are asked first, so that they end side by side.
        for child in self._children.values():
            child.ask_to_stop()
        for child in self._children.values():
            child.stop()


def _commands(api_port: int | None) -> dict[str, list[str]]:
    """What runs beside Redis, by name."""
    python = [sys.executable, "-m", "evalpipe"]
    queues = "ingest,measure,feedback,evaluate,oversee,deliver,export,maintain,publish"
    commands = {
        "worker": [*python, "worker", "--queues", queues, "--processes", "1"],
        "judge": [*python, "worker", "--queues", "judge,batch,anchors,fingerprint,embed", "--processes", "1"],
        "beat": [*python, "beat"],
    }
    if api_port is not None:
        commands["api"] = [*python, "api", "--port", str(api_port)]
    return commands


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
    port: Annotated[int, typer.Option(help="Port of the API on this machine.", min=1, max=LAST_PORT)] = 8300,
) -> None:
    """Run everything on this machine until Ctrl-C: Redis, workers, beat, API.

    Without settings it keeps its data in SQLite and a Redis of its own, both under EVALPIPE_HOME (.evalpipe). With
    EVALPIPE_DATABASE_URL or EVALPIPE_REDIS_URL it uses yours.
    """
    settings = Settings.from_env()
    _check_port(port)
    environ = {PREFIX + "HOME": str(settings.home.resolve()), PREFIX + "SCORECARDS": str(_scorecards(settings))}
    environ[PREFIX + "DATABASE_URL"] = settings.database_url
    settings.home.mkdir(parents=True, exist_ok=True)
    if not settings.api_keys:
        environ[PREFIX + "API_KEYS"] = api_key(settings.home)
    log = settings.home / "evalpipe.log"
    try:
        with _stop_on_signal(), Stack(environ, api_port=port, log=log) as stack:
            tell(stack, port, log)
            while True:
                time.sleep(1)
                for name in stack.watch():
                    typer.echo(f"evalpipe: {name} died and was started again; see {stack.log_of(name)}", err=True)
    except PermanentError as error:
        typer.echo(f"evalpipe: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo("evalpipe is down.")


def _check_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while trouble := port_trouble(port):
        if time.monotonic() > deadline:
            problem = "is in use" if trouble == os.strerror(errno.EADDRINUSE) else f"cannot be used ({trouble})"
            raise ConfigError(f"port {port} {problem}: give another by --port")
        time.sleep(0.05)


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
            help="Stages that this worker serves, such as `judge,batch,anchors,fingerprint,embed`; all of them without "
            "it. A wrong one lists them."
        ),
    ] = "",
    processes: Annotated[int, typer.Option(help="Child processes.", min=1)] = 2,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
) -> None:
    """Run a worker of a fleet (Celery, prefork).

    Serve `judge` by workers of its own: its tasks wait for models for half a minute, and would keep records waiting.

    Example: `evalpipe worker --queues judge --processes 4`
    """
    from evalpipe.worker import app as celery

    wanted = [name.strip() for name in queues.split(",") if name.strip()] or list(STAGES)
    if unknown := sorted(set(wanted) - set(STAGES)):
        raise ConfigError(f"--queues: no stage named {unknown[0]!r}; there are: {', '.join(STAGES)}")
    _check(Settings.from_env(), wanted)
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
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=LAST_PORT)] = 8300,
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


def _check(settings: Settings, stages: Collection[str] = ()) -> None:
    """Fail at the start, in words, and not at the first message: also what only these stages read."""
    from evalpipe.wiring import Wiring

    wiring = Wiring(settings)
    _ = wiring.plans, wiring.channels
    wiring.check_judges()
    try:
        if "evaluate" in stages:
            _ = wiring.evaluate
        if not {"evaluate", "oversee"}.isdisjoint(stages):
            _ = wiring.notify
        if "fingerprint" in stages:
            _ = wiring.fingerprint
        if not {"ingest", "embed"}.isdisjoint(stages):
            _ = wiring.embedder
        if "export" in stages:
            _ = wiring.export
    finally:
        wiring.close()


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (up, worker, beat, api, migrate):
        app.command()(command)
