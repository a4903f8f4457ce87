"""The form in which records travel, as far as the hook needs it: what reads it is in `evalpipe.record`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

SCHEMA: Final = 1
"""Version of the wire form that this code writes."""
MAX_BATCH: Final = 64
"""Records in one message at the most."""
LEAST_PROBABILITY: Final = 1e-9
"""Of inclusion; the square of its inverse is still a number."""
AFTERTHOUGHT: Final = "feedback"
"""The reason of records that were kept after their decision, by feedback; they weigh nothing."""

_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)


def encode_record(wire: Mapping[str, Any]) -> str:
    """A record's text; what JSON does not know becomes what ``str`` makes of it."""
    return _encoder.encode(wire)


def join_batch(records: Iterable[str], *, process_id: str, sequence: int, sent_at: float, hook_version: str) -> str:
    """One message's text from the texts of its records."""
    header = {"schema": SCHEMA, "hook": hook_version, "process": process_id, "seq": sequence, "sent_at": sent_at}
    return f'{_encoder.encode(header)[:-1]},"records":[{",".join(records)}]}}'


def encode_batch(
    records: Sequence[Mapping[str, Any]], *, process_id: str, sequence: int, sent_at: float, hook_version: str
) -> str:
    """One message's text from records in wire form."""
    texts = map(encode_record, records)
    return join_batch(texts, process_id=process_id, sequence=sequence, sent_at=sent_at, hook_version=hook_version)
