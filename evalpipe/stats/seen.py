"""Which units a test has already heard: one score for each user or conversation may enter."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from typing import Any, Final

import numpy as np

_BITS: Final = 65_536
_CAPACITY: Final = 5_000
_GENERATIONS: Final = 8


class SeenUnits:
    """A set of units in bounded memory: eight Bloom filters of 65,536 bits and 5,000 units each, used in turn.

    Bit ``place`` of filter ``g`` is bit ``g`` of byte ``place``: one look at four bytes asks all eight (Bloom 1970).
    The four places are made of both halves of the unit's CRC-32 (double hashing, Kirsch and Mitzenmacher 2006). It errs
    in the harmless direction: some new units (below one in a hundred up to 20,000 units, up to four in the long run)
    are taken for known and their scores are not used, whatever their value; so are the few whose CRC-32 is that of a
    known unit (40,000 in 2^32). A known unit is never taken for new while it is remembered: for at least 35,000 further
    units.
    """

    __slots__ = ("_counts", "_newest", "_sealed", "_table")

    def __init__(self) -> None:
        self._table = bytearray(_BITS)
        self._counts = [0]
        self._newest = 0  # which bit of a byte is filled now
        self._sealed: list[str] = []  # older filters as text, oldest first: they change no more

    def add(self, unit: str) -> bool:
        """Remember a unit; True if it is new."""
        key = zlib.crc32(unit.encode("utf-8", "surrogatepass"))
        a, step = key & 0xFFFF, key >> 16 | 1
        b = a + step & 0xFFFF
        c = b + step & 0xFFFF
        d = c + step & 0xFFFF
        table = self._table
        if table[a] & table[b] & table[c] & table[d]:
            return False
        if self._counts[-1] >= _CAPACITY:
            self._turn()
        bit = 1 << self._newest
        table[a] |= bit
        table[b] |= bit
        table[c] |= bit
        table[d] |= bit
        self._counts[-1] += 1
        return True

    def _turn(self) -> None:
        """Begin the next filter, in the place of the oldest."""
        self._sealed = [*self._sealed, self._text(self._newest)][1 - _GENERATIONS :]
        self._counts = [*self._counts[1 - _GENERATIONS :], 0]
        self._newest = (self._newest + 1) % _GENERATIONS
        view = np.frombuffer(self._table, dtype=np.uint8)
        view &= np.uint8(0xFF ^ 1 << self._newest)

    def _text(self, generation: int) -> str:
        bits = np.packbits(np.frombuffer(self._table, dtype=np.uint8) & np.uint8(1 << generation))
        return b64encode(zlib.compress(bits.tobytes(), 1)).decode()

    def to_state(self) -> list[Any]:
        """Pairs of count and filter (deflated, base64), oldest first; only the newest is made anew each time."""
        texts = [*self._sealed, self._text(self._newest)]
        return [[count, text] for count, text in zip(self._counts, texts, strict=True)]

    @classmethod
    def from_state(cls, state: list[Any]) -> SeenUnits:
        """The inverse of ``to_state``."""
        seen = cls()
        seen._counts = [count for count, _ in state]
        seen._sealed = [text for _, text in state[:-1]]
        seen._newest = len(state) - 1
        view = np.frombuffer(seen._table, dtype=np.uint8)
        for generation, (_, text) in enumerate(state):
            bits = np.frombuffer(zlib.decompress(b64decode(text)), dtype=np.uint8)
            view |= np.unpackbits(bits) << np.uint8(generation)
        return seen
