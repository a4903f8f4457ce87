"""The wire form: what goes in comes out, older schemas are read, newer refused, and one bad record costs no other."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe import record as codec
from evalpipe.errors import RecordError
from evalpipe.record import (
    SCHEMA,
    Record,
    Release,
    decode_batch,
    encode_batch,
    from_wire,
    text_of,
    to_wire,
)
from evalpipe.release import FIELDS

AT = datetime(2026, 3, 1, 10, 30, 15, 123456, tzinfo=UTC)
GOOD = {"record_id": "r", "trace_id": "t", "captured_at": AT.timestamp(), "release": {"service": "desk"}}

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
ID = TEXT.filter(bool)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(TEXT, JSON_VALUES, max_size=3), max_size=3)
AMOUNT = st.none() | st.floats(0, 1e6)
RELEASES = st.builds(Release, service=ID, **{name: TEXT for name in FIELDS if name != "service"})
RECORDS = st.builds(
    Record,
    record_id=ID,
    trace_id=ID,
    captured_at=st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    release=RELEASES,
    **dict.fromkeys(("feature", "session_id", "user_id", "unit", "output", "model", "finish_reason", "error"), TEXT),
    **dict.fromkeys(("stratum", "reason"), TEXT),
    **dict.fromkeys(("messages", "context", "tool_calls"), OBJECTS),
    tools=st.lists(JSON_VALUES, max_size=2),
    **dict.fromkeys(("parameters", "attributes"), st.dictionaries(TEXT, JSON_VALUES, max_size=3)),
    **dict.fromkeys(("input_tokens", "output_tokens"), st.none() | st.integers(0, 10**9)),
    **dict.fromkeys(("cost_usd", "latency_ms"), AMOUNT),
    probability=st.floats(codec.LEAST_PROBABILITY, 1),
)


def batch(*wires: object, **changes: object) -> str:
    """A message's text with these records, and other fields changed."""
    text = encode_batch(wires, process_id="p", sequence=3, sent_at=AT.timestamp(), hook_version="0.1.0")
    return json.dumps({**json.loads(text), **changes})


def same(a: Record, b: Record) -> bool:
    """Equal but for the kinds of empty sequences."""
    return all(
        (list(x) if isinstance(x := getattr(a, f.name), list | tuple) else x)
        == (list(y) if isinstance(y := getattr(b, f.name), list | tuple) else y)
        for f in fields(Record)
    )


@given(RECORDS)
def test_a_record_comes_out_as_it_went_in(record: Record):
    """Through the parser of the workers, and through the standard one."""
    text = encode_batch([to_wire(record)], process_id="p", sequence=1, sent_at=1.0, hook_version="v")
    for loads in (json.loads, orjson.loads):
        (found,) = decode_batch(text.encode(), loads).records
        assert same(found, record)


@given(RECORDS)
def test_what_is_stored_is_read_back(record: Record):
    """The payload of the database is the wire form too."""
    assert same(from_wire(orjson.loads(orjson.dumps(to_wire(record)))), record)


def test_fields_that_hold_their_default_do_not_travel():
    """A short record is a short message."""
    assert to_wire(from_wire(GOOD)) == GOOD


def test_a_batch_says_who_sent_it():
    """Process, number, time and version."""
    found = decode_batch(batch(GOOD))
    assert (found.process_id, found.sequence, found.hook_version, found.sent_at) == ("p", 3, "0.1.0", AT)


def test_keys_that_this_version_does_not_know_are_ignored():
    """In the batch, the record and the release: hooks may be newer than workers."""
    wire = {**GOOD, "new": 1, "release": {"service": "desk", "new": "x"}}
    assert decode_batch(batch(wire, also_new=[])).records == [from_wire(GOOD)]


def test_schemas_two_older_are_read_and_others_refused(monkeypatch: pytest.MonkeyPatch):
    """With what to do in the message."""
    monkeypatch.setattr(codec, "SCHEMA", 5)
    monkeypatch.setattr(codec, "OLDEST_SCHEMA", 3)
    for schema in (3, 4, 5):
        assert len(decode_batch(batch(GOOD, schema=schema)).records) == 1
    for schema in (2, 6, "5", None, 5.0):
        with pytest.raises(RecordError, match="reads 3 to 5: upgrade the workers before the hooks"):
            decode_batch(batch(GOOD, schema=schema))


def test_this_version_reads_what_it_writes():
    """The schema that it writes is in the range that it reads."""
    assert codec.OLDEST_SCHEMA <= SCHEMA
    assert json.loads(batch())["schema"] == SCHEMA


BAD = [
    (None, "must be an object, not NoneType"),
    ([], "must be an object, not list"),
    ({**GOOD, "record_id": ""}, "'record_id' is missing"),
    ({**GOOD, "trace_id": 5}, "'trace_id' has the wrong type: int"),
    ({k: v for k, v in GOOD.items() if k != "trace_id"}, "'trace_id' is missing"),
    ({**GOOD, "captured_at": "now"}, "'captured_at' must be seconds since 1970"),
    ({**GOOD, "captured_at": 1e99}, "'captured_at' is no instant"),
    ({**GOOD, "release": "desk"}, "'release' must be an object"),
    ({**GOOD, "release": {}}, "'service' is missing"),
    ({**GOOD, "release": {"service": "desk", "model": 4}}, "'model' must be text"),
    ({**GOOD, "release": {"service": "de\x00sk"}}, "'service' must be text without NUL"),
    ({**GOOD, "probability": 0}, "'probability' must be from"),
    ({**GOOD, "probability": 1.1}, "'probability' must be from"),
    ({**GOOD, "probability": 5e-324}, "'probability' must be from"),
    ({**GOOD, "probability": None}, "'probability' has the wrong type"),
    ({**GOOD, "messages": "hi"}, "'messages' has the wrong type"),
    ({**GOOD, "messages": [{}, "hi"]}, "'messages' must hold objects, not str"),
    ({**GOOD, "context": [5]}, "'context' must hold objects, not int"),
    ({**GOOD, "tool_calls": [None]}, "'tool_calls' must hold objects, not NoneType"),
    ({**GOOD, "attributes": []}, "'attributes' has the wrong type"),
    ({**GOOD, "latency_ms": "5"}, "'latency_ms' has the wrong type"),
    ({**GOOD, "session_id": "a\x00"}, "'session_id' has a NUL"),
    *(
        ({**GOOD, name: "x" * 513}, f"'{name}' has 513 characters, more than 512")
        for name in ("record_id", "trace_id", "session_id", "user_id", "unit")
    ),
    *(
        ({**GOOD, name: "x" * 201}, f"'{name}' has 201 characters, more than 200")
        for name in ("feature", "segment", "stratum", "reason")
    ),
    ({**GOOD, "release": {"service": "desk", "prompt": "x" * 201}}, "'prompt' has 201 characters, more than 200"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_record_is_a_reject_with_its_reason_and_the_rest_is_kept(bad, reason):
    """Its own text is kept, whole."""
    found = decode_batch(batch(GOOD, bad, {**GOOD, "record_id": "r2"}))
    assert [r.record_id for r in found.records] == ["r", "r2"]
    (reject,) = found.rejects
    assert reason in reject.reason
    assert json.loads(reject.raw) == bad


@given(JSON_VALUES, st.sampled_from([f.name for f in fields(Record)]))
def test_whatever_a_field_holds_the_record_is_read_or_rejected(value, name):
    """And what is read can be asked for its input, its weight, and its wire form."""
    found = decode_batch(batch({**GOOD, name: value}))
    assert len(found.records) + len(found.rejects) == 1
    for record in found.records:
        assert isinstance(record.input_text, str)
        assert 1.0 <= record.weight <= 1e9
        assert same(from_wire(to_wire(record)), record)


@given(JSON_VALUES, st.sampled_from(["schema", "records", "seq", "sent_at", "process", "hook"]))
def test_whatever_a_batch_holds_it_is_read_or_refused(value, name):
    """Nothing but RecordError is raised."""
    with contextlib.suppress(RecordError):
        decode_batch(batch(GOOD, **{name: value}))


def test_a_process_with_an_endless_name_is_refused():
    """It is a key in the database."""
    with pytest.raises(RecordError, match="'process' has 201 characters"):
        decode_batch(batch(GOOD, process="p" * 201))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"x"', "{}", '{"schema":1,"records":{}}', b"\xff", "[" * 100_000])
def test_what_is_no_batch_is_refused(text):
    """Bytes that are no text, and depths that no parser goes to, as well."""
    with pytest.raises(RecordError):
        decode_batch(text)


@given(RELEASES, RELEASES)
def test_releases_have_one_name_if_and_only_if_they_are_equal(a: Release, b: Release):
    """Sixteen hex digits."""
    assert (a.release_id == b.release_id) == (a == b)
    assert len(a.release_id) == 16


def test_every_version_is_part_of_a_release_s_name():
    """Each can change answers."""
    names = {Release(**{name: "x"}).release_id for name in FIELDS}
    assert len(names) == len(FIELDS)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}, "b", {"text": 5}, 7], "a\nb"),
        (None, ""),
        (5, ""),
        ([], ""),
    ],
)
def test_the_text_of_a_content_is_its_text_parts(content, text):
    """As providers write messages."""
    assert text_of(content) == text


def test_the_input_is_the_last_thing_that_the_user_said():
    """Whatever came after it."""
    turns = [("user", "first"), ("assistant", "x"), ("user", "second"), ("tool", "y")]
    record = from_wire({**GOOD, "messages": [{"role": role, "content": text} for role, text in turns]})
    assert record.input_text == "second"
    assert from_wire({**GOOD, "messages": [{"role": "system", "content": "x"}]}).input_text == ""


def test_times_are_the_same_instant_in_every_zone():
    """They come out in UTC."""
    there = AT.astimezone(timezone(timedelta(hours=-7)))
    record = from_wire({**GOOD, "captured_at": there.timestamp()})
    assert record.captured_at == AT
    assert record.captured_at.tzinfo is UTC


def test_the_codec_brings_nothing_into_an_application():
    """The hook loads it: standard library only, in a fresh interpreter."""
    code = (
        "import sys, evalpipe.record\n"
        "foreign = {'pydantic', 'sqlalchemy', 'orjson', 'redis', 'celery', 'numpy'} & set(sys.modules)\n"
        "assert not foreign, foreign"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
