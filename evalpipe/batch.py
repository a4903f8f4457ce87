"""The form in which records travel, as far as the hook needs it: what reads it is in `evalpipe.record`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

SCHEMA: Final = 1
"""Version of the wire form that this code writes."""
MAX_BATCH: Final = 64
"""Records in one message at the most."""
AFTERTHOUGHT: Final = "feedback"
"""The reason of records that were kept after their decision, by feedback; they weigh nothing."""


def encode_batch(
    records: Sequence[Mapping[str, Any]],
    *,
    process_id: str,
    sequence: int,
    sent_at: float,
    hook_version: str,
    default: Callable[[Any], Any] = str,
) -> str:
    """One message's text from records in wire form; ``default`` turns what JSON does not know into what it does."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "hook": hook_version,
            "process": process_id,
            "seq": sequence,
            "sent_at": sent_at,
            "records": records,
        },
        ensure_ascii=False,
        separators=(",", ":"),
        default=default,
    )
