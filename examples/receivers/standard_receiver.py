"""The same with the public library of Standard Webhooks (`pip install standardwebhooks`), and nothing of evalpipe.

    EVALPIPE_WEBHOOK_SECRET=whsec_... python standard_receiver.py

Libraries for Go, Java, JavaScript, Ruby, PHP, C#, Rust and Elixir have the same two lines.
"""

from __future__ import annotations

import argparse
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

SECRETS = os.environ["EVALPIPE_WEBHOOK_SECRET"].split()
LOCK = threading.Lock()
SEEN: set[str] = set()
"""Ids that were acted on. Yours live in a database, in the transaction that acts, for four days."""
NEWEST: dict[tuple[str, str], int] = {}
"""The highest `seq` of each rollout."""


def verified(body: bytes, headers: dict[str, str]) -> dict[str, Any] | None:
    """The event, if one of the secrets signed it; while a secret is being changed there are two."""
    for secret in SECRETS:
        try:
            event: dict[str, Any] = Webhook(secret).verify(body, headers)
        except (ValueError, WebhookVerificationError) as error:  # ValueError: a signature that is malformed
            print(f"refused: {error}", flush=True)
        else:
            return event
    return None


def act(event: dict[str, Any]) -> None:
    """Your part: do what the decision says."""
    print(f"{event['type']} {event.get('subject', '')} {event['data'].get('reason', '')}", flush=True)


class Handler(BaseHTTPRequestHandler):
    """Answers 204 for what is done, and 401 for what is not to be trusted."""

    timeout = 10

    def do_POST(self) -> None:
        """One delivery."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        event = verified(body, dict(self.headers.items()))
        if event is not None:
            with LOCK:
                place, seq = (event["source"], event.get("subject", "")), event["data"].get("seq")
                late = seq is not None and seq <= NEWEST.get(place, -1)
                if event["id"] not in SEEN and not late:
                    act(event)
                    SEEN.add(event["id"])
                    if seq is not None:
                        NEWEST[place] = seq
        self.send_response(401 if event is None else 204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing of requests that went well."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8787)
    arguments = parser.parse_args()
    server = ThreadingHTTPServer((arguments.host, arguments.port), Handler)
    print(f"listening on http://{arguments.host}:{server.server_address[1]}/", flush=True)
    server.serve_forever()
