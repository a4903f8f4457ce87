"""Baselines, and what models answered to fixed prompts, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from threading import Lock
from typing import Any, Final, TypeVar

from evalpipe.detectors.view import PrintRun
from evalpipe.profile import Profiles
from evalpipe.store import baselines, prints
from evalpipe.store.baselines import Baseline, Header
from evalpipe.store.sql import Transaction

T = TypeVar("T")

SHELF: Final = 64
"""Baselines, and profiles of baselines, that are kept."""


class Shelf:
    """Baselines that were read: they never change, so they are read once for many evaluations. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, tx: Transaction, header: Header) -> Baseline:
        """The baseline with this header."""
        key = "body", header.name, header.captured_at
        return self._once(key, lambda: baselines.get(tx, header.name) or Baseline(header, (), {}))

    def profiles(self, tx: Transaction, header: Header) -> Profiles:
        """Its profiles; after an erasure the fewer."""
        key = "profiles", header.name, header.captured_at, header.n_profiles
        return self._once(key, lambda: baselines.read_profiles(tx, header.name))

    def prints(self, tx: Transaction, name: str, since: datetime) -> Sequence[PrintRun]:
        """The runs of a set of prompts that rules look at: read anew when there is another round."""
        key = "prints", name, since
        stamp = prints.stamp(tx, name)
        with self._lock:
            before = self._kept.get(key)
        if before is None or before[0] != stamp:
            before = stamp, prints.prints_since(tx, name, since, whole=False)
            with self._lock:
                self._kept[key] = before
        found: Sequence[PrintRun] = before[1]
        return found

    def _once(self, key: tuple[Any, ...], read: Callable[[], T]) -> T:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                found: T = self._kept[key]
                return found
        found = read()
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > SHELF:
                self._kept.popitem(last=False)
        return found
