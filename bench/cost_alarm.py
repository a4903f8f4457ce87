"""A feature whose cost explodes: seconds until the page left, and until the kill switch stopped its calls in the app.

    python bench/cost_alarm.py [--json] [--quick]

Everything is real: a hook with its default flush interval, Valkey, Celery workers and the beat, a consumer that
verifies the signature; on SQLite and on PostgreSQL. The application makes 1,000 calls a minute of about 1 cent each
(log-normal, sigma 1) with the hour before in the database; then each costs ten times as much, or there are ten times as
many. The rule is ``detect: cost`` with its defaults and ``kill_switch: true``; only ``settle`` is shortened: nobody
waits ten minutes here. Explosions begin at another moment of the hook's interval each time, and each is another
variant's: those of one variant are one group, whose members come out together after its first page.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from math import e, exp
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import NamedTuple

from machine import Figure, Valkey, databases, main
from spine_fleet import Fleet
from sqlalchemy import insert, select

from evalpipe import Hook
from evalpipe.errors import CallRefused
from evalpipe.receiver import Event, Receiver
from evalpipe.signing import new_secret
from evalpipe.store.meter_slots import SLOT
from evalpipe.store.tables import meter_slots, releases

GAP_S = 60 / 1000
USD = 0.01
QUIET_S = 40.0
PATIENCE_S = 60.0
FIRING = "io.evalpipe.alert.firing.v1"
CARD = """
name: support
match: {service: support-desk}
criteria:
  - {name: refusal, heuristic: refusal}
alerts:
  - name: cost-explosion
    detect: cost
    params: {settle: 20s}
    by: [feature]
    severity: table
    kill_switch: true
"""


class Exploded(NamedTuple):
    """Seconds from the first dear call: to the page, and to the first refused call; calls that were made until then."""

    what: str
    page: float
    stopped: float
    calls: int
    severity: str


class App(Thread):
    """Makes calls of one feature until it is told to stop."""

    def __init__(self, hook: Hook, feature: str) -> None:
        super().__init__(daemon=True)
        self.hook, self.feature, self.over = hook, feature, Flag()
        self.factor, self.pace, self.exploded_at, self.refused_at, self.made = 1.0, 1.0, 0.0, 0.0, 0
        self.random = random.Random(feature)

    def run(self) -> None:
        """Call after call."""
        due = time.monotonic()
        while not self.over.is_set():
            try:
                with self.hook.call(
                    feature=self.feature, user_id=f"u{self.random.randrange(50)}", enforce=True
                ) as call:
                    call.output = "Yes."
                    call.input_tokens, call.output_tokens = 400, int(200 * self.factor)
                    call.cost_usd = USD * self.factor * exp(self.random.gauss(0.0, 1.0) - 0.5)
                self.made += self.exploded_at > 0.0
            except CallRefused:
                self.refused_at = self.refused_at or time.time()
            due += GAP_S / self.pace
            time.sleep(max(0.0, due - time.monotonic()))

    def explode(self, what: str) -> None:
        """From now on each call costs ten times as much, or ten times as many are made."""
        self.exploded_at = time.time()
        if what == "cost":
            self.factor = 10.0
        else:
            self.pace = 10.0


def measure(quick: bool) -> list[Figure]:
    rounds = ["cost", "calls"] if quick else ["cost"] * 6 + ["calls"] * 4
    figures: list[Figure] = []
    for database, folder, url in databases("bench_cost_alarm"):
        found = of_fleet(folder, url, rounds)
        for what in ("cost", "calls"):
            figures += told(f"{database}, {what} x 10", [one for one in found if one.what == what])
    return figures


def of_fleet(folder: Path, database_url: str, rounds: list[str]) -> list[Exploded]:
    """These explosions in one fleet."""
    secret = new_secret()
    pages: dict[str, tuple[float, str]] = {}

    def note(event: Event) -> None:
        if event["type"] == FIRING:
            for alert in event["data"].get("alerts", [event["data"]]):
                pages.setdefault(alert.get("feature", ""), (time.time(), event["data"].get("severity", "")))

    with Valkey(folder / "valkey") as valkey, Receiver(secrets=secret, on_event=note) as consumer:
        environ = {
            "EVALPIPE_WEBHOOK_URL": consumer.url,
            "EVALPIPE_WEBHOOK_SECRET": secret,
            "EVALPIPE_VISIBILITY_TIMEOUT_S": "600",
            "EVALPIPE_LEASE_S": "120",
            "EVALPIPE_ALERTS": "",  # routing as it is by default
        }
        fleet = Fleet(folder, valkey.url, database_url, environ)
        (folder / "scorecards" / "support.yaml").write_text(CARD)
        try:
            fleet.start_all()
            return [one(fleet, number, what, pages) for number, what in enumerate(rounds)]
        finally:
            fleet.close()


def one(fleet: Fleet, number: int, what: str, pages: dict[str, tuple[float, str]]) -> Exploded:
    """Calls as usual, then dear or many ones, until the alert is out and the calls are stopped."""
    feature, variant = f"feature-{number}", f"variant-{number}"
    app = App(fleet.hook(variant, flush_interval_s=1.0, sample_rate=0.02), feature)
    app.start()
    deadline = time.monotonic() + PATIENCE_S
    while (release_id := known(fleet, variant)) is None:
        assert time.monotonic() < deadline, f"no meter message arrived\n{fleet.log.read_text()[-3000:]}"
        time.sleep(0.2)
    remember(fleet, release_id, feature)
    time.sleep(QUIET_S + number * 0.73)
    assert feature not in pages, "a false alarm"
    app.explode(what)
    deadline = time.monotonic() + PATIENCE_S
    while feature not in pages or not app.refused_at:
        assert time.monotonic() < deadline, (
            f"page {pages.get(feature)}, refused {app.refused_at}\n" + fleet.log.read_text()[-4000:]
        )
        time.sleep(0.05)
    app.over.set()
    app.join()
    at, severity = pages[feature]
    return Exploded(what, at - app.exploded_at, app.refused_at - app.exploded_at, app.made, severity)


def known(fleet: Fleet, variant: str) -> str | None:
    """The release of the app, once the store has heard of it."""
    with fleet.store.read() as tx:
        return tx.connection.scalar(select(releases.c.release_id).where(releases.c.variant == variant))


def remember(fleet: Fleet, release_id: str, feature: str) -> None:
    """The hour and a half before: what the app would have told."""
    now = datetime.now(UTC).replace(microsecond=0)
    first = now - timedelta(seconds=now.second % 5, minutes=90)
    per_slot = SLOT.total_seconds() / GAP_S
    rows = [
        {"slot_at": first + SLOT * number, "release_id": release_id, "feature": feature, "calls": round(per_slot),
         "tokens": round(600 * per_slot), "cost_usd": USD * per_slot, "cost_squares": USD * USD * e * per_slot}
        for number in range(90 * 12 - 12)
    ]  # fmt: skip
    with fleet.store.begin() as tx:
        tx.connection.execute(insert(meter_slots), rows)


def told(name: str, found: list[Exploded]) -> list[Figure]:
    pages, stops = [one.page for one in found], [one.stopped for one in found]
    return [
        Figure(f"{name}: to the page", pages, "s"),
        Figure(f"{name}: the latest page", [max(pages)], "s", 15.0, True),
        Figure(f"{name}: to the first refused call", stops, "s"),
        Figure(f"{name}: the latest of these", [max(stops)], "s", 16.0, True),
        Figure(f"{name}: calls made until then", [float(one.calls) for one in found], "calls"),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
