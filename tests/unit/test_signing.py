"""Signatures against the public library, its published vector, and an attacker who changes something."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from evalpipe.errors import ConfigError, SignatureError
from evalpipe.signing import check_event_id, check_secrets, new_secret, sign, verify_signature

OLD, NEW = (
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsec_" + base64.b64encode(b"another secret of thirty-two bytes"[:32]).decode(),
)
BODY = b'{"test": 2432232314}'
AT = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)
BODIES = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20), max_size=4).map(
    lambda event: json.dumps(event).encode()
)


def test_the_published_vector_comes_out():
    """The expected signature of the Standard Webhooks libraries' own test."""
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = sign(BODY, secrets=OLD, event_id="msg_p5jXN8AQM9LWM0D4loKWxJek", at=at)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert verify_signature(BODY, headers, OLD, now=at) == {"test": 2432232314}


@given(body=BODIES, secret=st.binary(min_size=24, max_size=64))
def test_the_public_library_verifies_what_we_sign(body, secret):
    """Any body, any secret of a legal length."""
    text = "whsec_" + base64.b64encode(secret).decode()
    headers = sign(body, secrets=text, event_id="evt_1", at=datetime.now(UTC))
    assert Webhook(text).verify(body, headers) == json.loads(body)


@given(body=BODIES, secret=st.binary(min_size=24, max_size=64))
def test_we_verify_what_the_public_library_signs(body, secret):
    """The other way round, with the library's own use of text for the body."""
    text = "whsec_" + base64.b64encode(secret).decode()
    signature = Webhook(text).sign("evt_1", AT, body.decode())
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(int(AT.timestamp())), "webhook-signature": signature}
    assert verify_signature(body.decode(), headers, text, now=AT) == json.loads(body)


@pytest.mark.parametrize("hours", [-8, 2, 5.5])
def test_a_time_in_any_zone_is_the_same_instant(hours):
    """The public library signs 03:30+02:00 as if it were 03:30 UTC; we do not."""
    local = AT.astimezone(timezone(timedelta(hours=hours)))
    assert sign(BODY, secrets=OLD, event_id="e", at=local) == sign(BODY, secrets=OLD, event_id="e", at=AT)


def test_a_naive_time_is_refused():
    """Nobody knows which instant it is."""
    with pytest.raises(ValueError, match="aware"):
        sign(BODY, secrets=OLD, event_id="e", at=AT.replace(tzinfo=None))


def test_a_secret_changes_without_a_lost_delivery():
    """While both sign, a receiver with either secret, or with both, is content; so is the public library."""
    headers = sign(BODY, secrets=[OLD, NEW], event_id="e", at=datetime.now(UTC))
    for held in (OLD, NEW, [NEW, OLD]):
        assert verify_signature(BODY, headers, held)
    for held in (OLD, NEW):
        assert Webhook(held).verify(BODY, headers)
    with pytest.raises(SignatureError, match="no signature matches"):
        verify_signature(BODY, headers, new_secret())


@given(data=st.data(), body=BODIES)
def test_no_change_of_a_single_bit_goes_through(data, body):
    """In the body or in any of the three headers."""
    headers = sign(body, secrets=OLD, event_id="evt_1", at=AT)
    part = data.draw(st.sampled_from(["body", *headers]))
    raw = bytearray(body if part == "body" else headers[part].encode())
    position = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[position // 8] ^= 1 << position % 8
    if part == "body":
        body = bytes(raw)
    else:
        headers[part] = raw.decode("latin-1")
    with pytest.raises(SignatureError):
        verify_signature(body, headers, OLD, now=AT)


@given(headers=st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()))
def test_no_header_makes_anything_but_a_signature_error(headers):
    """Whatever a stranger sends is told apart without another exception."""
    with pytest.raises(SignatureError):
        verify_signature(BODY, headers, OLD)


@pytest.mark.parametrize(
    ("header", "value", "reason"),
    [
        ("webhook-id", None, "webhook-id is missing"),
        ("webhook-timestamp", None, "webhook-timestamp is missing"),
        ("webhook-signature", "", "webhook-signature is missing"),
        ("webhook-id", "evt.1614265330", "not an event id"),
        ("webhook-timestamp", "hello", "not a time"),
        ("webhook-timestamp", "1e9", "not a time"),
        ("webhook-timestamp", "-5", "not a time"),
        ("webhook-signature", "v1", "no v1 signature"),
        ("webhook-signature", "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw==", "no v1 signature"),
        ("webhook-signature", "v1,", "no signature matches"),
        ("webhook-signature", "v1,\udcff", "no signature matches"),
    ],
)
def test_a_malformed_header_is_named(header, value, reason):
    """The message says which header, so that the consumer's author can act."""
    headers = sign(BODY, secrets=OLD, event_id="e", at=AT)
    headers[header] = value
    if value is None:
        del headers[header]
    with pytest.raises(SignatureError, match=re.escape(reason)):
        verify_signature(BODY, headers, OLD, now=AT)


def test_headers_are_found_in_any_case():
    """HTTP libraries capitalise as they like."""
    headers = {name.title(): value for name, value in sign(BODY, secrets=OLD, event_id="e", at=AT).items()}
    assert verify_signature(BODY, headers, OLD, now=AT)


def test_other_signatures_beside_ours_do_no_harm():
    """A list may hold versions that we do not know, as the specification allows."""
    headers = sign(BODY, secrets=OLD, event_id="e", at=AT)
    headers["webhook-signature"] = f"v1a,AAAA v2,BBBB {headers['webhook-signature']}  v1,CCCC"
    assert verify_signature(BODY, headers, OLD, now=AT)


@pytest.mark.parametrize(("late", "word"), [(301, "301 s old"), (-301, "301 s ahead")])
def test_a_delivery_outside_the_tolerance_is_a_replay(late, word):
    """Five minutes either way by default, and the boundary itself is still good."""
    headers = sign(BODY, secrets=OLD, event_id="e", at=AT)
    with pytest.raises(SignatureError, match=word):
        verify_signature(BODY, headers, OLD, now=AT + timedelta(seconds=late))
    assert verify_signature(BODY, headers, OLD, now=AT + timedelta(seconds=300 if late > 0 else -300))
    assert verify_signature(BODY, headers, OLD, now=AT + timedelta(seconds=late), tolerance=timedelta(seconds=400))


@pytest.mark.parametrize("body", [b"[1]", b"not JSON", b"\xff\xfe\x00"])
def test_a_signed_body_that_is_no_event_is_refused(body):
    """The caller always gets an object."""
    headers = sign(body, secrets=OLD, event_id="e", at=AT)
    with pytest.raises(SignatureError, match="the signature holds, but"):
        verify_signature(body, headers, OLD, now=AT)


def test_new_secrets_differ_and_work_in_the_public_library():
    """``whsec_`` and 32 bytes of base64."""
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("whsec_")
    assert len(check_secrets(first)[0]) == 32
    Webhook(first)


@pytest.mark.parametrize("encoded", ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBr", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBrA"])
def test_a_secret_may_lack_padding_and_prefix(encoded):
    """As the public libraries read them."""
    assert check_secrets(encoded) == check_secrets(f"whsec_{encoded}" + "=" * (-len(encoded) % 4))


@pytest.mark.parametrize(
    ("secrets", "reason"),
    [
        ([], "no webhook secret"),
        ("", "has 0 bytes"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "has 23 bytes"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "has 65 bytes"),
        ("whsec_not*base64", "not base64"),
        ([OLD, "whsec_ä"], "webhook secret 2 is not base64"),
    ],
)
def test_a_bad_secret_is_a_configuration_error_that_does_not_show_it(secrets, reason):
    """Messages end in logs."""
    with pytest.raises(ConfigError, match=reason) as caught:
        check_secrets(secrets)
    assert "not*base64" not in str(caught.value)


@pytest.mark.parametrize("event_id", ["", "evt.1", "evt 1", "evt\r\nX-Evil: 1", "ä", "x" * 129])
def test_an_id_that_could_be_mistaken_is_refused(event_id):
    """Dots separate what is signed, line ends separate headers."""
    with pytest.raises(ValueError, match="event id"):
        check_event_id(event_id)


def test_the_public_library_refuses_what_we_refuse():
    """A changed body, so that both sides mean the same by a signature."""
    headers = sign(BODY, secrets=OLD, event_id="e", at=datetime.now(UTC))
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(BODY + b" ", headers)
