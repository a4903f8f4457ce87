"""Store → hooks: each service's control document goes to the Redis that its hooks poll.

Whoever changes a control publishes it right after the commit. This stage does it again and again, so that a Redis that
lost its data, or was away at that moment, has the truth within seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from evalpipe.errors import ConfigError
from evalpipe.prices import PriceTable
from evalpipe.store import controls
from evalpipe.store.queue import NO_PRICES, Queue
from evalpipe.store.sql import Store

PRICES_FOR = timedelta(minutes=10)
"""The price list is read again after this long: the file may have changed, and some prices change on a date."""
TRIES: Final = 5
"""To be newer than what hooks have read; who is not newer by then has company."""

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
        """Publish the documents of all services that need one, with their prices; says how many they are.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        self._refresh(now)
        with self._store.read() as tx:
            found = controls.services(tx, now)
        for service in found:
            self.one(service, now)
        return len(found)

    def one(self, service: str, now: datetime) -> bool:
        """Publish one service's document as it is committed now; False if hooks still have another, newer one.

        Only the stage itself knows prices: others leave those that are there, and are quicker for it.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        for _ in range(TRIES):
            if (newer := self._try(service, now)) <= 0:
                return True
            self._overtake(service, newer, now)
        log.error("the control document of %s is not published: revision %d is in Redis, by whom?", service, newer)
        return False

    def _try(self, service: str, now: datetime) -> int:
        """As ``Queue.publish``."""
        document = self._document(service, now)
        done = self._queue.publish(service, document)
        table = self._prices[1] if self._prices else None
        if done <= 0 and table and (done == NO_PRICES or document["prices"] != table.version):
            lost = done == NO_PRICES
            self._store.patiently(lambda tx: controls.note_prices(tx, service, table.version, now, again=lost))
            document = self._document(service, now)
            if document["prices"] == table.version:
                done = self._queue.publish(service, document, table.text)
        return done

    def _overtake(self, service: str, revision: int, now: datetime) -> None:
        """Hooks have read a newer document. Its change is committed by now, or the database was restored since."""
        with self._store.begin() as tx:
            known = controls.revision_of(tx, service)
            controls.overtake(tx, service, revision, now)
        if known < revision:
            log.warning("%s: Redis has control document %d, the database %d: it is overtaken", service, revision, known)

    def soon(self, service: str, now: datetime) -> bool:
        """As ``one``, after a commit that must stand whatever comes; False if the stage has to make up for it."""
        try:
            return self.one(service, now)
        except (RedisError, SQLAlchemyError) as error:
            log.warning("the control document of %s is not published yet: %s", service, error)
            return False

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
