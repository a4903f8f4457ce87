"""The wire below the providers' official libraries.

A library says how a request looks (its URL, its headers, its keys) and what a refusal means; bytes go out and come in
here, over aiohttp. That is a quarter of the processor time of the library's own request and response objects over
aiohttp, and a tenth of its default (bench/judging.py).

The library is asked over its public interface: a copy of its client is given a transport that reaches nobody. What it
would send is noted once for each path; and what a server refused is handed to it as the reply, so that it raises its
own exception.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.request import getproxies, proxy_bypass

import orjson

from evalpipe.errors import JudgeRejected

if TYPE_CHECKING:
    import aiohttp
    import httpx2
    from yarl import URL

NOTED_FOR_S: Final = 20.0
"""How long a library's headers are sent again before it is asked for them anew: its tokens may expire."""
KEEP_ALIVE_S: Final = 4.0
"""Unused connections are closed after so long: common servers do so after five, and one that is met half closed costs
an attempt."""
_OURS: Final = frozenset({"accept-encoding", "connection", "content-length", "host", "transfer-encoding"})
"""Headers of a request that aiohttp writes by itself."""
_UNDONE: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers of a response that no longer hold for its decoded body."""
_REQUEST_IDS: Final = ("x-request-id", "request-id")


class Reply(bytes):
    """The body of a response.

    Attributes:
        request_id: the provider's name for the call; "" if it gave none.
    """

    request_id: str = ""


@dataclass(slots=True)
class _Rehearsal:
    """One request that a library makes to nobody: what it is answered, and what it asked."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] | None = None
    body: bytes = b"{}"
    request: httpx2.Request | None = None


_rehearsal: ContextVar[_Rehearsal] = ContextVar("evalpipe_rehearsal")


@dataclass(frozen=True, slots=True)
class _Note:
    """How a library addresses a path, and since when that is known (monotonic)."""

    url: URL
    headers: Mapping[str, str]
    at: float
    proxy: str | None


class Wire:
    """Sends what a library would send, for as long as its client lives; on one event loop.

    Args:
        client: an asynchronous client of ``openai`` or ``anthropic``; stays its owner's to close.
        headers: sent with every request, on top of the client's own.
    """

    def __init__(self, client: Any, headers: Mapping[str, str]) -> None:
        import httpx2

        nobody = httpx2.AsyncClient(transport=httpx2.MockTransport(_overhear), trust_env=False)
        self._double = client.copy(http_client=nobody, max_retries=0)
        self._headers = dict(headers)
        self._notes: dict[str, _Note] = {}
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        """The body of the response to ``body`` as JSON.

        Raises:
            Exception: the library's own for a status of 400 and above, aiohttp's for what breaks before.
            JudgeRejected: the server sends us elsewhere; neither a key nor a record is taken there.
        """
        note = self._notes.get(path)
        if note is None or time.monotonic() - note.at > NOTED_FOR_S:
            note = self._notes[path] = await self._ask_library(path)
        data = orjson.dumps(body, default=_plain)
        session = self._session or self._open(note)
        async with session.post(
            note.url, data=data, headers=note.headers, proxy=note.proxy, allow_redirects=False
        ) as response:
            reply = Reply(await response.read())
            reply.request_id = next((found for name in _REQUEST_IDS if (found := response.headers.get(name))), "")
        if response.status >= HTTPStatus.BAD_REQUEST:
            if response.status == HTTPStatus.UNAUTHORIZED:
                self._notes.clear()
            await self._raise(path, response, reply)
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            where = response.headers.get("location", "elsewhere")
            raise JudgeRejected(
                f"{note.url} answers with HTTP {response.status} and sends us to {where}: if that is right, write it "
                "as the judge's base URL",
                cause="gone",
            )
        return reply

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self, note: _Note) -> aiohttp.ClientSession:
        import aiohttp
        import httpx2

        secure = note.url.scheme == "https" or (note.proxy or "").startswith("https")
        # How many calls are in flight is the caller's choice: a limit here would only wait within their timeouts.
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=httpx2.create_ssl_context() if secure else True
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # each attempt has its own
            skip_auto_headers=("User-Agent", "Content-Type"),
        )
        return self._session

    async def _ask_library(self, path: str) -> _Note:
        from yarl import URL

        request = (await self._rehearse(path, _Rehearsal())).request
        assert request is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OURS}
        url = URL(str(request.url), encoded=True)
        return _Note(url, headers, time.monotonic(), _proxy_of(url))

    async def _raise(self, path: str, response: aiohttp.ClientResponse, body: bytes) -> None:
        headers = [(name, value) for name, value in response.raw_headers if name.decode().lower() not in _UNDONE]
        await self._rehearse(path, _Rehearsal(response.status, headers, body))
        raise AssertionError(f"the library took HTTP {response.status} for an answer")

    async def _rehearse(self, path: str, rehearsal: _Rehearsal) -> _Rehearsal:
        import httpx2

        token = _rehearsal.set(rehearsal)
        try:
            await self._double.post(path, body={}, cast_to=httpx2.Response, options={"headers": self._headers})
        finally:
            _rehearsal.reset(token)
        return rehearsal


async def _overhear(request: httpx2.Request) -> httpx2.Response:
    import httpx2

    rehearsal = _rehearsal.get()
    rehearsal.request = request
    return httpx2.Response(rehearsal.status, headers=rehearsal.headers, content=rehearsal.body)


def _proxy_of(url: URL) -> str | None:
    """The proxy that the environment names. aiohttp would look it up for every request, on a thread."""
    host = url.host or ""
    if proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


def _plain(value: Any) -> Any:
    """A mapping of any kind as orjson takes it."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
