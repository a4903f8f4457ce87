"""The API as a real server on a real queue and database, and a worker's hand to take in what it enqueued."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import orjson
import uvicorn
from sqlalchemy import Table, select

from evalpipe.api.app import make_api
from evalpipe.settings import Settings
from evalpipe.store import ledgers
from evalpipe.wiring import Wiring, now

KEY = "key-one"
CARD = """
name: desk
description: Short answers.
owner: support
match: {service: desk}
criteria:
  - {name: brief, description: Short., heuristic: length, params: {max: 200}}
"""


class Door:
    """The API under test.

    Attributes:
        url: where it listens.
        wiring: a worker's stages on the same database and queue.
    """

    def __init__(self, settings: Settings) -> None:
        self.wiring = Wiring(settings)
        self.app = make_api(settings)
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="error", access_log=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """Post bytes, or anything else as JSON; ``content_type`` and the like are headers."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.client.post(path, content=content, headers=named)

    def get(self, path: str) -> Any:
        """The JSON of a page."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def work(self) -> None:
        """Ship what the API's hooks hold, and take everything that waits in, as workers do."""
        taps = self.app.state.taps
        for tap in (taps._others, *taps._taps.values()):
            assert tap.hook.flush(10)
        redis = self.wiring.queue.client
        for stage in ("ingest", "measure", "feedback"):
            while raw := redis.rpop(f"evalpipe.{stage}"):
                message = orjson.loads(raw)
                (blob,) = orjson.loads(message["body"])[0]
                if stage == "ingest":
                    self.wiring.ingest(blob, message["headers"], now())
                else:
                    getattr(self.wiring, stage)(blob, now())

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """All rows of a table."""
        with self.wiring.store.read() as tx:
            return [dict(row) for row in tx.connection.execute(select(table)).mappings()]

    def payloads(self) -> list[dict[str, Any]]:
        """What is stored of the records, by their time."""
        from evalpipe.store.tables import records

        found = [orjson.loads(row["payload"]) for row in self.rows(records)]
        return sorted(found, key=lambda wire: wire["captured_at"])

    def ledger(self, service: str = "desk") -> dict[str, int]:
        """The terms of the ledger of records, all hours together."""
        with self.wiring.store.read() as tx:
            lines = ledgers.read(tx, self.wiring.queue.queued(), now())
        mine = [line.as_dict() for line in lines if not line.scorecard and line.service == service]
        names = ("observed", "not_sampled", "sampled", "scored", "skipped", "shed", "lost", "dead", "difference")
        return {name: sum(line[name] for line in mine) for name in names}

    def close(self) -> None:
        """Stop the server, which ships what waits."""
        self.client.close()
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.wiring.close()


@contextmanager
def door(database_url: str, redis_url: str, folder: Path, **settings: Any) -> Iterator[Door]:
    """A running API on a migrated database."""
    cards = folder / "scorecards"
    cards.mkdir(exist_ok=True)
    (cards / "desk.yaml").write_text(CARD)
    made = Settings(
        home=folder, database_url=database_url, redis_url=redis_url, scorecards=cards, api_keys=(KEY, "key-two")
    )
    opened = Door(replace(made, **settings))
    try:
        yield opened
    finally:
        opened.close()
