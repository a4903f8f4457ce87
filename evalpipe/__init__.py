"""The production eval pipeline for LLM features: sample, score, decide, roll back.

What an application imports::

    from evalpipe import Hook, Release            # the tap in the application; standard library only
    from evalpipe import Sampling, Rate, Keep     # what it captures, beyond one rate
    from evalpipe import Redaction                # what leaves the process
    from evalpipe import KillSwitchEngaged, BudgetExceeded    # what refuses a call, where you asked for it
    from evalpipe import verify_signature         # for whoever receives evalpipe's webhooks
    from evalpipe import read_scores              # scores as a DataFrame; needs evalpipe[worker]
    from evalpipe import read_feedback            # what users said, likewise
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evalpipe.errors import BudgetExceeded, KillSwitchEngaged
from evalpipe.hook import Hook, Keep, Rate, Redaction, Sampling
from evalpipe.release import Release

if TYPE_CHECKING:
    from evalpipe.signing import verify_signature
    from evalpipe.store.frames import read_feedback, read_scores

__version__ = "0.1.0"

__all__ = [
    "BudgetExceeded",
    "Hook",
    "Keep",
    "KillSwitchEngaged",
    "Rate",
    "Redaction",
    "Release",
    "Sampling",
    "__version__",
    "read_feedback",
    "read_scores",
    "verify_signature",
]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: an application that only taps its calls pays for neither.
    if name == "verify_signature":
        from evalpipe.signing import verify_signature

        return verify_signature
    if name in {"read_feedback", "read_scores"}:
        from evalpipe.store import frames

        return getattr(frames, name)
    raise AttributeError(f"module 'evalpipe' has no attribute {name!r}")
