"""Streams: the library's own object goes on to the application, and what passes through its iterator is read.

Nothing here raises into the application, and nothing is the current call afterwards: a stream may be consumed in
another thread, task or context than it was opened in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from evalpipe.hook.meter import SCREENED_CHARS

if TYPE_CHECKING:
    from evalpipe.hook.call import Call

ABANDONED: Final = "abandoned"
"""Attribute ``stream`` of a call whose stream was closed, dropped, or its reading cancelled, before its end."""


class Reader(Protocol):
    """Puts together what a stream says, chunk by chunk."""

    def read(self, chunk: Any) -> None:
        """Take from ``chunk`` what the call needs."""

    def finish(self) -> None:
        """Fill in the call: the stream is over, by itself or not."""


class Route(NamedTuple):
    """How calls of one endpoint are read: the request's body, the answer, and the answer as a stream."""

    request: Callable[[Call, Any], None]
    response: Callable[[Call, Any], None]
    stream: Callable[[Call, Pieces], Reader]


class Pieces:
    """Texts of a stream, as many as are of use: a record's worth, or what the screen for refusals looks at."""

    __slots__ = ("_left",)

    def __init__(self, call: Call, limit: int) -> None:
        # One character more than a record may take makes it oversized, as it would be without streaming.
        self._left = limit + 1 if call.capturing else SCREENED_CHARS

    def add(self, to: list[str], piece: str) -> None:
        """Append ``piece``, unless there is enough."""
        if self._left > 0:
            to.append(piece)
            self._left -= len(piece)


def guarded(call: Call, read: Callable[[Call, Any], None], what: Any) -> bool:
    """Whether it could be read. Lets nothing out: a provider's new shape must not break the application's call."""
    try:
        read(call, what)
    except Exception:  # noqa: BLE001 - see above
        call.attributes["unread"] = type(what).__name__
        return False
    return True


def answered(call: Call, route: Route, answer: Any) -> None:
    """End a call with an answer that is there as a whole."""
    if not guarded(call, route.response, answer) and not call.output:
        uncaptured(call)
    call.end()


def uncaptured(call: Call) -> None:
    """Count the call, and make no record of it: without its answer it would be judged for being empty."""
    call.sampled = call.capturing = False


def lost(call: Call) -> None:
    """End a call whose answer could not be read at all."""
    uncaptured(call)
    call.end()


class Watch:
    """One streamed call: what passed, and its end, whichever way it comes.

    Attributes:
        busy: the stream is being read: a response that closes now does so by itself.
    """

    __slots__ = ("_call", "_ended", "_reader", "busy")

    def __init__(self, call: Call, reader: Reader) -> None:
        self._call = call
        self._reader = reader
        self._ended = False
        self.busy = False

    def saw(self, chunk: Any) -> None:
        """A chunk is on its way to the application."""
        try:
            self._reader.read(chunk)
        except Exception:  # noqa: BLE001 - a provider's new shape must not break the stream
            self._call.attributes["unread"] = type(chunk).__name__

    def ended(self, error: BaseException | None = None, *, abandoned: bool = False) -> None:
        """The stream is over; only the first time counts."""
        if self._ended:
            return
        self._ended = True
        call = self._call
        try:
            if not guarded(call, lambda _, reader: reader.finish(), self._reader):
                uncaptured(call)
            if error is not None and not isinstance(error, Exception):
                error, abandoned = None, True  # cancelled: the user went away, nothing failed
            if abandoned and not call.finish_reason:
                call.attributes["stream"] = ABANDONED
            call.end(error)
        except Exception:  # noqa: BLE001 - the interpreter ends, and modules are gone
            return

    def done(self) -> None:
        """Somebody else ends the call."""
        self._ended = True

    def closed(self) -> None:
        """The response was closed."""
        if not self.busy:
            self.ended(abandoned=True)


class Items:
    """What a stream iterates over, with every item seen."""

    __slots__ = ("_items", "_watch")

    def __init__(self, items: Iterator[Any], watch: Watch) -> None:
        self._items = items
        self._watch = watch

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        watch = self._watch
        watch.busy = True
        try:
            item = next(self._items)
        except StopIteration:
            watch.ended()
            raise
        except BaseException as error:
            watch.ended(error)
            raise
        finally:
            watch.busy = False
        watch.saw(item)
        return item

    def __del__(self) -> None:
        self._watch.ended(abandoned=True)


class AsyncItems:
    """As ``Items``, for asynchronous streams."""

    __slots__ = ("_items", "_watch")

    def __init__(self, items: AsyncIterator[Any], watch: Watch) -> None:
        self._items = items
        self._watch = watch

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        watch = self._watch
        watch.busy = True
        try:
            item = await anext(self._items)
        except StopAsyncIteration:
            watch.ended()
            raise
        except BaseException as error:
            watch.ended(error)
            raise
        finally:
            watch.busy = False
        watch.saw(item)
        return item

    def __del__(self) -> None:
        self._watch.ended(abandoned=True)


def watch_stream(call: Call, route: Route, stream: Any, limit: int) -> None:
    """Read what passes through a stream of the library's; the call ends with it."""
    try:
        watch = Watch(call, route.stream(call, Pieces(call, limit)))
        items = stream._iterator  # noqa: SLF001 - all ways to read the stream lead through it
        wrapper = AsyncItems if hasattr(items, "__anext__") else Items
        stream._iterator = wrapper(items, watch)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - another version's stream passes unread
        lost(call)
        return
    with suppress(Exception):  # then its end is when it is exhausted or freed
        _on_close(stream.response, watch, asynchronous=wrapper is AsyncItems)


def watch_raw(call: Call, route: Route, response: Any, limit: int, *, asynchronous: bool) -> None:
    """Read a raw response whose body has not been read: where the application parses it, else nothing but its end."""
    watch = Watch(call, _Unread(call))

    def took(answer: Any) -> None:
        watch.done()
        try:
            if hasattr(answer, "_iterator"):
                watch_stream(call, route, answer, limit)
            else:
                answered(call, route, answer)
        except Exception:  # noqa: BLE001 - what the application parses it into may do anything
            lost(call)

    def parsing(*args: Any, **kwargs: Any) -> Any:
        watch.busy = True  # the body is read now, and closed with that
        try:
            answer = parse(*args, **kwargs)
        except BaseException as error:
            watch.ended(error)
            raise
        finally:
            watch.busy = False
        took(answer)
        return answer

    async def parsing_later(*args: Any, **kwargs: Any) -> Any:
        watch.busy = True
        try:
            answer = await parse(*args, **kwargs)
        except BaseException as error:
            watch.ended(error)
            raise
        finally:
            watch.busy = False
        took(answer)
        return answer

    try:
        parse = response.parse
        response.parse = parsing_later if asynchronous else parsing
        _on_close(response.http_response, watch, asynchronous=asynchronous)
    except Exception:  # noqa: BLE001 - another version's response passes unread
        watch.done()
        lost(call)


class _Unread:
    """The reader of a body that the application reads by itself."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def read(self, chunk: Any) -> None:
        """Nothing passes here."""

    def finish(self) -> None:
        uncaptured(self._call)


def _on_close(response: Any, watch: Watch, *, asynchronous: bool) -> None:
    """Tell ``watch`` when ``response`` is closed, which every way to close a stream comes to."""
    # Held by itself from now on: a weak reference would be dead when the garbage collector closes a dropped stream.
    name = "aclose" if asynchronous else "close"
    original = getattr(response, name)

    def close() -> None:
        try:
            original()
        finally:
            watch.closed()

    async def aclose() -> None:
        try:
            await original()
        finally:
            watch.closed()

    setattr(response, name, aclose if asynchronous else close)
