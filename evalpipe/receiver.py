"""A receiver of evalpipe's webhooks as a consumer should write it: verify, recognise repetitions, ignore what is late.

Standard library only. ``evalpipe webhook listen``, the demo and the tests run it; it is also the reference for the
rules in docs/webhooks.md.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, Self

from evalpipe.errors import ConfigError, SignatureError
from evalpipe.signing import ID_HEADER, check_secrets, verify_signature

Event = dict[str, Any]

_MAX_BODY_BYTES = 1_000_000
_KEPT_IDS = 10_000


class Receiver:
    """An HTTP server on a thread of its own that answers each delivery by what became of it.

    204: taken, or already known, or overtaken by a later ``seq``. 400: not a delivery. 401: not to be trusted.
    500: ``on_event`` raised, so the sender will come again.

    Args:
        host: address to listen on.
        port: 0 chooses a free one.
        secrets: one of them must have signed.
        on_event: called once for each event, one at a time, before it is answered.
        on_refusal: called with the reason when a request is not trusted.
        respond: for tests of a sender: the status to answer an event with instead of taking it, or None to take it.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        secrets: str | Sequence[str],
        on_event: Callable[[Event], None] | None = None,
        on_refusal: Callable[[str], None] | None = None,
        respond: Callable[[Event], int | None] | None = None,
    ) -> None:
        check_secrets(secrets)
        self.events: list[Event] = []
        self._secrets = secrets
        self._on_event = on_event
        self._on_refusal = on_refusal
        self._respond = respond
        self._known: OrderedDict[str, None] = OrderedDict()
        self._newest: dict[tuple[str, str], int] = {}
        self._changed = threading.Condition()
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}): choose another port") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="receiver", daemon=True)

    @property
    def url(self) -> str:
        """Where to send deliveries."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def wait_for(self, enough: Callable[[list[Event]], bool], timeout_s: float) -> bool:
        """Wait until the events taken so far are ``enough``; False if they were not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: enough(self.events), timeout_s)

    def receive(self, body: bytes, headers: dict[str, str]) -> int:
        """The status that answers one delivery."""
        try:
            event = verify_signature(body, headers, self._secrets)
        except SignatureError as error:
            if self._on_refusal is not None:
                self._on_refusal(str(error))
            return 401
        event_id = next(value for name, value in headers.items() if name.lower() == ID_HEADER)
        with self._changed:
            if self._respond is not None and (status := self._respond(event)) is not None:
                return status
            if event_id in self._known or self._overtaken(event):
                return 204
            if self._on_event is not None:
                self._on_event(event)
            # Remembered only now: had on_event raised, the next attempt must not count as a repetition.
            self._remember(event_id, event)
            self._changed.notify_all()
        return 204

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _overtaken(self, event: Event) -> bool:
        seq = _seq(event)
        return seq is not None and seq <= self._newest.get(_subject(event), seq - 1)

    def _remember(self, event_id: str, event: Event) -> None:
        self.events.append(event)
        self._known[event_id] = None
        if len(self._known) > _KEPT_IDS:
            self._known.popitem(last=False)
        if (seq := _seq(event)) is not None:
            self._newest[_subject(event)] = seq


class _Server(ThreadingTCPServer):
    # Not http.server's own: that one asks the name server for this machine's name before it listens.
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # seconds for a client that stays silent
    server_version = "evalpipe"
    sys_version = ""

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            status = 400
        else:
            status = self._receive(self.rfile.read(int(length)))
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def _receive(self, body: bytes) -> int:
        try:
            return self.server.receiver.receive(body, dict(self.headers.items()))
        except Exception as error:  # noqa: BLE001 - whatever the consumer's code raises means: come again
            self.log_error("on_event raised %r", error)
            return 500

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing of requests that went well."""


def _seq(event: Event) -> int | None:
    data = event.get("data")
    seq = data.get("seq") if isinstance(data, dict) else None
    return seq if isinstance(seq, int) else None


def _subject(event: Event) -> tuple[str, str]:
    return str(event.get("source")), str(event.get("subject"))
