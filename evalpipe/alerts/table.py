"""How severe an alert is, by what was found, how large it is, and how much of the traffic it affects."""

from __future__ import annotations

from typing import Final

from evalpipe.alerts.impact import Share, wilson
from evalpipe.alerts.rules import Severity
from evalpipe.detectors.base import Finding

MOST: Final = 0.2
"""Share of the service's traffic above which a loss of quality is a SEV2."""
ISOLATED: Final = 0.01
"""And below which it is isolated: nearly nobody sees it."""
GONE: Final = 0.5
"""A rate of failures from which a capability counts as gone."""

_FLAT: Final[dict[str, Severity]] = {"safety": "SEV1", "meter": "SEV3", "coverage": "SEV3"}


def severity_of(kind: str, finding: Finding, share: Share | None) -> Severity:
    """The severity of a firing alert whose rule leaves it to the table.

    Args:
        kind: of the detector. ``safety`` is a guardrail bypassed, personal data leaked, or an agent that executes what
            it may not: SEV1.
        finding: its own severity, where the detector knows it, and its ratio to what is normal.
        share: of the service's traffic that is affected; None where that is unknown.
    """
    if finding.severity is not None:
        return finding.severity
    if kind in _FLAT:
        return _FLAT[kind]
    if kind == "cost":
        return _by_cost(finding.ratio)
    if kind == "latency":
        return "SEV3" if finding.ratio is None or finding.ratio > 2.0 else "SEV4"
    return "SEV4" if share is not None and share.high < ISOLATED else _by_quality(kind, finding, share)


def worse(one: Severity | str, other: Severity) -> Severity:
    """The more severe of two; "" is none."""
    return other if not one or other < one else one  # type: ignore[return-value]  # SEV1 sorts before SEV2


def _by_cost(ratio: float | None) -> Severity:
    if ratio is None or ratio < 10.0:
        return "SEV3"
    return "SEV1" if ratio >= 100.0 else "SEV2"


def _by_quality(kind: str, finding: Finding, share: Share | None) -> Severity:
    if kind == "rate":
        return _by_rate(finding, share)
    return "SEV2" if kind == "quality" and share is not None and share.estimate > MOST else "SEV3"


def _by_rate(finding: Finding, share: Share | None) -> Severity:
    """A rate affects the records that fail, and a capability that fails more often than not is gone."""
    rose = finding.ratio is None or finding.ratio >= 1.0
    failing = _sure(finding) if rose else 0.0
    if failing >= GONE:
        return "SEV2"
    return "SEV2" if share is not None and share.estimate * failing > MOST else "SEV3"


def _sure(finding: Finding) -> float:
    """The lower end of the interval of a rate: when an alarm begins there are few scores, and they tell too much."""
    value = finding.value if finding.value is not None else 0.0
    n = finding.n / finding.numbers.get("design_effect", 1.0)
    return wilson(value * n, n)[0] if n > 0 else value
