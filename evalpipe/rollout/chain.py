"""The running hash of all that a rollout has folded, however it was cut into batches."""

from __future__ import annotations

import math
import struct
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

from evalpipe.rollout.inputs import Evidence
from evalpipe.score import Status

CHUNK: Final = 32
"""Pieces of evidence hashed at once: one by one would cost more than the tests do."""
_BETWEEN: Final = "\x1f"


class Chain:
    """A hash over evidence and lines of text in their order.

    Attributes:
        value: hash of all complete chunks, 32 hex digits; "" before the first.
        waiting: evidence of the chunk that is not complete.
    """

    __slots__ = ("value", "waiting")

    def __init__(self, value: str = "", waiting: list[Evidence] | None = None) -> None:
        self.value = value
        self.waiting: list[Evidence] = waiting or []

    def extend(self, evidence: list[Evidence]) -> None:
        """Append evidence; in how many portions makes no difference."""
        waiting = self.waiting + evidence
        whole = len(waiting) // CHUNK * CHUNK
        for begin in range(0, whole, CHUNK):
            self.value = _hash(self.value, _packed(waiting[begin : begin + CHUNK]))
        self.waiting = waiting[whole:]

    def add_line(self, line: str) -> None:
        """Append something that is not evidence."""
        self.value = _hash(self.digest(), line.encode())
        self.waiting = []

    def digest(self) -> str:
        """The hash of all that was appended; asking changes nothing."""
        return _hash(self.value, _packed(self.waiting)) if self.waiting else self.value

    def to_state(self) -> list[Any]:
        """JSON-safe: the hash, then what waits."""
        return [self.value, [[e.seq, e.at.isoformat(), *e[2:]] for e in self.waiting]]

    @classmethod
    def from_state(cls, state: list[Any]) -> Chain:
        """The inverse of ``to_state``."""
        value, rows = state
        return cls(value, [_evidence(row) for row in rows])


def _evidence(row: list[Any]) -> Evidence:
    evidence = Evidence(*row)
    return evidence._replace(at=datetime.fromisoformat(row[1]), status=Status(evidence.status))


def _hash(before: str, text: bytes) -> str:
    return blake2b(before.encode() + b"\n" + text, digest_size=16).hexdigest()


def _packed(chunk: list[Evidence]) -> bytes:
    """A chunk column by column; numbers as 64-bit words, so that 1 and 1.0 are one value."""
    seqs, ats, arms, units, criteria, values, weights, statuses, epochs, pairs, segments, suspects = zip(
        *chunk, strict=True
    )
    words = _BETWEEN.join((*arms, *units, *criteria, *statuses, *epochs, *pairs, *segments))
    n = len(chunk)
    known = [math.nan if value is None else value for value in values]
    return words.encode() + struct.pack(
        f"<{2 * n}q{3 * n}d", *seqs, *suspects, *[at.timestamp() for at in ats], *known, *weights
    )
