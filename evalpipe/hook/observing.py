"""The decorator: a function whose calls are recorded, and that is in every other respect the function it was."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook


def observed(hook: Hook, function: Callable[..., Any], feature: str | None) -> Callable[..., Any]:
    """``function``, with each call recorded under ``feature`` (by default the function's name).

    A generator function is counted and passes through untouched.
    """
    name = feature or getattr(function, "__name__", "")
    names = _parameters(function)

    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def streaming(*args: Any, **kwargs: Any) -> Any:
            count(hook, name)
            return function(*args, **kwargs)

        return streaming

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            with hook.call(name) as call:
                if call.sampled:
                    _take_input(call, names, args, kwargs)
                result = await function(*args, **kwargs)
                if call.sampled:
                    _take_output(call, result)
                return result

        return asynchronous

    @functools.wraps(function)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        with hook.call(name) as call:
            if call.sampled:
                _take_input(call, names, args, kwargs)
            result = function(*args, **kwargs)
            if call.sampled:
                _take_output(call, result)
            return result

    return synchronous


def count(hook: Hook, feature: str | None, *, failed: str = "") -> None:
    """Meter a call that is not captured and whose end is not seen: its latency is unknown."""
    call = hook.call(feature)
    if call.recorded:
        call.sampled = False
        call.error = failed
        hook.finish(call, None, None)


def _parameters(function: Callable[..., Any]) -> Sequence[str]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def _take_input(call: Call, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    messages = kwargs.get("messages")
    if messages is None:
        messages = next((value for name, value in zip(names, args, strict=False) if name == "messages"), None)
    if messages is None:
        text = next((value for value in (*args, *kwargs.values()) if type(value) is str), None)
        messages = [] if text is None else [{"role": "user", "content": text}]
    call.messages = messages


def _take_output(call: Call, result: Any) -> None:
    # What the function itself set through hook.current_call() is better than what it returns.
    if result is not None and type(call.output) is str and not call.output:
        call.output = result
