"""The thread that ships: takes what the calls left, redacts and encodes it, and writes it to the queue.

Nothing in here may reach the application: the loop catches everything, and what goes wrong is counted and logged (at
most once a minute, to the logger ``evalpipe``). While Redis is away the message in hand is kept and tried again with
growing pauses; the buffer behind it sheds its oldest records at its bound.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, Final, NamedTuple

from evalpipe.batch import MAX_BATCH, encode_record, join_batch
from evalpipe.hook.buffer import Buffer, Entry
from evalpipe.hook.capture import fields_of
from evalpipe.hook.connection import load
from evalpipe.hook.feedback import MAX_MESSAGES, FeedbackBuffer, encoded, message
from evalpipe.hook.logs import log
from evalpipe.hook.message import task_message
from evalpipe.hook.meter import HOUR_S, Cost, Meter, release_wire
from evalpipe.hook.options import Options
from evalpipe.hook.transport import Transport
from evalpipe.hook.wire import record_wire

INGEST: Final = "evalpipe.ingest"
"""Task and queue of records."""
MEASURE: Final = "evalpipe.measure"
"""Task and queue of meter messages."""
FEEDBACK: Final = "evalpipe.feedback"
"""Task and queue of what users said."""
METER_INTERVAL_S: Final = 3.0
MAX_MESSAGE_BYTES: Final = 1 << 20
"""A message ends here even with fewer than 64 records, so that encoding never holds the interpreter for long."""
MAX_PAUSE_S: Final = 15.0
PAUSE_EVERY: Final = 8
PAUSE_S: Final = 2e-5
"""After so many records other threads may go on: to encode a whole message would hold the interpreter for long."""


class _Outgoing(NamedTuple):
    """A message that has been encoded and not yet accepted; tried again as it is, byte for byte."""

    data: bytes
    entries: list[Entry]


class Shipper:
    """What the shipping thread of one hook in one process does.

    Attributes:
        process_id: names this process in every message: host, process number and eight random hex digits.
        wake: put anything to wake the thread; an Event is set when all that waits has been tried.
    """

    def __init__(
        self, options: Options, version: str, buffer: Buffer, meter: Meter, feedback: FeedbackBuffer, cost: Cost
    ) -> None:
        self._options = options
        self._version = version
        self._buffer = buffer
        self._meter = meter
        self._feedback = feedback
        self._cost = cost
        self._transport = Transport(options.redis_url, options.queue_max_messages)
        self.process_id = f"{_host()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.wake: SimpleQueue[Event | None] = SimpleQueue()
        self.stopping = False
        self._started_at = time.time()
        self._sequences = {INGEST: 1, MEASURE: 0}
        self._outgoing: _Outgoing | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._meter_due = time.monotonic() + min(METER_INTERVAL_S, options.flush_interval_s)
        self._adapted_at = time.monotonic()
        self._metered = 0
        self._said = 0
        self._logged_at = float("-inf")

    def run(self) -> None:
        """Ship until ``stopping``; the body of the thread."""
        load()
        while True:
            asked = self._sleep()
            last = self.stopping
            try:
                self.ship(urgent=bool(asked) or last, last=last)
            except BaseException as error:  # noqa: BLE001 - the thread must outlive whatever happens in it
                self._warn("evalpipe: the shipping thread went on after %r", error)
            for event in asked:
                event.set()
            if last:
                self._transport.close()
                return

    def ship(self, *, urgent: bool, last: bool = False) -> None:
        """Send what waits, unless a failure was just now.

        Args:
            urgent: try at once, and send the meter too.
            last: nothing comes after it: the meter says that this process has ended.
        """
        now = time.monotonic()
        try:
            self._meter.add_up()
            self._options.sampler.adapt(now - self._adapted_at)
        except Exception as error:  # noqa: BLE001 - what was counted goes out all the same
            self._warn("evalpipe: some calls could not be counted: %r", error)
        self._adapted_at = now
        if now < self._retry_at and not urgent:
            return
        try:
            # At most what the buffer holds, so that a flood cannot keep the meter, or whoever flushes, waiting.
            for _ in range(2 + self._buffer.waiting // MAX_BATCH):
                if self._outgoing is None and not self._next():
                    break
                self._send_records()
            self._send_feedback(last=last)
            changed = self._meter.changes != self._metered or self._said != self._feedback.changes
            if (last and self._sequences[MEASURE]) or (changed and (urgent or now >= self._meter_due)):
                self._send_meter(ended=last)
        except Exception as error:  # noqa: BLE001 - the socket's, the resolver's, Redis's own
            self._failed(error)

    def _sleep(self) -> list[Event]:
        """Wait for the interval, or until woken; the events to set after shipping."""
        asked = []
        more = self._buffer.waiting >= MAX_BATCH and not self._failures
        try:
            item = self.wake.get(timeout=0.0 if more else self._options.flush_interval_s)
            while True:
                if item is not None:
                    asked.append(item)
                item = self.wake.get_nowait()
        except Empty:
            return asked

    def _next(self) -> bool:
        """Encode the next message; False if nothing waits."""
        while entries := self._buffer.take(MAX_BATCH, MAX_MESSAGE_BYTES):
            kept, texts = self._texts(entries)
            if texts:
                try:
                    self._outgoing = _Outgoing(self._message(INGEST, self._joined(texts), kept), kept)
                except BaseException:
                    self._shed(kept, "failed")
                    raise
                for entry in kept:
                    entry.fields = None
                return True
        return False

    def _texts(self, entries: list[Entry]) -> tuple[list[Entry], list[str]]:
        """The entries that can be sent, and their texts."""
        kept, texts = [], []
        releases: dict[int, dict[str, str]] = {}
        for number, entry in enumerate(entries, 1):
            try:
                release = releases.get(id(entry.release))
                if release is None:
                    release = releases[id(entry.release)] = release_wire(entry.release)
                text = encode_record(self._wire(entry, release))
            except BaseException as error:  # noqa: BLE001 - the application's objects or redaction raise what they like
                self._warn("evalpipe: a record was shed because reading or redacting it raised %r", error)
                self._shed([entry], "failed")
                continue
            if len(text) > self._options.max_record_bytes:
                # An object that was kept by reference turned out to be larger than estimated.
                self._shed([entry], "oversized")
                continue
            kept.append(entry)
            texts.append(text)
            if number % PAUSE_EVERY == 0 and not self.stopping:
                time.sleep(PAUSE_S)
        return kept, texts

    def _wire(self, entry: Entry, release: dict[str, str]) -> dict[str, Any]:
        options = self._options
        fields = entry.fields = fields_of(entry)
        if fields["cost_usd"] is None and fields["model"]:
            usage = fields["input_tokens"], fields["output_tokens"], fields["cached_tokens"]
            fields["cost_usd"] = self._cost(fields["model"], *usage)
        return record_wire(entry, release, options.redact, metadata_only=options.metadata_only, keep=options.keep)

    def _joined(self, texts: list[str]) -> str:
        return join_batch(
            texts,
            process_id=self.process_id,
            sequence=self._sequences[INGEST],
            sent_at=time.time(),
            hook_version=self._version,
        )

    def _message(self, task: str, blob: str, entries: list[Entry]) -> bytes:
        hours = Counter(f"{e.release.service}|{int(e.captured_at // HOUR_S) * HOUR_S}" for e in entries)
        return task_message(
            task,
            blob,
            message_id=_uuid(),
            origin=self.process_id,
            summary=f"({len(entries)} records)" if entries else f"({task.rpartition('.')[2]})",
            headers={"evalpipe_records": len(entries), "evalpipe_hours": dict(hours)},
        )

    def _send_records(self) -> None:
        outgoing = self._outgoing
        if outgoing is None:
            return
        accepted = self._transport.push(INGEST, outgoing.data)
        self._outgoing = None
        self._succeeded()
        if accepted:
            self._sequences[INGEST] += 1
            self._meter.enqueued(outgoing.entries)
            self._buffer.settle(len(outgoing.entries))
            log.debug("evalpipe: %d records enqueued", len(outgoing.entries))
        else:
            # The sequence number was not used: the next message takes it, so that a gap always means a loss.
            self._shed(outgoing.entries, "queue")
            self._warn("evalpipe: the queue is at its bound of %d messages; records are shed",
                       self._options.queue_max_messages)  # fmt: skip

    def _send_feedback(self, *, last: bool) -> None:
        options = self._options
        waiting = self._feedback
        for _ in range(MAX_MESSAGES):
            items = waiting.next()
            if not items:
                break
            texts, failed, why = encoded(items, options.redact, metadata_only=options.metadata_only)
            if failed:
                waiting.settle(failed, accepted=False)
                self._warn("evalpipe: feedback was shed because redacting it raised %s", why)
            if texts:
                blob = message(texts, process=self.process_id, sent_at=time.time())
                accepted = self._transport.push(FEEDBACK, self._message(FEEDBACK, blob, []))
                waiting.settle(items, accepted=accepted)
                self._succeeded()
            if not last:
                time.sleep(PAUSE_S)
        if last:
            waiting.give_up()

    def _send_meter(self, *, ended: bool) -> None:
        self._meter_due = time.monotonic() + METER_INTERVAL_S
        changes = self._meter.changes
        said = self._feedback
        told = said.changes
        # Counted up even if Redis says no: of two messages the later must have the greater number, and as counts are
        # cumulative a gap here loses nothing.
        self._sequences[MEASURE] += 1
        blob = self._meter.message(
            hook=self._version,
            process=self.process_id,
            seq=self._sequences[MEASURE],
            sent_at=time.time(),
            started_at=self._started_at,
            service=self._options.release.service,
            ended=ended,
            feedback={"given": said.given, "enqueued": said.enqueued, "shed": said.shed},
        )
        if self._transport.push(MEASURE, self._message(MEASURE, blob, [])):
            self._metered = changes
            self._said = told
            self._meter.forget(time.time())
        self._succeeded()

    def _shed(self, entries: list[Entry], why: str) -> None:
        for entry in entries:
            self._meter.shed(entry, why)
        self._buffer.settle(len(entries))

    def _succeeded(self) -> None:
        self._failures = 0
        self._retry_at = 0.0

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        pause = min(MAX_PAUSE_S, 0.25 * 2.0 ** min(self._failures, 10))
        # Spread over processes; not by the random module, whose state is the application's.
        self._retry_at = time.monotonic() + pause * (0.5 + os.urandom(1)[0] / 512)
        self._transport.close()
        self._warn(
            "evalpipe: Redis cannot be written (%s: %s); %d records wait and the oldest are shed at the bound",
            type(error).__name__, error, len(self._buffer),
        )  # fmt: skip

    def _warn(self, text: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._logged_at >= 60.0 or self._options.debug:
            self._logged_at = now
            log.warning(text, *values)


def _uuid() -> str:
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _host() -> str:
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "host")
