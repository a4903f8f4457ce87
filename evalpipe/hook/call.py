"""One model interaction while it happens: what the application fills in, and the context that nested calls inherit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from evalpipe.hook.freezing import TooLarge, freeze
from evalpipe.release import Release

if TYPE_CHECKING:
    from evalpipe.hook.tap import Tap

UNFROZEN: Final = -1
"""Stands for the size of a field of a call that is not sampled: it is copied when, and if, the call is kept."""

_NOTHING: Final[dict[str, tuple[Any, int]]] = {}

CURRENT: ContextVar[Call | None] = ContextVar("evalpipe_call", default=None)


def current() -> Call | None:
    """The innermost call of this thread or task, or None."""
    return CURRENT.get()


class _Frozen:
    """A field whose containers are copied when they are assigned, and only if the call may be captured."""

    __slots__ = ("name",)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, call: Call | None, owner: type) -> Any:
        if call is None:
            return self
        kept = call.kept.get(self.name)
        return kept[0] if kept else ()

    def __set__(self, call: Call, value: Any) -> None:
        if call.capturing:
            call.keep(self.name, value)


class Call:
    """What is known of one model interaction. Set what you know; unknown is fine, and nothing here raises.

    The names mean what they mean in ``evalpipe.record.Record``. Lists and dicts are copied when they are assigned, so
    that changing them afterwards does not change the record. Used as a context manager; an exception passes through
    and is recorded.

    Attributes:
        messages, context, tools, tool_calls, parameters: copied at assignment; empty where the call is not captured.
        output, model, finish_reason: texts; an output that is no text is recorded as JSON.
        input_tokens, output_tokens, cached_tokens, cost_usd: usage; None if unknown. They are metered on every call.
        ttft_ms: time to the first token; None if unknown.
        error: set it where a failure is no exception.
        feature, trace_id, session_id, user_id, unit, segment, release: given, or inherited from the call around it.
        sampled: whether the call is captured by its rate.
        capturing: whether it is worth setting what only a record has: it is sampled, or may be kept when it ends.
        probability, stratum, reason: of being captured; as in the record.
        flags: names that ``flag`` was given.
        nested: whether a call was made inside of this one.
        decided: whether it is captured was decided elsewhere.
        own_attributes: ``attributes``, or None while there are none.
    """

    messages = _Frozen()
    context = _Frozen()
    tools = _Frozen()
    tool_calls = _Frozen()
    parameters = _Frozen()
    # What every call reads and writes has slots, which take a few nanoseconds; the rest has its defaults in the class,
    # and goes to the instance's dict, which is only made for what is set.
    __slots__ = (
        "__dict__", "_done", "_hook", "_started", "_token", "at", "cached_tokens", "capturing",
        "cost_usd", "error", "feature", "finish_reason", "input_tokens", "kept", "latency_ms", "model",
        "output", "output_tokens", "probability", "reason", "record_id", "recorded", "release", "sampled",
        "segment", "stratum", "trace_id", "ttft_ms",
    )  # fmt: skip

    session_id: str = ""
    user_id: str = ""
    unit: str = ""
    rate_probability: float | None = None
    flags: frozenset[str] = frozenset()
    oversized: bool = False
    failed: bool = False
    parent_id: str = ""
    enforced: bool = False
    nested: bool = False
    decided: bool = False
    inert: bool = False
    reserved: Any = None
    own_attributes: dict[str, Any] | None = None

    def __init__(self, hook: Tap, release: Release, feature: str, trace_id: str) -> None:
        self._hook = hook
        self.release = release
        self.feature = feature
        self.trace_id = trace_id
        self.output: Any = ""
        self.model = ""
        self.finish_reason = ""
        self.error = ""
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.cost_usd: float | None = None
        self.latency_ms: float | None = None
        self.ttft_ms: float | None = None
        self.segment = ""
        self.sampled = False
        self.capturing = False
        self.probability = 1.0
        self.stratum = ""
        self.reason = "rate"
        self.at: float | None = None
        self.record_id = ""
        self.recorded = True
        self.kept: dict[str, tuple[Any, int]] = _NOTHING  # a captured call gets its own
        self._token: Token[Call | None] | None = None
        self._started = 0.0
        self._done = False

    @property
    def attributes(self) -> dict[str, Any]:
        """Further strings, numbers and booleans of the application, by name."""
        if self.own_attributes is None:
            self.own_attributes = {}
        return self.own_attributes

    @attributes.setter
    def attributes(self, value: Any) -> None:
        try:
            self.own_attributes = dict(value)
        except Exception:  # noqa: BLE001 - the application's own objects may do anything
            self.own_attributes = {"unread": type(value).__name__}

    def flag(self, name: str) -> None:
        """Mark the call for a cheap reason of the application's own; ``Keep(flags=True)`` keeps all that are marked."""
        with suppress(Exception):  # a name that is no text may do anything when it is asked for one
            self.flags = self.flags | {str(name)}

    def first_token(self) -> None:
        """The first token of a stream is here: the time since the call began is its TTFT."""
        if self.ttft_ms is None and self._started:
            self.ttft_ms = (perf_counter() - self._started) * 1000.0

    def start(self) -> Self:
        """Begin without becoming the call that others nest in: for streams, which end elsewhere. Then ``end``."""
        self._started = perf_counter()
        return self

    def end(self, error: BaseException | None = None) -> None:
        """End a call that was begun by ``start``; a second time nothing happens."""
        if not self._done:
            self._done = True
            if self.recorded:
                self._hook.finish(self, (perf_counter() - self._started) * 1000.0 if self._started else None, error)

    def __enter__(self) -> Self:
        self._token = CURRENT.set(self)
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._token
        if token is not None:
            self._token = None
            try:  # noqa: SIM105 - suppress() would take longer than all else here
                CURRENT.reset(token)
            except (ValueError, RuntimeError):  # left in another context than entered: nothing to restore there
                pass
        if not self._done:
            self._done = True
            if self.recorded:
                self._hook.finish(self, (perf_counter() - self._started) * 1000.0, error)

    def keep(self, name: str, value: Any) -> None:
        """Copy ``value`` as the field ``name``; what cannot be copied sheds the record."""
        try:
            if self.sampled:
                self.kept[name] = freeze(value, self._hook.max_record_bytes)
            else:
                # It will hardly ever be kept: what is commonly changed is copied now, the list and the dicts in it.
                if type(value) is list:
                    value = [item.copy() if type(item) is dict else item for item in value]
                elif type(value) is dict:
                    value = value.copy()
                self.kept[name] = value, UNFROZEN
        except TooLarge:
            self.oversized = True
        except Exception:  # noqa: BLE001 - the application's own containers may do anything
            self.failed = True

    def add(self, name: str, item: Mapping[str, Any]) -> None:
        """Append ``item`` to a list field such as ``tool_calls`` or ``context``."""
        if self.capturing:
            had = self.kept.get(name, ((), 0))[0]
            self.keep(name, [*(had if type(had) is list else ()), item])


class _Inert(Call):
    """A call that keeps nothing: the hook is off, or could not make a real one."""

    inert = True

    def __init__(self, blank: Call) -> None:
        """With the values of ``blank``, for ever."""
        for name in Call.__slots__[1:]:
            object.__setattr__(self, name, getattr(blank, name))
        object.__setattr__(self, "recorded", False)

    def __setattr__(self, name: str, value: Any) -> None:
        return

    @property
    def attributes(self) -> dict[str, Any]:
        return {}

    @attributes.setter
    def attributes(self, value: Any) -> None:
        return

    def flag(self, name: str) -> None:
        return

    def first_token(self) -> None:
        return

    def end(self, error: BaseException | None = None) -> None:
        return

    def add(self, name: str, item: Mapping[str, Any]) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


_NO_HOOK: Any = None
INERT: Final[Call] = _Inert(Call(_NO_HOOK, Release(), "", ""))


@contextmanager
def activated(call: Call) -> Iterator[None]:
    """Calls made inside belong to ``call``, in this thread or task."""
    token = CURRENT.set(call)
    try:
        yield
    finally:
        with suppress(ValueError, RuntimeError):  # left in another context than entered: nothing to restore there
            CURRENT.reset(token)


def suppressed() -> AbstractContextManager[None]:
    """Calls made inside are neither captured nor metered, in this thread or task.

    Judges call models too: without this guard a judge that runs beside a wrapped client would be judged itself.
    """
    return activated(INERT)
