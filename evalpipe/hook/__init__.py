"""The tap in the application: sample, redact, buffer and ship model calls, without ever being felt.

Standard library only; ``redis`` is imported by the thread that ships.
"""

from __future__ import annotations

from evalpipe.hook.call import Call, suppressed
from evalpipe.hook.client import Hook, Stats
from evalpipe.hook.rates import Keep, Rate, Sampling
from evalpipe.hook.redaction import Redaction

__all__ = ["Call", "Hook", "Keep", "Rate", "Redaction", "Sampling", "Stats", "suppressed"]
