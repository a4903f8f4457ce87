"""Reversible pseudonyms: ``[email:Zk3…]`` for an address, the same for the same value, revealed by who has the key.

The standard library has no cipher, so one is made of HMAC-SHA-256 in the way of RFC 5297 (SIV): the first 16 bytes of
an HMAC of kind and value are both the authentication tag and the start of the key stream, which is an HMAC too, under
another key. A token therefore cannot be made or changed without the key, and says nothing about its value but this:
equal values of a kind have equal tokens, and a value's length can be told. Who has the key reads all of them, and who
has a guess and the key can test it: of values as few as phone numbers, only the key's secrecy hides which it is. A key
that leaked cannot be taken back from what was stored under it.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Final

from evalpipe.errors import ConfigError

_TAG: Final = 16
_LEAST_KEY: Final = 32
PSEUDONYM: Final = r"\[([a-z][a-z0-9_-]{0,30}):([A-Za-z0-9_-]{22,})\]"
"""How a pseudonym looks: kind and token."""


def new_key() -> str:
    """A key for ``Redaction(pseudonyms=...)``: 32 random bytes in base64. Keep it where you keep other secrets."""
    from secrets import token_bytes

    return urlsafe_b64encode(token_bytes(_LEAST_KEY)).decode()


def pseudonymizer(key: str) -> Callable[[str, str], str]:
    """The function from kind and value to the pseudonym under ``key``.

    Raises:
        ConfigError: the key is not at least 32 bytes in base64.
    """
    of_tag, of_stream = _keys(key)

    def pseudonym(kind: str, value: str) -> str:
        plain = value.encode("utf-8", "surrogatepass")
        tag = _tag(of_tag, kind, plain)
        return f"[{kind}:{_encoded(tag + _mixed(of_stream, tag, plain))}]"

    return pseudonym


def reveal(token: str, key: str) -> str:
    """The value behind one pseudonym, as it stood in the text.

    Args:
        token: ``[email:Zk3…]``, with or without the brackets.
        key: the one it was made with.

    Raises:
        ConfigError: the key is no key, the token is none, or it was not made with this key.
    """
    of_tag, of_stream = _keys(key)
    kind, _, text = token.strip().removeprefix("[").removesuffix("]").partition(":")
    try:
        data = _decoded(text)
    except ValueError:
        data = b""
    tag = data[:_TAG]
    plain = _mixed(of_stream, tag, data[_TAG:])
    if len(data) <= _TAG or _encoded(data) != text or not hmac.compare_digest(tag, _tag(of_tag, kind, plain)):
        raise ConfigError(f"{token!r} is no pseudonym that was made with this key (or it was cut or changed)")
    return plain.decode("utf-8", "surrogatepass")


def reveal_all(text: str, key: str) -> str:
    """``text`` with each pseudonym that was made with ``key`` replaced by its value; others stay."""
    import re

    def value(match: re.Match[str]) -> str:
        try:
            return reveal(match[0], key)
        except ConfigError:
            return match[0]

    _keys(key)
    return re.sub(PSEUDONYM, value, text)


def _keys(key: str) -> tuple[bytes, bytes]:
    """One key for tags and one for key streams, so that neither tells of the other."""
    try:
        secret = _decoded(key.replace("+", "-").replace("/", "_").rstrip("="))
    except (AttributeError, TypeError, ValueError):
        secret = b""
    if len(secret) < _LEAST_KEY:
        raise ConfigError(
            f"the key of pseudonyms must be at least {_LEAST_KEY} random bytes in base64 (this one has {len(secret)}): "
            "make one with 'evalpipe pseudonyms key'"
        )
    return _hmac(secret, b"evalpipe pseudonym tag"), _hmac(secret, b"evalpipe pseudonym stream")


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)


def _tag(key: bytes, kind: str, plain: bytes) -> bytes:
    return _hmac(key, kind.encode() + b"\x00" + plain)[:_TAG]


def _mixed(key: bytes, tag: bytes, data: bytes) -> bytes:
    """``data`` exclusive-or the key stream: there and back."""
    stream = b"".join(_hmac(key, tag + block.to_bytes(4, "big")) for block in range(-(-len(data) // 32)))
    return bytes(a ^ b for a, b in zip(data, stream, strict=False))


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
