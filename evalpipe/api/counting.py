"""How much an OTLP request holds, counted before it is built: an empty span is two bytes, and hundreds in memory.

Only lengths are read, by the numbers of the fields that hold messages.
"""

from __future__ import annotations

from typing import Any, Final

from evalpipe.errors import RecordError

MAX_SPANS: Final = 20_000
"""In one request; exporters send 512."""
MAX_PARTS: Final = 1_000_000
"""Messages of any kind within one request: spans, their attributes, the values in these."""
ADVICE: Final = "send smaller batches (OTEL_BSP_MAX_EXPORT_BATCH_SIZE, or the collector's send_batch_max_size)"

_VALUE: Final[dict[int, Any]] = {}
_PAIR: Final[dict[int, Any]] = {2: _VALUE}
_VALUE.update({5: {1: _VALUE}, 6: {1: _PAIR}})
_SPAN: Final[dict[int, Any]] = {9: _PAIR, 11: {3: _PAIR}, 13: {4: _PAIR}, 15: {}}
_REQUEST: Final[dict[int, Any]] = {1: {1: {1: _PAIR}, 2: {1: {3: _PAIR}, 2: _SPAN}}}
_LENGTHS: Final = {1: 8, 5: 4}
"""Lengths of numbers that have a fixed one, by wire type."""


class TooMuchError(RecordError):
    """A request holds more than one may."""


def check_spans(n: int) -> None:
    """Refuse too many spans.

    Raises:
        TooMuchError: there are more than ``MAX_SPANS``.
    """
    if n > MAX_SPANS:
        raise TooMuchError(f"the request has more than {MAX_SPANS} spans; {ADVICE}")


def check_json(body: bytes) -> None:
    """Refuse a text that would become too many objects; what a text says in braces counts too, as nobody knows yet.

    Raises:
        TooMuchError: there are more than ``MAX_PARTS``.
    """
    check_parts(body.count(b"{") + body.count(b"["))


def check_protobuf(body: bytes) -> None:
    """Refuse an ``ExportTraceServiceRequest`` with too many spans or parts; one that is damaged is for the parser.

    Raises:
        TooMuchError: it has.
    """
    waiting: list[tuple[int, int, dict[int, Any]]] = [(0, len(body), _REQUEST)]
    spans = parts = 0
    try:
        while waiting and spans <= MAX_SPANS and parts <= MAX_PARTS:
            at, end, shape = waiting.pop()
            while at < end:
                tag, at = _varint(body, at)
                if tag & 7 != 2:
                    at = _after_number(body, at, tag & 7)
                    continue
                length, at = _varint(body, at)
                if (inner := shape.get(tag >> 3)) is not None:
                    parts += 1
                    spans += inner is _SPAN
                    if spans > MAX_SPANS or parts > MAX_PARTS:
                        break
                    waiting.append((at, min(at + length, end), inner))
                at += length
    except LookupError:
        return
    check_spans(spans)
    check_parts(parts)


def check_parts(n: int) -> None:
    """Refuse too many messages of any kind.

    Raises:
        TooMuchError: there are more than ``MAX_PARTS``.
    """
    if n > MAX_PARTS:
        raise TooMuchError(f"the request has more than {MAX_PARTS} objects; {ADVICE}")


def _after_number(body: bytes, at: int, kind: int) -> int:
    """Where a number ends; LookupError for what is none."""
    return _varint(body, at)[1] if kind == 0 else at + _LENGTHS[kind]


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    found = body[at]
    at += 1
    if found < 128:
        return found, at
    found &= 127
    shift = 7
    while True:
        byte = body[at]
        at += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, at
        shift += 7
        if shift > 63:
            raise IndexError
