"""How soon somebody must look."""

from __future__ import annotations

from evalpipe.alerts.escalation import RESPONSE_TIME

__all__ = ["RESPONSE_TIME"]
