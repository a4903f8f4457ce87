"""Which units a test has already heard: one score for each user or conversation may enter."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from hashlib import blake2b
from typing import Any, Final

_BYTES: Final = 8192
_CAPACITY: Final = 5_000
_GENERATIONS: Final = 8


class SeenUnits:
    """A set of units in bounded memory: up to eight Bloom filters of 65,536 bits and 5,000 units (Bloom 1970).

    Four bits for a unit: the 16-bit parts of its 64-bit BLAKE2b hash. It errs in the harmless direction: some new units
    (below one in a hundred up to 20,000 units, up to four in the long run) are taken for known and their scores are not
    used, whatever their value. A known unit is never taken for new while it is remembered: for at least 35,000 further
    units.
    """

    __slots__ = ("_counts", "_filters")

    def __init__(self) -> None:
        self._filters = [bytearray(_BYTES)]
        self._counts = [0]

    def add(self, unit: str) -> bool:
        """Remember a unit; True if it is new."""
        key = int.from_bytes(blake2b(unit.encode(), digest_size=8).digest(), "little")
        bits = (key & 0xFFFF, key >> 16 & 0xFFFF, key >> 32 & 0xFFFF, key >> 48)
        for known in self._filters:
            for bit in bits:
                if not known[bit >> 3] & 1 << (bit & 7):
                    break
            else:
                return False
        if self._counts[-1] >= _CAPACITY:
            self._filters = [*self._filters[1 - _GENERATIONS :], bytearray(_BYTES)]
            self._counts = [*self._counts[1 - _GENERATIONS :], 0]
        newest = self._filters[-1]
        for bit in bits:
            newest[bit >> 3] |= 1 << (bit & 7)
        self._counts[-1] += 1
        return True

    def to_state(self) -> list[Any]:
        """Pairs of count and filter (deflated, base64)."""
        return [
            [count, b64encode(zlib.compress(bytes(known), 1)).decode()]
            for count, known in zip(self._counts, self._filters, strict=True)
        ]

    @classmethod
    def from_state(cls, state: list[Any]) -> SeenUnits:
        """The inverse of ``to_state``."""
        seen = cls()
        seen._counts = [count for count, _ in state]
        seen._filters = [bytearray(zlib.decompress(b64decode(text))) for _, text in state]
        return seen
