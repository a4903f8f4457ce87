"""Drift of inputs and outputs: what moved is found, named and shown; what has not, or cannot be told, is left alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.played import Fixed
from evalpipe.detectors.base import Finding, detectors
from evalpipe.detectors.input_drift import InputDrift, InputDriftParams
from evalpipe.detectors.output_drift import OutputDrift, OutputDriftParams
from evalpipe.detectors.view import NormalSpec, Place, Scope
from evalpipe.detectors.windows import closed_window, level_of, wait_of
from evalpipe.profile import DIMENSIONS, Profile

AT = datetime(2026, 3, 2, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLACE = Place("desk", "production", "baseline")
BASELINE = Scope("", frozenset({"profiles"}), (), lambda _: True, normal=NormalSpec("baseline"))


class Maker:
    """Makes profiles of a kind of traffic; what is not said is drawn as usual."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.n = 0
        self.centres = np.random.default_rng(0).standard_normal((20, DIMENSIONS))

    def vector(self, centre: np.ndarray) -> tuple[float, ...]:
        """A unit vector near ``centre``."""
        found = centre + self.rng.standard_normal(DIMENSIONS)
        return tuple((found / np.linalg.norm(found)).tolist())

    def one(self, at: datetime, *, german: float = 0.05, style: int = 0, **changed: Any) -> Profile:
        """One profile."""
        self.n += 1
        question = int(self.rng.integers(15))
        chars = float(self.rng.lognormal(4, 0.5))
        profile = Profile(
            record_id=f"r{self.rng.integers(10**9)}-{self.n}",
            captured_at=at,
            words={
                "language": "de" if self.rng.random() < german else "en",
                "entities": "none",
                "input_schema": "text",
                "feature": "chat",
                "format": "prose",
                "terms": "you can do this" if style == 0 else "certainly you can do this",
            },
            sizes={"input_chars": chars, "output_chars": 3 * chars},
            input_embedding=self.vector(2 * self.centres[question]),
            output_embedding=self.vector(2 * self.centres[question] + (2 * self.centres[15 + style] if style else 0)),
            input_key=f"q{question}",
            unit=f"s{self.n}",
            embedder="static/1",
        )
        return replace(profile, **changed)

    def many(self, n: int, at: datetime = AT, **options: Any) -> list[Profile]:
        """So many over an hour."""
        return [self.one(at + HOUR * i / n, **options) for i in range(n)]


def feed_of(now: list[Profile], before: list[Profile], at: datetime = AT + HOUR + timedelta(minutes=11)) -> MemoryFeed:
    """A feed with these, and a baseline."""
    feed = MemoryFeed(at)
    for profile in now:
        feed.add_profile(PLACE, profile)
    feed.set_normal(Fixed("baseline march (1,000 records)", looks=before))
    return feed


def looked(kind: str, feed: MemoryFeed, scope: Scope = BASELINE, **params: Any) -> Finding:
    """The first look of a detector."""
    found = detectors.get(kind)
    state, finding = found(found.Params(**params)).look(feed.view(scope, PLACE, "a"), {})
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < 2_000
    return finding


BEFORE = Maker(1).many(1_000, AT - 5 * HOUR)


@pytest.mark.parametrize("kind", ["input_drift", "output_drift"])
def test_the_same_traffic_is_no_drift(kind):
    """The numbers of each dimension are there all the same."""
    finding = looked(kind, feed_of(Maker(2).many(300), BEFORE))
    assert finding.violated is False
    assert finding.n == 300
    assert finding.reason.startswith("no drift in ")
    assert {"length", "level", "n_before"} <= finding.numbers.keys()
    assert finding.examples == ()
    json.dumps(dict(finding.numbers))


def test_a_language_that_grows_is_named_with_its_shares_and_records():
    """In plain words, with the records that are of it."""
    now = Maker(3).many(300, german=0.25)
    finding = looked("input_drift", feed_of(now, BEFORE))
    assert finding.violated is True
    assert finding.numbers["drifting"] == ["language"]
    assert finding.reason.startswith("language: de ")
    assert "baseline march" in finding.reason
    german = {p.record_id for p in now if p.words["language"] == "de"}
    assert len(finding.examples) == 10
    assert set(finding.examples) <= german
    assert finding.value > finding.threshold == 0.05
    assert finding.severity is None


@pytest.mark.parametrize(
    ("changed", "dimension"),
    [
        ({"sizes": {"input_chars": 120.0}}, "length"),
        ({"words": {"language": "en", "entities": "email", "input_schema": "text", "feature": "chat"}}, "entities"),
        ({"words": {"language": "en", "entities": "none", "input_schema": "{a:text}", "feature": "chat"}}, "schema"),
        ({"words": {"language": "en", "entities": "none", "input_schema": "text", "feature": "mail"}}, "feature"),
    ],
)
def test_every_other_dimension_of_inputs_is_found(changed, dimension):
    """A fifth of the records is others."""
    maker = Maker(4)
    now = [*maker.many(240), *maker.many(60, **changed)]
    finding = looked("input_drift", feed_of(sorted(now, key=lambda p: p.captured_at), BEFORE))
    assert dimension in finding.numbers["drifting"]


def test_a_new_topic_is_found_with_the_records_about_it():
    """By their embedding."""
    maker = Maker(5)
    new = maker.vector(3 * maker.centres[19])
    now = [*maker.many(250), *maker.many(50, input_embedding=new)]
    finding = looked("input_drift", feed_of(sorted(now, key=lambda p: p.captured_at), BEFORE))
    assert finding.numbers["drifting"] == ["topic"]
    assert set(finding.examples) <= {p.record_id for p in now if p.input_embedding == new}


def test_a_swapped_model_is_output_drift_while_the_inputs_stand_still():
    """Said in one sentence: what moved, and that the inputs did not."""
    finding = looked("output_drift", feed_of(Maker(6).many(300, style=1), BEFORE))
    assert finding.violated is True
    assert {"embedding", "vocabulary", "answers"} <= set(finding.numbers["drifting"])
    assert "'certainly' 0 % -> 100 %" in finding.reason
    assert finding.reason.endswith("the inputs did not move")
    assert finding.numbers["inputs_moved"] == []


def test_answers_that_follow_other_questions_are_told_apart_from_answers_that_changed():
    """The questions changed their mix, and each is answered as before: held equal, nothing is left."""
    maker = Maker(7)
    some = [p for p in maker.many(2_500) if int(p.input_key[1:]) < 4][:400]
    followed = looked("output_drift", feed_of(some, BEFORE))
    assert followed.violated is True
    assert followed.numbers["drifting"] == ["embedding"]
    assert followed.numbers["inputs_moved"] == ["topic"]
    assert followed.reason.endswith("the answers may just follow them")
    both = [p for p in maker.many(2_500, style=1) if int(p.input_key[1:]) < 4][:400]
    changed = looked("output_drift", feed_of(both, BEFORE))
    assert changed.reason.endswith("the answers to equal inputs did as well")


def test_a_change_below_the_floor_is_no_drift_however_sure_it_is():
    """Three points of language in very many records."""
    now = Maker(8).many(2_000, german=0.08)
    before = Maker(9).many(6_000, AT - 5 * HOUR)
    finding = looked("input_drift", feed_of(now, before))
    assert finding.violated is False
    assert finding.numbers["language"]["p"] < 1e-3
    assert looked("input_drift", feed_of(now, before), mix_floor=0.02).violated is True


@pytest.mark.parametrize(
    ("now", "before", "reason"),
    [
        ([], BEFORE, "0 records from 2026-03-02 10:00"),
        (Maker(10).many(99), BEFORE, "99 records"),
        (Maker(10).many(200), BEFORE[:50], "baseline march .* has 50 profiles"),
    ],
)
def test_too_few_records_say_nothing(now, before, reason):
    """The rule's no_data decides."""
    finding = looked("input_drift", feed_of(now, before))
    assert finding.violated is None
    assert re.search(reason, finding.reason)


def test_without_anything_normal_nothing_is_said():
    """Before the first baseline was captured."""
    feed = MemoryFeed(AT + HOUR + timedelta(minutes=11))
    for profile in Maker(11).many(200):
        feed.add_profile(PLACE, profile)
    finding = looked("output_drift", feed)
    assert (finding.violated, finding.n) == (None, 200)
    assert finding.reason.startswith("nothing is normal yet")


def test_embeddings_of_two_embedders_are_never_compared():
    """A new one begins a new epoch; the other dimensions go on."""
    now = Maker(12).many(300, embedder="openai:small/1")
    finding = looked("input_drift", feed_of(now, BEFORE))
    assert finding.violated is False
    assert "topic" not in finding.numbers
    assert "openai:small/1 now and of static/1 before" in finding.numbers["left_out"]["input embedding"]
    only = looked("input_drift", feed_of(now, BEFORE), dimensions=["topic"])
    assert only.violated is None
    assert "do not compare" in only.reason


def test_a_window_is_looked_at_once_and_its_finding_stands_until_the_next():
    """Whatever comes late, and though the clock goes back; the next window may clear it."""
    before, maker = BEFORE, Maker(13)
    feed = feed_of([*maker.many(300, german=0.3), *maker.many(300, AT + HOUR)], before, AT + HOUR)
    detector = InputDrift(InputDriftParams())

    def look(state: Any, at: datetime) -> tuple[Any, Finding]:
        feed.now = at
        return detector.look(feed.view(BASELINE, PLACE, "a"), json.loads(json.dumps(state)))

    wait = wait_of(PLACE, HOUR) + timedelta(minutes=1)
    state, early = look({}, AT + HOUR + wait - timedelta(seconds=1))
    assert early.violated is None
    state, first = look(state, AT + HOUR + wait)
    assert first.violated is True
    for later in (timedelta(minutes=30), HOUR + wait - timedelta(seconds=1), -3 * HOUR):
        again, held = look(state, AT + HOUR + later)
        assert again == state
        assert (held.violated, held.value, held.examples) == (True, first.value, first.examples)
    assert look(state, AT + 2 * HOUR + wait)[1].violated is False


def test_the_stretch_before_can_be_normal():
    """`previous`: without any baseline."""
    maker = Maker(14)
    feed = feed_of([*maker.many(400, AT - HOUR), *maker.many(300, german=0.3)], [])
    scope = replace(BASELINE, normal=NormalSpec("previous", span=HOUR))
    assert looked("input_drift", feed, scope).numbers["drifting"] == ["language"]


def test_the_level_follows_from_how_often_a_false_alarm_is_welcome():
    """One in thirty days of hours; never more than 5 %."""
    assert level_of(HOUR, timedelta(days=30)) == pytest.approx(1 / 720)
    assert level_of(timedelta(days=1), timedelta(days=1)) == 0.05
    since, until = closed_window(AT + timedelta(minutes=59), timedelta(minutes=30))
    assert (since, until) == (AT, AT + timedelta(minutes=30))
    waits = [wait_of(Place("desk", feature=f"f{i}"), HOUR) for i in range(100)]
    assert all(timedelta(0) <= wait < timedelta(minutes=10) for wait in waits)
    assert len({wait // timedelta(minutes=1) for wait in waits}) == 10


def test_parameters_that_make_no_sense_are_refused():
    """By name."""
    for wrong in ({"dimensions": []}, {"dimensions": ["colour"]}, {"mix_floor": 0.0}, {"min_sample": 3}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            OutputDriftParams(**wrong)
    assert OutputDrift(OutputDriftParams(dimensions=["format"])).criteria == ()


def test_false_alarms_are_rare_over_many_windows():
    """At a level of 5 % and with floors that let everything through: by the tests alone."""
    maker, alarms = Maker(15), 0
    pool = maker.many(2_000)
    params = {"mix_floor": 1e-9, "size_floor": 1e-9, "embedding_floor": 1e-9, "false_alarm_every": HOUR}
    for _ in range(30):
        drawn = [pool[i] for i in maker.rng.choice(len(pool), 400, replace=False)]
        feed = feed_of(sorted(drawn[:150], key=lambda p: p.captured_at), drawn[150:])
        alarms += bool(looked("output_drift", feed, term_floor=1e-9, answer_floor=1e-9, **params).violated)
    assert alarms <= 5
