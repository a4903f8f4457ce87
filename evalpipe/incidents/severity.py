"""How soon somebody must look."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from evalpipe.alerts.rules import Severity

RESPONSE_TIME: Final[dict[Severity, timedelta]] = {
    "SEV1": timedelta(minutes=15),
    "SEV2": timedelta(hours=1),
    "SEV3": timedelta(hours=4),
    "SEV4": timedelta(hours=24),
}
"""From opening to the first human answer."""
