"""A local HTTP server that keeps every request as it came, and answers as a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


Answer = tuple[int, dict[str, str], bytes]
Answering = Callable[[Seen], Answer | None]
"""Status, headers and body; None hangs up without an answer."""


def always(status: int, body: bytes = b"", **headers: str) -> Answering:
    """The same answer to all; ``retry_after="3"`` is the header Retry-After."""
    fixed = status, {name.replace("_", "-"): value for name, value in headers.items()}, body
    return lambda _: fixed


class Recorder:
    """The server; ``answering`` may be changed at any time."""

    def __init__(self, answering: Answering | None = None) -> None:
        self.answering = answering or always(204)
        self.seen: list[Seen] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.recorder = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for(self, n: int, timeout_s: float = 60.0) -> bool:
        """Wait until so many requests came."""
        deadline = time.monotonic() + timeout_s
        while len(self.seen) < n and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(self.seen) >= n

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        recorder: Recorder = self.server.recorder  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        recorder.seen.append(seen)
        answer = recorder.answering(seen)
        self.close_connection = True
        if answer is None:
            return
        status, headers, text = answer
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(text)), "connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have gone
            self.wfile.write(text)

    do_POST = do_PUT = do_PATCH = do_GET = _any  # noqa: N815 - names of the standard library

    def log_message(self, *_: object) -> None:
        """Say nothing."""
