"""Where a record is found when nothing else knows it."""

from __future__ import annotations

from datetime import UTC, datetime

from evalpipe.store import intake
from evalpipe.store.intake import DeadLetter
from evalpipe.store.sql import Store
from evalpipe.store.why import dead_letters_with, why


def test_a_record_in_a_dead_letter_is_found_by_its_trace_id(migrated_url: str) -> None:
    """The database searches the bytes; what comes back is the reason, not the payload."""
    store = Store(migrated_url)
    with store.begin() as tx:
        letter = DeadLetter("message", "key", "not JSON", b'{"trace_id": "trace-1", "output": "secret"}')
        intake.add_dead_letters(tx, [letter], datetime.now(UTC))
    with store.read() as tx:
        assert why(tx, "trace-1") == []
        (found,) = dead_letters_with(tx, "trace-1")
        assert found["reason"] == "not JSON"
        assert "payload" not in found
        assert dead_letters_with(tx, "trace-2") == []
    store.close()
