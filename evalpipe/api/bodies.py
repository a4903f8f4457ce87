"""Bodies of requests as they come: bounded while they arrive, and bounded again while they are unpacked."""

from __future__ import annotations

import zlib
from typing import Final

from fastapi import Request

MAX_BYTES: Final = 16 << 20
"""Of a body, packed or unpacked."""
MAX_JSON_BYTES: Final = 1_000_000
"""Of a request by people or deployers, whose keys many can read."""
MAX_MEMBERS: Final = 64
"""Of a gzip that comes in several."""
_WINDOWS: Final = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class BodyError(Exception):
    """A body that cannot be taken.

    Attributes:
        status: of the answer.
        what, advice: in words.
    """

    def __init__(self, status: int, what: str, advice: str) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.advice = advice


async def received(request: Request) -> bytes:
    """The body as it was sent.

    Raises:
        BodyError: it is larger than ``MAX_BYTES``.
    """
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > MAX_BYTES:
            raise _too_large()
    return bytes(found)


def unpacked(body: bytes, encoding: str) -> bytes:
    """The body without its content-encoding.

    Raises:
        BodyError: it does not unpack, unpacks to more than ``MAX_BYTES``, or is packed in another way.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in _WINDOWS:
        raise BodyError(415, f"content-encoding {encoding[:40]!r} is not read here", "send gzip, deflate or nothing")
    window = _WINDOWS[name]
    if name == "deflate" and not _has_header(body):
        window = -zlib.MAX_WBITS  # what some clients send as deflate
    try:
        return _inflated(body, window)
    except zlib.error as error:
        raise BodyError(400, f"the body does not unpack as {name}: {error}", "send what the header says") from error


def _inflated(body: bytes, window: int) -> bytes:
    found = bytearray()
    for _ in range(MAX_MEMBERS):
        unpacker = zlib.decompressobj(window)
        found += unpacker.decompress(body, MAX_BYTES + 1 - len(found))
        if len(found) > MAX_BYTES:
            raise _too_large()
        if not unpacker.eof:
            raise zlib.error("it ends too early")
        body = unpacker.unused_data
        if not body:
            return bytes(found)
    raise zlib.error(f"it has more than {MAX_MEMBERS} members")


def _has_header(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0


def _too_large() -> BodyError:
    return BodyError(413, f"the body has more than {MAX_BYTES} bytes", "send smaller batches")
