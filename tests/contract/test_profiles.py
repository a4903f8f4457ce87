"""Profiles on PostgreSQL and SQLite: made at ingest, read back evenly, embedded later, gone with their records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from stages import AT, World, record, records

from evalpipe.detectors.view import Place
from evalpipe.errors import PermanentError, RetryableError
from evalpipe.pipeline.embed import UNREADABLE, Embed
from evalpipe.pipeline.ingest import Ingest
from evalpipe.pipeline.maintain import Maintain, erase_user
from evalpipe.profile import Profile, packed, unpacked
from evalpipe.profiling.embedders.base import EmbedderConfig
from evalpipe.profiling.embedders.static import Static
from evalpipe.profiling.profiler import Profiler
from evalpipe.store import profiles
from evalpipe.store.queue import Queue
from evalpipe.store.tables import alerts, profile_places
from evalpipe.store.tables import profiles as table

EVERYWHERE = Place()
UNTIL = AT + timedelta(hours=1)


class Slow(Static):
    """An embedder that must not hold up ingest; it fails as often as it is told."""

    slow = True
    failures = 0
    refused = ""

    def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """As the static one, in its turn."""
        if self.refused and any(self.refused in text for text in texts):
            raise PermanentError("not this one")
        if self.failures:
            self.failures -= 1
            raise RetryableError("busy")
        return super().embed(texts)


@pytest.fixture
def world(migrated_url: str, tmp_path: Path) -> Iterator[World]:
    """A world with the demo scorecard."""
    made = World(migrated_url, tmp_path)
    yield made
    made.close()


def read(world: World, place: Place = EVERYWHERE, limit: int = 1_000, **options: object) -> list[Profile]:
    """Profiles of the first hour."""
    with world.store.read() as tx:
        return profiles.profiles_between(tx, place, AT, UNTIL, limit, **options)


def test_a_record_that_is_taken_in_has_the_profile_that_the_profiler_makes(world):
    """Words, sizes, key and unit as made; embeddings in half precision; once, whatever is redelivered."""
    asked = record(1, output="Certainly, within thirty days.", feature="refunds")
    world.ingest(asked, sequence=1)
    world.ingest(asked, sequence=1)
    made = Profiler().profile(asked)
    assert made is not None
    [found] = read(world)
    assert replace(found, input_embedding=(), output_embedding=()) == replace(
        made, input_embedding=(), output_embedding=()
    )
    assert found.output_embedding == unpacked(packed(made.output_embedding))
    assert found.output_embedding == pytest.approx(made.output_embedding, abs=1e-3)
    assert found.embedder == "static/1"


def test_a_text_that_no_profile_can_be_made_of_costs_no_record(world, caplog):
    """Neither its own record nor those of the same message: scores are more than drift."""

    class Broken(Static):
        def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
            if any("poison" in text for text in texts):
                raise RuntimeError("cannot")
            return super().embed(texts)

    profiler = Profiler(Broken(EmbedderConfig()))
    world.ingest_stage = Ingest(world.store, world.plans, max_record_bytes=20_000, profiler=profiler)
    done = world.ingest(record(1, output="poison"), record(2))
    assert (done.new, done.dead) == (2, 0)
    assert [found.record_id for found in read(world)] == ["r-2"]
    assert "r-1 has no profile" in caplog.text


def test_what_stands_for_no_traffic_has_no_profile(world):
    """Feedback's records weigh nothing, and no user saw a shadow's answer."""
    world.ingest(record(1, reason="feedback"), record(2, reason="rollout:r1:shadow"), record(3))
    assert [p.record_id for p in read(world)] == ["r-3"]


def test_profiles_are_read_by_place_and_window_and_evenly_if_there_are_many(world):
    """The same choice whoever asks, spread over the window; "" is all; a rule's own match chooses features."""
    features = ("a", "b")
    world.ingest(*(record(i, feature=features[i % 2]) for i in range(200)))
    world.ingest(*(record(i, variant="canary", feature="c") for i in range(200, 220)))
    assert len(read(world)) == 220
    assert len(read(world, Place(service="desk", variant="canary"))) == 20
    assert read(world, Place(service="other")) == []
    assert {p.words["feature"] for p in read(world, fits=lambda place: place.feature in {"a", "c"})} == {"a", "c"}
    assert read(world, fits=lambda _: False) == []
    some = read(world, limit=60)
    assert some == read(world, limit=60)
    assert some == sorted(some, key=lambda p: p.captured_at)
    late = sum(p.captured_at >= AT + timedelta(seconds=110) for p in some)
    assert 15 <= late <= 45
    with world.store.read() as tx:
        places = profiles.places_since(tx, AT)
        assert [(p.variant, p.feature) for p in places] == [("baseline", "a"), ("baseline", "b"), ("canary", "c")]
        assert profiles.places_since(tx, UNTIL) == []


def test_a_profile_goes_with_its_record_and_with_its_user(world, redis_url):
    """At the end of its retention, and at once when the user is erased."""
    world.ingest(record(1, user_id="u1"), record(2, user_id="u2"), record(3))
    world.drain()
    with world.store.begin() as tx:
        erase_user(tx, "u1")
    assert {row["record_id"] for row in world.rows(table)} == {"r-2", "r-3"}
    queue = Queue(redis_url)
    Maintain(world.store, queue, timedelta(days=1))(AT + timedelta(days=3))
    queue.close()
    assert world.count(table) == 0
    with world.store.read() as tx:
        assert profiles.places_since(tx, AT) == []


def test_a_place_is_written_down_anew_when_ten_minutes_have_passed(world):
    """Not with each batch, and never back in time."""
    for seconds in (0, 300, 700, 20):
        world.ingest(record(str(seconds), captured_at=AT + timedelta(seconds=seconds)))
    [place] = world.rows(profile_places)
    assert place["last_at"] == AT + timedelta(seconds=700)


def test_a_slow_embedder_works_beside_ingest_and_is_waited_for(world):
    """The profile is there at once and its embeddings follow; a failure leaves them for the next run."""
    slow = Slow(EmbedderConfig())
    world.ingest_stage = Ingest(world.store, world.plans, max_record_bytes=20_000, profiler=Profiler(slow))
    world.ingest(*records(150))
    assert all(p.embedder == "" and p.output_embedding == () for p in read(world))
    stage = Embed(world.store, slow)
    slow.failures = 1
    assert stage() == 0
    assert stage() == 150
    assert stage() == 0
    assert {p.embedder for p in read(world)} == {slow.version}
    assert all(len(p.output_embedding) == 64 for p in read(world))


def test_what_was_erased_before_it_was_embedded_waits_no_longer(world):
    """Without a payload there is no text; with one that cannot be read either."""
    slow = Slow(EmbedderConfig())
    world.ingest_stage = Ingest(world.store, world.plans, max_record_bytes=20_000, profiler=Profiler(slow))
    world.ingest(record(1))
    with world.store.begin() as tx:
        tx.connection.exec_driver_sql("UPDATE records SET payload = NULL")
    assert Embed(world.store, slow)() == 0
    assert [p.embedder for p in read(world)] == [UNREADABLE]


def test_a_text_that_an_embedder_refuses_keeps_no_other_from_being_embedded(world):
    """It goes without; where all are refused (a wrong key) everything waits."""
    slow = Slow(EmbedderConfig())
    world.ingest_stage = Ingest(world.store, world.plans, max_record_bytes=20_000, profiler=Profiler(slow))
    world.ingest(record(1), record(2, output="poison"), record(3))
    stage = Embed(world.store, slow)
    slow.refused = " "
    assert stage() == 0
    assert {p.embedder for p in read(world)} == {""}
    slow.refused = "poison"
    assert stage() == 2
    assert [p.embedder for p in read(world)] == [slow.version, UNREADABLE, slow.version]


DRIFT_CARD = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
alerts:
  - name: other-languages
    detect: input_drift
    params: {min_sample: 60, dimensions: [language]}
    normal: {previous: 1h}
    severity: table
"""
ENGLISH = "Where is the parcel that I ordered last week, it has not arrived?"
GERMAN = "Wo bleibt eigentlich das Paket, das ich letzte Woche bestellt habe?"


def test_a_drift_of_stored_records_fires_an_alert_with_its_records(migrated_url, tmp_path):
    """From the queue's message to the alert's row, over the database: the whole way."""
    world = World(migrated_url, tmp_path, card=DRIFT_CARD, judge="")

    def asked(i: int, text: str, hour: int) -> object:
        at = AT + timedelta(hours=hour, seconds=30 * i)
        return record(f"{hour}-{i}", captured_at=at, messages=[{"role": "user", "content": text}])

    world.ingest(*(asked(i, ENGLISH, 0) for i in range(100)))
    world.ingest(*(asked(i, GERMAN if i % 3 == 0 else ENGLISH, 1) for i in range(100)))
    world.clock.at = AT + timedelta(hours=2, minutes=11)
    world.evaluate(world.clock())
    [row] = world.rows(alerts)
    assert (row["rule"], row["status"], row["kind"]) == ("other-languages", "firing", "input_drift")
    assert "language: de 0 % -> 34 %" in row["summary"] + str(row["explanation"])
    shown = {example["record_id"] for example in row["explanation"]["examples"]}
    assert shown
    assert all(int(record_id.split("-")[-1]) % 3 == 0 for record_id in shown)
    world.close()
