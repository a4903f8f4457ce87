"""Clients of model providers that ``Hook.wrap`` knows: one module each, which never imports the provider's library."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from evalpipe.errors import ConfigError
from evalpipe.hook.observing import count

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

PROVIDERS: Final = ("openai", "anthropic")
"""Top-level package of the client's class, and name of the module here."""

Read = Callable[["Call", Mapping[str, Any]], None]
ReadResponse = Callable[["Call", Any], None]


def instrument(hook: Hook, client: Any, feature: str | None) -> None:
    """Record the calls of ``client``, by replacing methods of this one object.

    Raises:
        ConfigError: its class comes from no provider that is known here.
    """
    packages = {base.__module__.partition(".")[0] for base in type(client).__mro__}
    for provider in PROVIDERS:
        if provider in packages:
            if hook.enabled:
                import_module(f"{__name__}.{provider}").instrument(hook, client, feature)
            return
    raise ConfigError(
        f"hook.wrap() knows the clients of {' and '.join(PROVIDERS)}, not {type(client).__module__}."
        f"{type(client).__qualname__}: use @hook.observe or `with hook.call()` around its calls"
    )


def replace_method(
    hook: Hook, owner: Any, method: str, feature: str | None, request: Read, response: ReadResponse
) -> None:
    """Put a recording method in place of ``owner.method``; once only.

    Args:
        hook: records the calls.
        owner: the object whose method it is.
        method: its name.
        feature: what the calls are for; None to inherit it.
        request: reads the keyword arguments into a sampled call.
        response: reads the response, for every call: usage is metered on all, the rest is for sampled ones.
    """
    original = getattr(owner, method)
    if hasattr(original, "__evalpipe__"):
        return

    @functools.wraps(original)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("stream"):
            return _pass_through(hook, feature, original, args, kwargs)
        with hook.call(feature) as call:
            _guarded(call, request, kwargs)
            result = original(*args, **kwargs)
            _guarded(call, response, result)
            return result

    @functools.wraps(original)
    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("stream"):
            return await _pass_through(hook, feature, original, args, kwargs)
        with hook.call(feature) as call:
            _guarded(call, request, kwargs)
            result = await original(*args, **kwargs)
            _guarded(call, response, result)
            return result

    recording: Any = asynchronous if inspect.iscoroutinefunction(inspect.unwrap(original)) else synchronous
    recording.__evalpipe__ = True
    setattr(owner, method, recording)


def _pass_through(hook: Hook, feature: str | None, original: Any, args: Any, kwargs: Any) -> Any:
    count(hook, feature)
    return original(*args, **kwargs)


def _guarded(call: Call, read: Callable[[Call, Any], None], what: Any) -> None:
    try:
        read(call, what)
    except Exception:  # noqa: BLE001 - a provider's new shape must not break the application's call
        call.attributes["unread"] = type(what).__name__


def scalars(kwargs: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The named arguments that are texts, numbers or booleans; a provider's "not given" is none of these."""
    return {name: kwargs[name] for name in names if isinstance(kwargs.get(name), str | int | float)}
