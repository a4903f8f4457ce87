"""Libraries that the hook knows: clients that ``Hook.wrap`` taps, and callbacks. Each is imported when asked for.

A provider's client is tapped in one place, its ``post``: every way to call a model (``create``, ``parse``, ``stream``,
raw responses, the beta namespaces) goes through it, so all of their methods and classes stay the library's own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from evalpipe.errors import ConfigError
from evalpipe.hook.integrations.streams import Route, answered, guarded, lost, watch_raw, watch_stream

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

PROVIDERS: Final = ("openai", "anthropic")
"""Top-level package of the client's class, and name of the module here."""
RAW: Final = "X-Stainless-Raw-Response"
"""The header by which both libraries ask themselves for the HTTP response instead of what it says."""


def instrument(hook: Hook, client: Any, feature: str | None, enforce: bool | None = None) -> None:
    """Record the calls of ``client``, by replacing methods of this one object; of its copies too.

    Raises:
        ConfigError: its class comes from no provider that is known here.
    """
    packages = {base.__module__.partition(".")[0] for base in type(client).__mro__}
    for provider in PROVIDERS:
        if provider in packages and callable(getattr(client, "post", None)):
            if hook.enabled:
                _tap(hook, client, feature, enforce, import_module(f"{__name__}.{provider}").ROUTES)
            return
    raise ConfigError(
        f"hook.wrap() knows the clients of {' and '.join(PROVIDERS)}, not {type(client).__module__}."
        f"{type(client).__qualname__}: use @hook.observe or `with hook.call()` around its calls"
    )


def _tap(hook: Hook, client: Any, feature: str | None, enforce: bool | None, routes: Mapping[str, Route]) -> None:
    if hasattr(client.post, "__evalpipe__"):
        return

    def begin(path: Any, kwargs: Mapping[str, Any]) -> tuple[Route, Call] | None:
        route = routes.get(path.partition("?")[0]) if type(path) is str else None
        if route is None:
            return None
        call = hook.call(feature, enforce=enforce)
        if call.inert:
            return None
        call.start()
        guarded(call, route.request, kwargs.get("body"))
        return route, call

    tapped: Any = (_asynchronous if inspect.iscoroutinefunction(client.post) else _synchronous)(
        client.post, begin, hook.max_record_bytes
    )
    tapped.__evalpipe__ = True
    for resource in _resources(client):
        resource._post = tapped  # noqa: SLF001 - it was made before, and took the client's method along
    client.post = tapped
    for name in ("copy", "with_options"):
        setattr(client, name, _copying(getattr(client, name), hook, feature, enforce))


Begin = Callable[[Any, Mapping[str, Any]], tuple[Route, "Call"] | None]


def _synchronous(original: Any, begin: Begin, limit: int) -> Any:
    @functools.wraps(original)
    def post(path: Any, *args: Any, **kwargs: Any) -> Any:
        begun = begin(path, kwargs)
        if begun is None:
            return original(path, *args, **kwargs)
        route, call = begun
        try:
            result = original(path, *args, **kwargs)
        except BaseException as error:
            _failed(route, call, error)
            raise
        try:
            raw = _raw(kwargs)
            if raw == "stream":
                watch_raw(call, route, result, limit, asynchronous=False)
            else:
                _answered(route, call, _parsed(result) if raw else result, kwargs, limit)
        except Exception:  # noqa: BLE001 - the answer is there, and what it does when it is read is not the application's
            lost(call)
        return result

    return post


def _asynchronous(original: Any, begin: Begin, limit: int) -> Any:
    @functools.wraps(original)
    async def post(path: Any, *args: Any, **kwargs: Any) -> Any:
        begun = begin(path, kwargs)
        if begun is None:
            return await original(path, *args, **kwargs)
        route, call = begun
        try:
            result = await original(path, *args, **kwargs)
        except BaseException as error:
            _failed(route, call, error)
            raise
        try:
            raw = _raw(kwargs)
            if raw == "stream":
                watch_raw(call, route, result, limit, asynchronous=True)
            else:
                answer = _parsed(result) if raw else result
                if raw and inspect.isawaitable(answer):
                    answer = await _later(answer)
                _answered(route, call, answer, kwargs, limit)
        except Exception:  # noqa: BLE001 - as above
            lost(call)
        except BaseException as error:  # cancelled while the rest of the answer was on its way
            call.end(error)
            raise
        return result

    return post


def _answered(route: Route, call: Call, answer: Any, kwargs: Mapping[str, Any], limit: int) -> None:
    if kwargs.get("stream"):
        watch_stream(call, route, answer, limit)
    else:
        answered(call, route, answer)


def _failed(route: Route, call: Call, error: BaseException) -> None:
    # An answer that could not be parsed into the application's type was paid for all the same.
    with suppress(Exception):
        if (answer := getattr(error, "completion", None)) is not None:
            guarded(call, route.response, answer)
    call.end(error)


def _raw(kwargs: Mapping[str, Any]) -> str:
    options = kwargs.get("options")
    headers = options.get("headers") if isinstance(options, Mapping) else None
    return str(headers.get(RAW, "")) if headers else ""


def _parsed(response: Any) -> Any:
    # The library keeps what it parsed, so the application's own parse() costs nothing any more.
    try:
        return response.parse()
    except Exception:  # noqa: BLE001 - the application will meet it when it parses
        return None


async def _later(answer: Any) -> Any:
    try:
        return await answer
    except Exception:  # noqa: BLE001 - as above
        return None


def _copying(original: Any, hook: Hook, feature: str | None, enforce: bool | None) -> Any:
    @functools.wraps(original)
    def copy(*args: Any, **kwargs: Any) -> Any:
        client = original(*args, **kwargs)
        instrument(hook, client, feature, enforce)
        return client

    return copy


def _resources(owner: Any) -> Iterator[Any]:
    """Parts of a client that exist already, and theirs: ``client.chat``, ``client.chat.completions``."""
    for value in list(vars(owner).values()):
        if "_post" in getattr(value, "__dict__", ()):
            yield value
            yield from _resources(value)
