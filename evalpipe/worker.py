"""The door for Celery: one task for each stage, and what a fleet needs around them.

Messages are acknowledged after their commit, so a worker that dies costs a redelivery and nothing else. What cannot be
decoded, and what kills its worker again and again, goes to quarantine and from there to the dead letters.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from queue import Empty
from typing import Any

from celery import Celery, Task, signals
from celery.exceptions import WorkerLostError
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest
from kombu.entity import Queue as KombuQueue
from kombu.exceptions import OperationalError
from kombu.transport.redis import Channel as RedisChannel
from kombu.transport.redis import Transport as RedisTransport
from kombu.utils.json import dumps, loads
from redis import RedisError

from evalpipe.settings import Settings
from evalpipe.store.queue import CARRIERS, STAGES, quarantine
from evalpipe.wiring import Wiring, now

log = logging.getLogger("evalpipe")

GATHER_S = 0.3
"""Evidence gathers for so long before it is evaluated: under load one evaluation serves many commits."""
GC_THRESHOLD = 20_000, 20, 20
"""How rarely a worker's process looks for cycles of objects; records and answers make none."""
MAX_STARTS = 3
"""A message that was redelivered this often has killed its workers: it is a dead letter."""


class Channel(RedisChannel):
    """Reads the queues; an item that is no Celery message is quarantined instead of stopping the worker."""

    def _brpop_read(self, **options: Any) -> bool:
        """As in kombu, but an item that cannot be read is kept: there it is lost, and the consumer falls."""
        try:
            try:
                found = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not found:
                raise Empty
            key, item = found
            queue = key.decode().rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            try:
                self.connection._deliver(loads(item.decode()), queue)  # noqa: SLF001 - the seam that kombu itself uses
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                with self.conn_or_acquire() as client:
                    quarantine(client, item, f"not a Celery message: {type(error).__name__}: {error}")
            return True
        finally:
            self._in_poll = False
            self._flush_brpop_reauth()


class Transport(RedisTransport):
    """Redis, with the channel above."""

    Channel = Channel


class Consumer(CeleryConsumer):
    """Keeps what Celery would log and drop."""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A message whose body or headers cannot be decoded."""
        _keep(message, f"cannot be decoded: {exc}")
        super().on_decode_error(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message that is no task."""
        _keep(message, "is not a task message")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that this worker does not know."""
        _keep(message, f"no such task: {exc}")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task message with a wrong content type or arguments."""
        _keep(message, f"is not a valid task: {exc}")
        super().on_invalid_task(body, message, exc)


class Request(CeleryRequest):
    """Keeps the message of a task that failed: a bug of ours must not cost a record."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A task raised, or its arguments could not be decoded. A lost worker means redelivery instead."""
        if not isinstance(exc_info.exception, WorkerLostError | MemoryError):
            _keep(self._message, f"{type(exc_info.exception).__name__}: {exc_info.exception}")
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)


class Stage(Task):
    """Base of the tasks."""

    Request = f"{__name__}:Request"

    def apply_async(self, *arguments: Any, **options: Any) -> Any:
        """As Celery's, but a tick of the beat is left out while a start of the stage waits: it would find nothing left.

        So ticks do not pile up where nobody works; expiry would do it by the clocks of two hosts, and where these
        differ by seconds no tick would ever be worked on.
        """
        if (options.get("headers") or {}).get("celery_beat_task") and _waits(self.name):
            return None
        return super().apply_async(*arguments, **options)


_NUDGES = frozenset(f"evalpipe.{stage}" for stage in STAGES if stage not in CARRIERS)


def _keep(message: Any, reason: str) -> None:
    """Quarantine a message with records in it; a nudge that failed is no loss."""
    raw = getattr(message, "_raw", None)
    if isinstance(raw, dict) and (raw.get("headers") or {}).get("task") in _NUDGES:
        return
    quarantine(wiring().queue.client, dumps(raw).encode("utf-8", "surrogateescape"), reason)


def make_app(settings: Settings) -> Celery:
    """The Celery application; only URLs differ between a laptop and a fleet."""
    app = Celery("evalpipe", broker=settings.redis_url, task_cls=Stage)
    app.conf.update(
        broker_transport=f"{__name__}:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_interval": min(10.0, settings.visibility_timeout_s),
            "unacked_restore_throttle": 1,
        },
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_consumer=f"{__name__}:Consumer",
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_max_tasks_per_child=None,
        task_ignore_result=True,
        task_queues=[KombuQueue(f"evalpipe.{stage}") for stage in STAGES],
        task_default_queue="evalpipe.maintain",
        task_routes={f"evalpipe.{stage}": {"queue": f"evalpipe.{stage}"} for stage in STAGES},
        beat_schedule={
            stage: {"task": f"evalpipe.{stage}", "schedule": seconds}
            for stage, seconds in {
                "judge": 2.0,
                "batch": 15.0,
                "anchors": min(60.0, settings.anchors_every_s),  # the database says which judges are due
                "embed": 15.0,
                "fingerprint": 30.0,  # and which sets of prompts
                "evaluate": 2.0,
                "oversee": 15.0,
                "deliver": 1.0,
                **({"export": 2.0} if settings.otlp_endpoint else {}),
                "maintain": 15.0,
                "publish": 5.0,
            }.items()
        },
        timezone="UTC",
    )
    return app


app = make_app(Settings.from_env())

_wiring: Wiring | None = None
_loop: asyncio.AbstractEventLoop | None = None


def wiring() -> Wiring:
    """This process's own connections: made after the fork, never shared over it."""
    global _wiring  # noqa: PLW0603 - Celery offers no other place for what a process holds
    if _wiring is None:
        _wiring = Wiring()
    return _wiring


def loop() -> asyncio.AbstractEventLoop:
    """The one event loop of this process: judges' connections live on it from task to task."""
    global _loop  # noqa: PLW0603 - as above
    if _loop is None:
        _loop = asyncio.new_event_loop()
    return _loop


@signals.worker_process_init.connect
def _forget_parent(**_: Any) -> None:
    global _wiring, _loop  # noqa: PLW0603 - as above
    _wiring = _loop = None
    # The collector would look at every object of the libraries again and again: a fifth of the time of a grade.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


@signals.worker_process_shutdown.connect
def _close(**_: Any) -> None:
    if _loop is not None:
        _loop.run_until_complete(wiring().close_judges())
        _loop.close()
    if _wiring is not None:
        _wiring.close()


@app.task(name="evalpipe.ingest", bind=True)
def ingest(self: Any, blob: str) -> None:
    """Take one batch of records in."""
    headers = {name: getattr(self.request, name, None) for name in ("origin", "evalpipe_hours")}
    if _kills_workers(self.request):
        wiring().ingest.bury(blob, headers, f"its worker died {MAX_STARTS} times", now())
        return
    done = wiring().ingest(blob, headers, now())
    if done.owed:
        nudge("judge")
    if done.new:
        nudge("evaluate")


@app.task(name="evalpipe.measure")
def measure(blob: str) -> None:
    """Take one meter message in."""
    if wiring().measure(blob, now()).compared:
        nudge("evaluate")


@app.task(name="evalpipe.feedback")
def feedback(blob: str) -> None:
    """Take one message of feedback in."""
    wiring().feedback(blob, now())


@app.task(name="evalpipe.judge")
def judge() -> None:
    """Grade what is owed, for at most ``drain_s`` and the calls then in flight."""
    answered("judge")
    stage, seconds = wiring().judge, wiring().settings.drain_s
    done = loop().run_until_complete(stage.drain(seconds, on_commit=lambda: nudge("evaluate")))
    if done.under_way:
        nudge("judge")


@app.task(name="evalpipe.batch")
def batch() -> None:
    """Pick up what batches brought, and send what has gathered for the next."""
    loop().run_until_complete(wiring().batch.run(on_commit=lambda: nudge("evaluate")))


@app.task(name="evalpipe.anchors")
def anchors() -> None:
    """Test the judges that are due, on the records whose grade people agree on."""
    answered("anchors")
    done = loop().run_until_complete(wiring().anchors())
    if any(ran.changed for ran in done):
        nudge("oversee")
        nudge("evaluate")


@app.task(name="evalpipe.fingerprint")
def fingerprint() -> None:
    """Ask the application's model the fixed prompts that are due."""
    answered("fingerprint")
    if loop().run_until_complete(wiring().fingerprint()):
        nudge("evaluate")


@app.task(name="evalpipe.embed")
def embed() -> None:
    """Make the embeddings that ingest left out because they take long."""
    answered("embed")
    wiring().embed()


@app.task(name="evalpipe.evaluate")
def evaluate() -> None:
    """Decide on what has arrived."""
    answered("evaluate")
    try:
        if wiring().evaluate(now()).told:
            nudge("deliver")
    finally:
        _notify()


@app.task(name="evalpipe.oversee")
def oversee() -> None:
    """Tell of judges in trouble."""
    answered("oversee")
    try:
        wiring().oversee(now())
    finally:
        _notify()


def _notify() -> None:
    """Tell of alerts, also where what was before failed: others may have changed."""
    if wiring().notify(now()):
        nudge("deliver")


@app.task(name="evalpipe.deliver")
def deliver() -> None:
    """Send what is due."""
    answered("deliver")
    try:
        if wiring().undelivered(now()):
            nudge("evaluate")  # it tells of alerts; what is to be delivered must not wait for that, nor fail with it
    finally:
        wiring().deliver()


@app.task(name="evalpipe.export")
def export() -> None:
    """Send scores to the OpenTelemetry endpoint."""
    answered("export")
    wiring().export(now())


@app.task(name="evalpipe.maintain")
def maintain() -> None:
    """Upkeep."""
    answered("maintain")
    wiring().maintain(now())
    wiring().auto_baseline(now())


@app.task(name="evalpipe.publish")
def publish() -> None:
    """Give hooks their control documents."""
    answered("publish")
    wiring().publish(now())


def nudge(stage: str) -> None:
    """Start a stage now, unless a start is under way. The beat is the backstop, so Redis may fail here."""
    try:
        if wiring().queue.nudge(stage):
            app.send_task(f"evalpipe.{stage}", countdown=GATHER_S if stage == "evaluate" else None)
    except (RedisError, OperationalError, app.connection().connection_errors) as error:
        log.warning("no nudge for %s: %s", stage, error)


def _waits(task: str) -> bool:
    """Whether a message of a task without arguments is in its queue, which has the task's name."""
    try:
        return bool(wiring().queue.client.llen(task))
    except RedisError:
        return False  # sending it will tell


def answered(stage: str) -> None:
    """What is committed from now on needs a new nudge."""
    try:
        wiring().queue.answer(stage)
    except RedisError as error:
        log.warning("nudge for %s not answered: %s", stage, error)


def _kills_workers(request: Any) -> bool:
    if not (request.delivery_info or {}).get("redelivered"):
        return False
    try:
        return wiring().queue.deliveries_of(request.id) > MAX_STARTS
    except RedisError:
        return False
