"""Sums over any window of time, from buckets of several widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Generic, Protocol, Self, TypeVar

from evalpipe.sketch import Sketch


class Mergeable(Protocol):
    """What adds up."""

    def merge(self, other: Self) -> None:
        """Add ``other`` into this one."""
        ...


T = TypeVar("T", bound=Mergeable)


class Sums(dict[str, float]):
    """Amounts by name."""

    def merge(self, other: Sums) -> None:
        """Add them up."""
        for name, amount in other.items():
            self[name] = self.get(name, 0.0) + amount


class Sketches(dict[str, Sketch]):
    """Sketches by name."""

    def merge(self, other: Sketches) -> None:
        """Merge them."""
        for name, sketch in other.items():
            self.setdefault(name, Sketch()).merge(sketch)


class Pyramid(Generic[T]):
    """Buckets of each width, of which a window takes the widest that lie in it.

    Args:
        widths: in seconds, the narrowest first; each divides the next.
        new: makes an empty sum.
        kept: how long the buckets of each width are kept, in seconds; None is for ever.
    """

    __slots__ = ("_kept", "_levels", "_new", "_newest", "_widths")

    def __init__(self, widths: Sequence[int], new: Callable[[], T], kept: Sequence[int | None] | None = None) -> None:
        self._widths = tuple(widths)
        self._new = new
        self._kept = tuple(kept) if kept is not None else (None,) * len(self._widths)
        self._levels: list[dict[int, T]] = [{} for _ in self._widths]
        self._newest = 0  # second; of the newest bucket

    def add(self, at: datetime, item: T) -> None:
        """Count ``item`` into the buckets of its moment."""
        second = int(at.timestamp())
        self._newest = max(self._newest, second)
        for width, level, kept in zip(self._widths, self._levels, self._kept, strict=True):
            bucket = second // width
            if bucket in level:
                level[bucket].merge(item)
                continue
            level[bucket] = self._new()
            level[bucket].merge(item)
            oldest = next(iter(level))
            while kept is not None and (bucket - oldest) * width > kept:
                del level[oldest]
                oldest = next(iter(level))

    def total(self, since: datetime, until: datetime) -> T:
        """The sum from the bucket that ``since`` lies in to the one that ``until`` lies in, or ends with."""
        found = self._new()
        for item in self._within(since, until):
            found.merge(item)
        return found

    def last(self, since: datetime, until: datetime, of: Callable[[T], bool]) -> int | None:
        """The newest narrow bucket in the window that is ``of`` the wanted kind."""
        first, end, width = int(since.timestamp()), until.timestamp(), self._widths[0]
        level = self._levels[0]
        found = (b for b in reversed(level) if first // width <= b and b * width < end and of(level[b]))
        return max(found, default=None)

    def take(self, other: Pyramid[T]) -> None:
        """Add the buckets of another one of the same widths."""
        self._newest = max(self._newest, other._newest)
        for mine, theirs in zip(self._levels, other._levels, strict=True):
            for bucket in sorted(theirs):
                if bucket not in mine:
                    mine[bucket] = self._new()
                mine[bucket].merge(theirs[bucket])

    def _within(self, since: datetime, until: datetime) -> Iterator[T]:
        end = until.timestamp()
        start = self._finest(since)
        at = int(since.timestamp()) // self._widths[start] * self._widths[start]
        while at < end:
            for width, level in zip(reversed(self._widths[start:]), reversed(self._levels[start:]), strict=True):
                if at % width == 0 and (at + width <= end or width == self._widths[start]):
                    if (item := level.get(at // width)) is not None:
                        yield item
                    at += width
                    break

    def _finest(self, since: datetime) -> int:
        """The narrowest level that is still kept as far back as that."""
        for place, (width, kept) in enumerate(zip(self._widths, self._kept, strict=True)):
            if kept is None or self._newest // width * width - int(since.timestamp()) <= kept:
                return place
        return len(self._widths) - 1
