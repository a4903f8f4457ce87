"""Which arm a unit is in: sticky, the same in every process, and the same that flagd computes from the same weights.

flagd's ``fractional`` operator hashes ``flag key + targeting key`` (as a CBOR text) by MurmurHash3 and cuts the hash's
range by the weights in their order. Done here in the same way, a unit gets one arm, whoever is asked. An arm that comes
first only ever grows at its end: a unit that is in the canary stays there while the canary's weight grows.
"""

from __future__ import annotations

from collections.abc import Iterable

_MASK = 0xFFFFFFFF


def assign(name: str, unit: str, weights: Iterable[tuple[str, int]]) -> str | None:
    """The arm of ``unit`` in the rollout ``name``; None if the weights add up to nothing, or flagd could not hash it.

    Args:
        name: of the rollout, which is the flag's key.
        unit: what is assigned: a user, a session, a tenant.
        weights: arms and their weights, the arm that grows first.
    """
    arms = tuple(weights)
    total = sum(weight for _, weight in arms)
    try:
        key = (name + unit).encode()
    except UnicodeEncodeError:  # half a character
        return None
    bucket = (murmur3(_cbor(key)) * total) >> 32
    end = 0
    for arm, weight in arms:
        end += weight
        if bucket < end:
            return arm
    return None


def _cbor(text: bytes) -> bytes:
    """The CBOR encoding of a text (RFC 8949, major type 3), in the shortest form."""
    size = len(text)
    if size < 24:
        return bytes((0x60 + size,)) + text
    for code, width in ((0x78, 1), (0x79, 2), (0x7A, 4)):
        if size < 1 << 8 * width:
            return bytes((code,)) + size.to_bytes(width, "big") + text
    return b"\x7b" + size.to_bytes(8, "big") + text


def murmur3(data: bytes) -> int:
    """MurmurHash3 of 32 bits (x86 variant), seed 0."""
    hashed = 0
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        hashed ^= _mixed(int.from_bytes(data[start : start + 4], "little"))
        hashed = ((hashed << 13 | hashed >> 19) & _MASK) * 5 + 0xE6546B64 & _MASK
    if whole < len(data):
        hashed ^= _mixed(int.from_bytes(data[whole:], "little"))
    hashed ^= len(data)
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B & _MASK
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 & _MASK
    return hashed ^ hashed >> 16


def _mixed(block: int) -> int:
    block = block * 0xCC9E2D51 & _MASK
    return ((block << 15 | block >> 17) & _MASK) * 0x1B873593 & _MASK
