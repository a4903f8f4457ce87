"""Copies of what the application hands over, so that what it changes later does not change the record.

This runs in the calling thread: containers are copied, texts and numbers are shared (they cannot change), and anything
else is kept as it is and read later, by the thread that ships. Sizes are counted on the way, so that a record that is
too large stops here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

DEEPEST: Final = 24
"""Containers inside containers, at the most; deeper ones become ``[too deep]``."""

_NODE: Final = 64
_UNKNOWN: Final = 1024
_ATOMS: Final = frozenset({int, float, bool, type(None), complex})


class TooLarge(Exception):  # noqa: N818 - the name says what is the matter
    """The value takes more bytes than a record may."""


def freeze(value: Any, limit: int, depth: int = 0) -> tuple[Any, int]:
    """A copy of ``value`` that the application cannot change, and about how many bytes it takes.

    Args:
        value: anything.
        limit: bytes it may take.
        depth: containers around it.

    Raises:
        TooLarge: it takes more than ``limit``.
    """
    kind = type(value)
    if kind is str:
        size = value.__sizeof__()
        if size > limit:
            raise TooLarge
        return value, size
    if kind in _ATOMS:
        return value, _NODE
    if kind is dict:
        return _freeze_dict(value, limit, depth)
    if kind is list or kind is tuple:
        return _freeze_list(value, limit, depth)
    return _freeze_other(value, limit, depth)


def _freeze_dict(value: Mapping[Any, Any], limit: int, depth: int) -> tuple[Any, int]:
    if depth >= DEEPEST:
        return "[too deep]", _NODE
    size = _NODE * (1 + len(value))
    if size > limit:
        raise TooLarge
    copy = dict(value)  # at once: another thread may be changing it
    for key, item in copy.items():
        if type(item) is str:
            size += item.__sizeof__()
        elif item is not None:
            copy[key], took = freeze(item, limit - size, depth + 1)
            size += took
    if size > limit:
        raise TooLarge
    return copy, size


def _freeze_list(value: Any, limit: int, depth: int) -> tuple[Any, int]:
    if depth >= DEEPEST:
        return "[too deep]", _NODE
    copy = []
    size = _NODE
    for item in value:
        size += 8
        if type(item) is dict:
            # Most lists are of messages, so dicts take the short way.
            frozen, took = _freeze_dict(item, limit - size, depth + 1)
        else:
            frozen, took = freeze(item, limit - size, depth + 1)
        size += took
        copy.append(frozen)
        if size > limit:
            raise TooLarge
    return copy, size


def _freeze_other(value: Any, limit: int, depth: int) -> tuple[Any, int]:
    if isinstance(value, str):
        return freeze(str.__str__(value), limit, depth)
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) > limit:
            raise TooLarge
        return bytes(value), len(value) + _NODE
    if isinstance(value, Mapping):
        return _freeze_dict(value, limit, depth)
    if isinstance(value, list | tuple | set | frozenset):
        return _freeze_list(value, limit, depth)
    return value, _UNKNOWN
