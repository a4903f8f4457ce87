"""Observed generators: recorded item by item, and still generators."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from evalpipe.hook.call import activated
from evalpipe.hook.meter import SCREENED_CHARS

if TYPE_CHECKING:
    from evalpipe.hook.call import Call

ABANDONED: Final = "abandoned"
"""Attribute ``stream`` of a call whose items were not read to the end."""

_ITEM: Final = 64


class _Seen:
    """The items of a generator, as many as a record may hold."""

    __slots__ = ("call", "done", "items", "left", "started")

    def __init__(self, call: Call, limit: int) -> None:
        self.call = call
        self.items: list[Any] = []
        # One character more than a record may take makes it oversized, as it would be without streaming.
        self.left = limit + 1 if call.capturing else SCREENED_CHARS
        self.started = self.done = False

    def saw(self, item: Any) -> None:
        self.call.first_token()
        if self.left > 0 and (self.call.capturing or type(item) is str):
            self.items.append(item)
            self.left -= len(item) if type(item) is str else _ITEM

    def ended(self, error: BaseException | None = None, *, abandoned: bool = False) -> None:
        if self.done:
            return
        self.done = True
        call = self.call
        if not self.started:
            call.sampled = call.capturing = False  # nothing of it ever ran
        if abandoned:
            call.attributes["stream"] = ABANDONED
        if self.items and type(call.output) is str and not call.output:
            texts = all(type(item) is str for item in self.items)
            call.output = "".join(self.items) if texts else self.items
        self.items = []
        if error is not None and not isinstance(error, Exception):
            error = None  # cancelled: the user went away, nothing failed
        call.end(error)


class Steps(Generator[Any, Any, Any]):
    """An observed generator: its call is the current one while it runs, and only then."""

    __slots__ = ("_inner", "_seen")

    def __init__(self, inner: Generator[Any, Any, Any], call: Call, limit: int) -> None:
        self._inner = inner
        self._seen = _Seen(call, limit)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        seen = self._seen
        seen.started = True
        try:
            with activated(seen.call):
                item = step(*args)
        except StopIteration:
            seen.ended()
            raise
        except BaseException as error:
            seen.ended(error, abandoned=not isinstance(error, Exception))
            raise
        seen.saw(item)
        return item

    def __next__(self) -> Any:
        return self._step(next, self._inner)

    def send(self, value: Any) -> Any:
        """As a generator's."""
        return self._step(self._inner.send, value)

    def throw(self, *args: Any) -> Any:
        """As a generator's."""
        return self._step(self._inner.throw, *args)

    def close(self) -> None:
        """As a generator's."""
        try:
            with activated(self._seen.call):
                self._inner.close()
        finally:
            self._seen.ended(abandoned=True)

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may end, and modules be gone
            self._seen.ended(abandoned=True)


class AsyncSteps(AsyncGenerator[Any, Any]):
    """As ``Steps``, for asynchronous generators."""

    __slots__ = ("_inner", "_seen")

    def __init__(self, inner: AsyncGenerator[Any, Any], call: Call, limit: int) -> None:
        self._inner = inner
        self._seen = _Seen(call, limit)

    async def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        seen = self._seen
        seen.started = True
        try:
            with activated(seen.call):
                item = await step(*args)
        except StopAsyncIteration:
            seen.ended()
            raise
        except BaseException as error:
            seen.ended(error, abandoned=not isinstance(error, Exception))
            raise
        seen.saw(item)
        return item

    async def __anext__(self) -> Any:
        return await self._step(self._inner.__anext__)

    async def asend(self, value: Any) -> Any:
        """As an asynchronous generator's."""
        return await self._step(self._inner.asend, value)

    async def athrow(self, *args: Any) -> Any:
        """As an asynchronous generator's."""
        return await self._step(self._inner.athrow, *args)

    async def aclose(self) -> None:
        """As an asynchronous generator's."""
        try:
            with activated(self._seen.call):
                await self._inner.aclose()
        finally:
            self._seen.ended(abandoned=True)

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may end, and modules be gone
            self._seen.ended(abandoned=True)
