"""Store → hooks: each service's control document goes to the Redis that its hooks poll.

Whoever changes a control publishes it right after the commit. This stage does it again and again, so that a Redis that
lost its data, or was away at that moment, has the truth within seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from evalpipe.errors import ConfigError
from evalpipe.prices import PriceTable
from evalpipe.store import controls
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store

PRICES_FOR = timedelta(minutes=10)
"""The price list is read again after this long: the file may have changed, and some prices change on a date."""

log = logging.getLogger("evalpipe")


class Publish:
    """The stage, with what it needs.

    Args:
        store: where the controls are.
        queue: the Redis that hooks poll.
        prices: the price table at an instant.
    """

    def __init__(self, store: Store, queue: Queue, prices: Callable[[datetime], PriceTable]) -> None:
        self._store = store
        self._queue = queue
        self._read_prices = prices
        self._prices: tuple[datetime, PriceTable] | None = None

    def __call__(self, now: datetime) -> int:
        """Publish every service's document with its prices; says how many.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        self._refresh(now)
        with self._store.read() as tx:
            found = controls.services(tx)
        for service in found:
            self.one(service, now)
        return len(found)

    def one(self, service: str, now: datetime) -> bool:
        """Publish one service's document; False if its hooks have a newer one already.

        Only the stage itself knows prices: others leave those that are there, and are quicker for it.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        document = self._document(service, now)
        done = self._queue.publish(service, document)
        table = self._prices[1] if self._prices else None
        if done != "older" and table and (done == "no prices" or document["prices"] != table.version):
            lost = done == "no prices"
            self._store.patiently(lambda tx: controls.note_prices(tx, service, table.version, now, again=lost))
            document = self._document(service, now)
            if document["prices"] == table.version:
                done = self._queue.publish(service, document, table.text)
        return done != "older"

    def soon(self, service: str, now: datetime) -> bool:
        """As ``one``, after a commit that must stand whatever comes; False if the stage has to make up for it."""
        try:
            self.one(service, now)
        except (RedisError, SQLAlchemyError) as error:
            log.warning("the control document of %s is not published yet: %s", service, error)
            return False
        return True

    def _document(self, service: str, now: datetime) -> dict[str, Any]:
        with self._store.read() as tx:
            return controls.document(tx, service, now)

    def _refresh(self, now: datetime) -> None:
        if self._prices is not None and now - self._prices[0] < PRICES_FOR:
            return
        try:
            self._prices = now, self._read_prices(now)
        except ConfigError as error:
            # Whatever is wrong with a price must not hold a kill switch.
            log.error("prices are not published: %s", error)  # noqa: TRY400 - the message says it all
