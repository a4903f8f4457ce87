"""The body of a webhook: a CloudEvent, always the same bytes, and never a reason not to tell of a rollback."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.notification import MAX_BYTES, ROLLBACK, Notification, to_cloudevent

AT = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)
EXAMPLE = Notification(
    event_id="evt_1",
    type=ROLLBACK,
    subject="support-bot",
    at=AT,
    data={"seq": 14, "reason": "quality fell"},
    source="/evalpipe/prod",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def _with(**changes):
    return json.loads(to_cloudevent(dataclasses.replace(EXAMPLE, **changes)))


def test_the_bytes_are_these():
    """The contract with consumers, byte for byte."""
    assert to_cloudevent(EXAMPLE) == (
        b'{"data":{"reason":"quality fell","seq":14},"datacontenttype":"application/json","id":"evt_1",'
        b'"source":"/evalpipe/prod","specversion":"1.0","subject":"support-bot","time":"2026-11-22T03:30:00Z",'
        b'"type":"io.evalpipe.decision.rollback.v1"}'
    )


def test_the_order_of_keys_and_the_zone_do_not_matter():
    """The same notification has the same bytes, so the same signature."""
    other = dataclasses.replace(
        EXAMPLE, data=dict(reversed(EXAMPLE.data.items())), at=AT.astimezone(timezone(timedelta(hours=2)))
    )
    assert to_cloudevent(other) == to_cloudevent(EXAMPLE)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_whatever_is_in_the_data_the_event_is_told(data):
    """It is strict JSON in UTF-8 and comes back with the same keys."""
    event = json.loads(to_cloudevent(dataclasses.replace(EXAMPLE, data=data)).decode(), parse_constant=pytest.fail)
    assert {key.encode(errors="replace").decode() for key in data} == set(event["data"])


def test_what_json_does_not_know_is_unknown_or_text():
    """Unknown is null, not zero; numbers of numpy are numbers."""
    data = {
        "nan": math.nan,
        "inf": -math.inf,
        "n": np.int64(3),
        "x": np.float32(0.5),
        "at": AT,
        "odd": 1j,
        "half": "\ud800",
    }
    assert _with(data=data)["data"] == {
        "nan": None,
        "inf": None,
        "n": 3,
        "x": 0.5,
        "at": "2026-11-22T03:30:00Z",
        "odd": "1j",
        "half": "?",
    }


@pytest.mark.parametrize("entries", [0, 1, 50, 500])
def test_a_large_body_loses_evidence_from_the_end_and_says_so(entries):
    """As much stays as fits; the most telling comes first and stays longest."""
    evidence = [{"rank": n, "quote": "ä" * 100} for n in range(entries)]
    body = to_cloudevent(dataclasses.replace(EXAMPLE, data={"seq": 1, "evidence": evidence}))
    data = json.loads(body)["data"]
    assert len(body) <= MAX_BYTES
    assert data["evidence"] == evidence[: len(data["evidence"])]
    assert len(data["evidence"]) + data.get("evidence_omitted", 0) == entries
    assert "evidence_omitted" not in data or len(body) > MAX_BYTES - 300


def test_a_body_that_is_large_without_evidence_is_told_whole():
    """Twenty kilobytes are advice, a rollback is not."""
    assert _with(data={"reason": "x" * 30_000, "evidence": [1, 2]})["data"] == {
        "reason": "x" * 30_000,
        "evidence": [],
        "evidence_omitted": 2,
    }


@pytest.mark.parametrize(
    "changes", [{"event_id": "evt.1"}, {"event_id": ""}, {"at": AT.replace(tzinfo=None)}, {"type": ""}, {"source": ""}]
)
def test_a_notification_that_cannot_be_sent_is_never_made(changes):
    """CloudEvents and Standard Webhooks both ask for these."""
    with pytest.raises(ValueError, match=r"event id|aware|needs"):
        dataclasses.replace(EXAMPLE, **changes)


def test_an_empty_subject_is_left_out():
    """CloudEvents: if present, it is not empty."""
    assert "subject" not in _with(subject="")
