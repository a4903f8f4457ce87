"""Store → embedder → store: the embeddings of profiles that were taken in without, because theirs take long."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import orjson

from evalpipe.errors import EvalpipeError, PermanentError, RecordError
from evalpipe.profiling.embedders.base import Embedder, Embedding
from evalpipe.record import Record, from_wire
from evalpipe.store import profiles
from evalpipe.store.sql import Store

log = logging.getLogger("evalpipe")

BATCH = 64
"""Records whose texts are embedded at once."""
MOST_BATCHES = 20
"""In one run; the next tick goes on."""
UNREADABLE = "none"
"""Stands for the embedder where there is no text any more: it waits no longer."""


@dataclass(frozen=True, slots=True)
class Embed:
    """The stage. What fails waits for the next tick; a text that alone is refused goes without.

    Attributes:
        store: where.
        embedder: the one that the settings name.
    """

    store: Store
    embedder: Embedder

    def __call__(self) -> int:
        """Embed what waits, the newest first; returns how many records were done."""
        done = 0
        for _ in range(MOST_BATCHES):
            with self.store.read() as tx:
                waiting = profiles.unembedded(tx, BATCH)
            found = {w.record_id: record for w in waiting if (record := _record(w.payload)) is not None}
            gone = dict.fromkeys((w.record_id for w in waiting if w.record_id not in found), ((), ()))
            try:
                made = self._made(found)
            except EvalpipeError as error:
                log.error("no embeddings: %s", error)  # noqa: TRY400 - its sentence says all
                return done
            gone |= dict.fromkeys(found.keys() - made.keys(), ((), ()))
            self.store.patiently(partial(profiles.embed, embedder=UNREADABLE, found=gone))
            self.store.patiently(partial(profiles.embed, embedder=self.embedder.version, found=made))
            done += len(made)
            if len(waiting) < BATCH:
                break
        return done

    def _made(self, found: dict[str, Record]) -> dict[str, tuple[Embedding, Embedding]]:
        """All embeddings; where the batch is refused, those of the records that are not.

        Raises:
            EvalpipeError: it does not work now, or for none of them.
        """
        try:
            return self._embedded(found)
        except PermanentError as error:
            made: dict[str, tuple[Embedding, Embedding]] = {}
            for record_id, record in found.items():
                with suppress(PermanentError):
                    made |= self._embedded({record_id: record})
            if not made:
                raise
            log.warning("no embeddings of %d records: %s", len(found) - len(made), error)
            return made

    def _embedded(self, found: dict[str, Record]) -> dict[str, tuple[Embedding, Embedding]]:
        if not found:
            return {}
        texts = [text for record in found.values() for text in (record.input_text, record.output)]
        vectors = self.embedder.embed(texts)
        return dict(zip(found, zip(vectors[::2], vectors[1::2], strict=True), strict=True))


def _record(payload: bytes | None) -> Record | None:
    with suppress(RecordError, ValueError):
        return from_wire(orjson.loads(payload)) if payload is not None else None
    return None
