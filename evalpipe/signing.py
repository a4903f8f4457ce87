"""Signed webhooks by Standard Webhooks 1.0.0: HMAC-SHA256 over ``id.timestamp.body``.

Standard library only, because the consumers of webhooks import it too (``evalpipe.verify_signature``).
Source: the specification at https://github.com/standard-webhooks/standard-webhooks, "Signature scheme".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from evalpipe.errors import ConfigError, SignatureError

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"
TOLERANCE: Final = timedelta(minutes=5)
"""How far a delivery's timestamp may be from the receiver's clock, either way."""

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64
# Dots separate what is signed: an id with a dot could be shifted into the timestamp.
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


def new_secret() -> str:
    """A fresh secret of 32 random bytes, ``whsec_...``: one for each receiver."""
    return _PREFIX + base64.b64encode(os.urandom(32)).decode()


def check_secrets(secrets: str | Sequence[str]) -> tuple[bytes, ...]:
    """The keys in one or several secrets.

    Raises:
        ConfigError: there is no secret, or one is not base64 of 24 to 64 bytes. The message never has the secret.
    """
    texts = [secrets] if isinstance(secrets, str) else list(secrets)
    if not texts:
        raise ConfigError("no webhook secret is set: put one of 'evalpipe webhook secret' in EVALPIPE_WEBHOOK_SECRET")
    return tuple(_key(text, number) for number, text in enumerate(texts, start=1))


def check_event_id(event_id: str) -> str:
    """``event_id``, if it can be signed.

    Raises:
        ValueError: it has other characters than letters, digits, ``_`` and ``-``, or is empty or longer than 128.
    """
    if not _ID.fullmatch(event_id):
        raise ValueError(f"an event id has 1 to 128 letters, digits, '_' and '-', unlike {event_id!r}")
    return event_id


def sign(body: bytes, *, secrets: str | Sequence[str], event_id: str, at: datetime) -> dict[str, str]:
    """The three headers of one delivery attempt.

    Args:
        body: exactly the bytes that are sent.
        secrets: one secret, or several while a receiver changes from one to the next: each signs.
        event_id: the same in every attempt; receivers recognise repetitions by it.
        at: when this attempt is made, an aware datetime in any zone.

    Raises:
        ConfigError: a secret is malformed.
        ValueError: the id cannot be signed, or ``at`` is naive.
    """
    if at.tzinfo is None:
        raise ValueError(f"the time of a signature must be aware, unlike {at!r}")
    timestamp = str(int(at.timestamp()))
    check_event_id(event_id)
    signatures = [_signature(key, event_id, timestamp, body) for key in check_secrets(secrets)]
    return {ID_HEADER: event_id, TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: " ".join(signatures)}


def verify_signature(
    body: bytes | str,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    *,
    now: datetime | None = None,
    tolerance: timedelta = TOLERANCE,
) -> dict[str, Any]:
    """The event in ``body``, if its signature holds.

    Args:
        body: the request's body as it came, before any JSON parser.
        headers: the request's headers, in any case.
        secrets: the secret, or several of which one must match.
        now: the receiver's clock; the system's by default.
        tolerance: how old, or how far ahead, a delivery's timestamp may be.

    Raises:
        SignatureError: do not trust this request; the message says why.
        ConfigError: a secret is malformed.
    """
    keys = check_secrets(secrets)
    raw = body.encode() if isinstance(body, str) else body
    event_id, timestamp, signatures = _signed_headers(headers)
    offered = [item.encode(errors="replace") for item in signatures.split() if item.startswith("v1,")]
    if not offered:
        raise SignatureError(f"{SIGNATURE_HEADER} has no v1 signature")
    expected = [_signature(key, event_id, timestamp, raw).encode() for key in keys]
    # Every pair is compared: how long it takes says nothing about which secret matched.
    if not sum(hmac.compare_digest(ours, theirs) for ours in expected for theirs in offered):
        raise SignatureError("no signature matches: another secret, or a body that was changed on its way")
    _check_age(timestamp, datetime.now(UTC) if now is None else now, tolerance)
    try:
        event = json.loads(raw)
    except ValueError as error:
        raise SignatureError(f"the signature holds, but the body is not JSON: {error}") from error
    if not isinstance(event, dict):
        raise SignatureError(f"the signature holds, but the body is a JSON {type(event).__name__}, not an object")
    return event


def _signature(key: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _key(secret: str, number: int) -> bytes:
    encoded = secret.strip().removeprefix(_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"webhook secret {number} is not base64: make one with 'evalpipe webhook secret'") from None
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ConfigError(
            f"webhook secret {number} has {len(key)} bytes, not {_MIN_BYTES} to {_MAX_BYTES}: "
            "make one with 'evalpipe webhook secret'"
        )
    return key


def _signed_headers(headers: Mapping[str, str]) -> tuple[str, str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    found = [lowered.get(name, "") for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER)]
    for name, value in zip((ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER), found, strict=True):
        if not value:
            raise SignatureError(f"the header {name} is missing")
    event_id, timestamp, signatures = found
    if not _ID.fullmatch(event_id):
        raise SignatureError(f"{ID_HEADER} is not an event id: {event_id!r}")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise SignatureError(f"{TIMESTAMP_HEADER} is not a time in whole seconds: {timestamp!r}")
    return event_id, timestamp, signatures


def _check_age(timestamp: str, now: datetime, tolerance: timedelta) -> None:
    age_s = now.timestamp() - int(timestamp)
    if abs(age_s) > tolerance.total_seconds():
        when = f"{age_s:.0f} s old" if age_s > 0 else f"{-age_s:.0f} s ahead"
        raise SignatureError(
            f"the delivery is {when}, more than {tolerance.total_seconds():.0f} s: a replay, or a wrong clock"
        )
