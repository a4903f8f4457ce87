"""One registry for each family of plug-ins: a new one is one new file.

A family lives in one package; importing any of its modules registers what the module decorates. Other distributions add
theirs by an entry point in the family's group that names such a module.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from evalpipe.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named plug-ins of one family, found in the family's package and by entry point.

    Args:
        family: the word for one of them in messages, for example ``heuristic``.
        package: the package whose modules register them, for example ``evalpipe.scorers``.
    """

    def __init__(self, family: str, package: str) -> None:
        self.family = family
        self._package = package
        self._found: dict[str, T] = {}
        self._discovered = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the decorated class or function known as ``name``."""

        def add(plugin: T) -> T:
            if name in self._found and self._found[name] is not plugin:
                raise ConfigError(f"two {self.family}s are named {name!r}: {self._found[name]!r} and {plugin!r}")
            self._found[name] = plugin
            return plugin

        return add

    def get(self, name: str) -> T:
        """The plug-in of that name.

        Raises:
            ConfigError: there is none; the message has the nearest right name.
        """
        self._discover()
        try:
            return self._found[name]
        except KeyError:
            raise ConfigError(f"no {self.family} named {name!r}; {self.nearest(name)}") from None

    def nearest(self, name: str) -> str:
        """A hint for a wrong name."""
        self._discover()
        close = difflib.get_close_matches(name, self._found, n=1, cutoff=0.5)
        return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(self)}"

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._found))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._found

    def _discover(self) -> None:
        with self._lock:  # another thread waits for all of them; the one that discovers may ask meanwhile
            if self._discovered:
                return
            self._discovered = True
            try:
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self._package}.{module.name}")
                for entry_point in entry_points(group=self._package):
                    entry_point.load()
            except BaseException:
                self._discovered = False  # half of a family would look like a whole one
                raise
