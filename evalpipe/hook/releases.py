"""Releases that differ from the one around them in a few fields: made once, so that a release stays one object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from evalpipe.release import Release

MAX_KNOWN: Final = 1000
"""Different releases that are remembered; an application that makes more is not slower than by making them again."""


class Releases:
    """What ``release={"variant": "canary"}`` means beside the release that is inherited."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[tuple[str, str], ...]], tuple[Release, Release]] = {}

    def of(self, given: Release | Mapping[str, str], inherited: Release) -> Release:
        """``given`` itself, or ``inherited`` with the fields of ``given``.

        Raises:
            TypeError: it is neither a release nor a mapping of a release's fields to texts.
        """
        if isinstance(given, Release):
            return given
        # The inherited release is kept with the answer, so that its id() names it as long as the answer is known.
        key = id(inherited), tuple(given.items())
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            values = {name: getattr(inherited, name) for name in Release.__slots__}
            release = Release(**{**values, **{name: str(value) for name, value in given.items()}})
            found = self._known[key] = inherited, release
        return found[1]
