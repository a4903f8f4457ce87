"""A receiver that acts on rollbacks: verified, once for each event, and never on a decision that comes too late.

Standard library and `evalpipe.verify_signature`. Run it beside whatever moves your traffic:

    EVALPIPE_WEBHOOK_SECRET=whsec_... python receiver.py --run "kubectl argo rollouts abort support-bot"

The command gets EVALPIPE_ROLLOUT, EVALPIPE_CANARY, EVALPIPE_BASELINE and EVALPIPE_REASON. It must do no harm when it
runs twice: if this process dies between the command and its memory, the delivery comes again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import evalpipe
from evalpipe.errors import SignatureError

ROLLBACK = "io.evalpipe.decision.rollback.v1"
MAX_BYTES = 1_000_000


class Memory:
    """What was acted on, kept over restarts."""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False)
        with self._db:
            self._db.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP)")
            self._db.execute("CREATE TABLE IF NOT EXISTS newest (subject TEXT PRIMARY KEY, seq INTEGER)")

    def is_news(self, event: dict[str, Any]) -> bool:
        """Whether nobody has acted on this event, nor on a later decision about the same rollout."""
        if self._db.execute("SELECT 1 FROM seen WHERE id = ?", [event["id"]]).fetchone():
            return False
        known = self._db.execute("SELECT seq FROM newest WHERE subject = ?", [self._subject(event)]).fetchone()
        seq = event["data"].get("seq")
        return seq is None or known is None or seq > known[0]

    def keep(self, event: dict[str, Any]) -> None:
        """Remember it, after acting."""
        with self._db:
            self._db.execute("INSERT INTO seen (id) VALUES (?)", [event["id"]])
            if (seq := event["data"].get("seq")) is not None:
                self._db.execute("INSERT OR REPLACE INTO newest VALUES (?, ?)", [self._subject(event), seq])
            self._db.execute("DELETE FROM seen WHERE at < datetime('now', '-7 days')")

    @staticmethod
    def _subject(event: dict[str, Any]) -> str:
        return f"{event['source']} {event.get('subject', '')}"


def act(event: dict[str, Any], command: str) -> None:
    """Run the command if this is a rollback; raises if it fails, so that the delivery comes again."""
    print(f"{event['type']} {event.get('subject', '')} {event['data'].get('reason', '')}", flush=True)
    data = event["data"]
    if event["type"] != ROLLBACK or data.get("test"):  # of 'evalpipe webhook send-test'
        return
    told = {"ROLLOUT": event.get("subject"), "CANARY": data.get("canary"), "BASELINE": data.get("baseline"),
            "REASON": data.get("reason")}  # fmt: skip
    # As variables, never as part of the command: the reason may quote what users wrote.
    told = {f"EVALPIPE_{name}": str(value or "") for name, value in told.items()}
    subprocess.run(shlex.split(command), env=os.environ | told, check=True, timeout=10)


class Handler(BaseHTTPRequestHandler):
    """Answers 204 for what is done, 401 for what is not to be trusted, 500 for what shall come again."""

    timeout = 10

    def do_POST(self) -> None:
        """One delivery."""
        self.send_response(self._receive())
        self.send_header("content-length", "0")
        self.end_headers()

    def _receive(self) -> int:
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BYTES:
            return 400
        body = self.rfile.read(int(length))  # the bytes as they came: the signature is over these
        try:
            event = evalpipe.verify_signature(body, dict(self.headers.items()), SECRETS)
        except SignatureError as error:
            self.log_error("refused: %s", error)
            return 401
        with MEMORY.lock:
            if not MEMORY.is_news(event):
                return 204
            try:
                act(event, ARGUMENTS.run)
            except (subprocess.SubprocessError, OSError) as error:
                self.log_error("the command failed: %s", error)
                return 500
            MEMORY.keep(event)
        return 204

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing of requests that went well."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8787)
    parser.add_argument("--memory", default="receiver.db", help="SQLite file of what was acted on")
    parser.add_argument("--run", required=True, help="command for each rollback")
    ARGUMENTS = parser.parse_args()
    SECRETS = os.environ["EVALPIPE_WEBHOOK_SECRET"].split()
    MEMORY = Memory(ARGUMENTS.memory)
    server = ThreadingHTTPServer((ARGUMENTS.host, ARGUMENTS.port), Handler)
    print(f"listening on http://{ARGUMENTS.host}:{server.server_address[1]}/", flush=True)
    server.serve_forever()
