"""The decorator: a function whose calls are recorded, and that is in every other respect the function it was."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from evalpipe.errors import ConfigError
from evalpipe.hook.call import current

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

KINDS: Final = ("call", "tool", "retrieval")
"""What an observed function may be."""


def observed(hook: Hook, function: Any, feature: str | None, *, kind: str = "call", enforce: bool | None = None) -> Any:
    """``function``, with each call recorded under ``feature`` (by default the function's name).

    A generator is recorded from its call to its end, with the time to its first item, and its items as the output. A
    tool or a retrieval is part of the call that it happens in; outside of any it is a call of its own.

    Raises:
        ConfigError: there is no such kind, or it is no function.
    """
    if kind not in KINDS:
        raise ConfigError(f"hook.observe(kind={kind!r}): the kinds are {', '.join(KINDS)}")
    if isinstance(function, classmethod | staticmethod):
        return type(function)(observed(hook, function.__func__, feature, kind=kind, enforce=enforce))
    if not callable(function):
        raise ConfigError(f"@hook.observe goes on a function, not on {function!r}: give its options by keyword")
    target = _Target(hook, function, feature, kind, enforce)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        if kind != "call":
            raise ConfigError(f"hook.observe(kind={kind!r}): {target.name} is a generator; have it return a list")
        return _streaming(target, function)
    return _asynchronous(target, function) if inspect.iscoroutinefunction(function) else _synchronous(target, function)


class _Target:
    """What is known of an observed function."""

    __slots__ = ("enforce", "feature", "hook", "kind", "name", "names")

    def __init__(self, hook: Hook, function: Any, feature: str | None, kind: str, enforce: bool | None) -> None:
        self.hook = hook
        self.name = getattr(function, "__name__", type(function).__name__)
        self.feature = feature or self.name
        self.kind = kind
        self.enforce = enforce
        self.names = _parameters(function)

    def around(self) -> Call | None:
        """The call that this one is a part of."""
        if self.kind == "call":
            return None
        outer = current()
        return outer if outer is not None and (outer.recorded or outer.inert) else None

    @contextmanager
    def part(self, outer: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[list[Any]]:
        """Add a tool's call or a retrieval to ``outer``; its result is to be put into the list."""
        result: list[Any] = []
        try:
            yield result
        except BaseException as error:
            if outer.capturing and self.kind == "tool":
                self._add_tool_call(outer, args, kwargs, failure(error))
            raise
        if outer.capturing:
            self._add(outer, args, kwargs, result[0] if result else None)

    def _add(self, outer: Call, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if self.kind == "tool":
            self._add_tool_call(outer, args, kwargs, {"result": result})
            return
        with _unread(outer, result):
            outer.context = [*outer.context, *documents(result)]

    def _add_tool_call(
        self, outer: Call, args: Sequence[Any], kwargs: Mapping[str, Any], outcome: Mapping[str, Any]
    ) -> None:
        with _unread(outer, args):
            outer.add("tool_calls", {"name": self.name, "arguments": self._given(args, kwargs), **outcome})

    def take_input(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The argument named ``messages``, else the first text; of a tool outside of any call its arguments."""
        if call.capturing:
            with _unread(call, args):
                self._take_input(call, args, kwargs)

    def _take_input(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        given = self._given(args, kwargs)
        if self.kind == "tool":
            call.tool_calls = [{"name": self.name, "arguments": given}]
        messages = given.get("messages")
        if messages is None:
            text = next((value for value in given.values() if type(value) is str), None)
            messages = [] if text is None else [{"role": "user", "content": text}]
        call.messages = messages

    def take_output(self, call: Call, result: Any) -> None:
        """What the function returns, unless it said something better through ``hook.current_call()``."""
        if result is None:
            return
        if self.kind == "retrieval" and call.capturing:
            self._add(call, (), {}, result)
        if type(call.output) is str and not call.output and (call.capturing or type(result) is str):
            call.output = result

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, without the object or class whose method it is."""
        names = self.names
        given = {names[at] if at < len(names) else f"*{at}": value for at, value in enumerate(args)}
        given.update(kwargs)
        if names and names[0] in {"self", "cls"}:
            given.pop(names[0], None)
        return given


def _synchronous(target: _Target, function: Any) -> Any:
    @functools.wraps(function)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        outer = target.around()
        if outer is not None:
            with target.part(outer, args, kwargs) as part:
                part.append(result := function(*args, **kwargs))
            return result
        with target.hook.call(target.feature, enforce=target.enforce) as call:
            target.take_input(call, args, kwargs)
            result = function(*args, **kwargs)
            target.take_output(call, result)
            return result

    return synchronous


def _asynchronous(target: _Target, function: Any) -> Any:
    @functools.wraps(function)
    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        outer = target.around()
        if outer is not None:
            with target.part(outer, args, kwargs) as part:
                part.append(result := await function(*args, **kwargs))
            return result
        with target.hook.call(target.feature, enforce=target.enforce) as call:
            target.take_input(call, args, kwargs)
            result = await function(*args, **kwargs)
            target.take_output(call, result)
            return result

    return asynchronous


def _streaming(target: _Target, function: Any) -> Any:
    from evalpipe.hook.generators import AsyncSteps, Steps  # of no use to most applications

    steps: Any = AsyncSteps if inspect.isasyncgenfunction(function) else Steps

    @functools.wraps(function)
    def streaming(*args: Any, **kwargs: Any) -> Any:
        # Begun where the function is called, not where it is first read: that is where it can still be refused, and
        # whose session it is; a web framework reads it later and elsewhere.
        call = target.hook.call(target.feature, enforce=target.enforce)
        items = function(*args, **kwargs)
        if call.inert:
            return items
        target.take_input(call.start(), args, kwargs)
        return steps(items, call, target.hook.max_record_bytes)

    return streaming


@contextmanager
def _unread(call: Call, what: Any) -> Iterator[None]:
    """What the application's objects raise while they are read stays inside."""
    try:
        yield
    except Exception:  # noqa: BLE001 - they may do anything
        with suppress(Exception):
            call.attributes["unread"] = type(what).__name__


def failure(error: Any) -> dict[str, Any]:
    """What is recorded of an exception: ``error``, or ``cancelled``, which is none: nobody waits any more."""
    if isinstance(error, BaseException) and not isinstance(error, Exception):
        return {"cancelled": True}
    name = type(error).__name__
    try:
        return {"error": f"{name}: {error}"}
    except Exception:  # noqa: BLE001 - the application's own exception, or its parts, may not be printable
        return {"error": name}


def documents(found: Any) -> list[Any]:
    """What a retrieval returned, as the record's context has it: ``id``, ``text``, ``score``.

    A list of texts, dicts, documents as LangChain has them, other objects, or pairs of one of these and its score.
    """
    if found is None:
        return []
    if isinstance(found, str | Mapping) or not isinstance(found, list | tuple | set | frozenset):
        found = [found]
    return [_document(one) for one in found]


def _document(one: Any) -> Any:
    if isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], int | float):
        document = _document(one[0])
        return {**document, "score": one[1]} if isinstance(document, Mapping) else document
    if isinstance(one, str):
        return {"text": one}
    text = getattr(one, "page_content", None)
    if not isinstance(text, str):
        return one
    metadata = getattr(one, "metadata", None)
    metadata = metadata if isinstance(metadata, Mapping) else {}
    document = {"id": getattr(one, "id", None) or metadata.get("id") or metadata.get("source"), "text": text}
    score = metadata.get("score", metadata.get("relevance_score"))
    return {name: value for name, value in {**document, "score": score}.items() if value is not None}


def _parameters(function: Any) -> Sequence[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except Exception:  # noqa: BLE001 - a callable object, or what decorated it, may do anything
        return ()
    return tuple(one.name for one in parameters if one.kind in {one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD})
