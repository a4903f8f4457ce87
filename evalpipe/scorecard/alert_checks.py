"""What must agree between the fields of an alert rule, and between the rule, its scorecard and its detector.

Works on the plain data, as ``checks`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from evalpipe.errors import ConfigError
from evalpipe.scorecard.checks import Found, Loc, Names, graded_values, is_number, mappings, nearest, twice
from evalpipe.scorecard.wording import worded

_PARTS: Final = {"mean": ("criterion", "mean"), "meter": ("meter", "value"), "detect": ("detect",)}
"""What each of the three ways to write a condition consists of."""
_LINES_ONLY: Final = ("window", "min_sample")
_DETECT_ONLY: Final = ("params", "normal")
HOMELESS: Final = "reads the scores of {!r}: write 'scorecard:' with the name of the scorecard that has it"
STOPS: Final = "cost"
"""The detector that may stop calls."""


def alerts_problems(card: Any) -> Iterator[Found]:
    """Every problem between the fields of a scorecard's alert rules."""
    if not isinstance(card, Mapping):
        return
    alerts = dict(mappings(card.get("alerts")))
    yield from twice("alerts", alerts, "name", "alert rules are named")
    for place, alert in alerts.items():
        yield from alert_problems(alert, ("alerts", place), card)


def alert_problems(alert: Mapping[str, Any], loc: Loc, card: Mapping[str, Any]) -> Iterator[Found]:
    """Every problem of one rule, but for those of its detector (see ``detector_problems``).

    Args:
        alert: as written.
        loc: of the rule.
        card: the plain data of the scorecard whose criteria it reads; empty for none.
    """
    written = [how for how, parts in _PARTS.items() if any(alert.get(part) is not None for part in parts)]
    parts = [part for how in written for part in _PARTS[how]]
    if len(written) != 1 or any(alert.get(part) is None for part in parts):
        yield Found(loc, "needs exactly one of: 'criterion' with 'mean', 'meter' with 'value', or 'detect'")
    if "criterion" in alert:
        yield from _known(alert["criterion"], (*loc, "criterion"), names_of(card))
    yield from _out_of_place(alert, loc, written)
    mean, value, normal = alert.get("mean"), alert.get("value"), alert.get("normal")
    if isinstance(mean, Mapping):
        yield from _threshold(mean, (*loc, "mean"), _range(card, alert.get("criterion")))
    if isinstance(value, Mapping) and (value.get("below") is None) == (value.get("above") is None):
        yield Found((*loc, "value"), "needs exactly one of 'below' and 'above'")
    if isinstance(normal, Mapping) and sum(said is not None for said in normal.values()) != 1:
        yield Found((*loc, "normal"), "needs exactly one of 'baseline', 'previous' and 'seasonal'")


def detector_problems(
    alert: Mapping[str, Any], loc: Loc, detectors: Names, names: Iterable[str] | None = None
) -> Iterator[Found]:
    """Whether the detector of a rule is there, and can work with its parameters.

    Args:
        alert: as written.
        loc: of the rule.
        detectors: the registry.
        names: the criteria that it may read; None where it belongs to no scorecard, and may read none.
    """
    name, params = alert.get("detect"), alert.get("params") or {}
    if not isinstance(name, str):
        return
    try:
        kind = detectors.get(name)
    except ConfigError as error:
        yield Found((*loc, "detect"), str(error))
        return
    if not isinstance(params, Mapping):
        return
    at = (*loc, "params") if "params" in alert else (*loc, "detect")
    try:
        built = kind(kind.Params.model_validate(dict(params)))
    except ValidationError as error:
        yield from worded(error, kind.Params, prefix=(*loc, "params"))
        return
    except ConfigError as error:
        yield Found(at, str(error))
        return
    if names is None and built.criteria:
        yield Found(at, HOMELESS.format(built.criteria[0]))
    known = list(names) if names is not None else []
    for criterion in built.criteria if known else ():
        where = next((key for key, value in params.items() if value == criterion), "")
        yield from _known(criterion, (*at, where) if where else at, known)


def card_detector_problems(card: Any, detectors: Names) -> Iterator[Found]:
    """The same of all rules of a scorecard."""
    if isinstance(card, Mapping):
        for place, alert in mappings(card.get("alerts")):
            yield from detector_problems(alert, ("alerts", place), detectors, names_of(card))


def names_of(card: Mapping[str, Any]) -> list[str]:
    """The names of its criteria."""
    return [name for _, c in mappings(card.get("criteria")) if isinstance(name := c.get("name"), str)]


def _out_of_place(alert: Mapping[str, Any], loc: Loc, written: list[str]) -> Iterator[Found]:
    """Fields that the rule's way to write a condition does not have."""
    detected = written == ["detect"]
    for field in _LINES_ONLY if detected else ():
        if field in alert:
            yield Found((*loc, field), "belongs to 'mean' and 'meter'; a detector's is under 'params'", at_key=True)
    for field in _DETECT_ONLY if written and not detected else ():
        if alert.get(field):
            yield Found((*loc, field), "belongs to a rule with 'detect'", at_key=True)
    if alert.get("kill_switch") is True and alert.get("detect") != STOPS:
        yield Found((*loc, "kill_switch"), f"goes with 'detect: {STOPS}' only", at_key=True)


def _known(name: Any, loc: Loc, names: list[str]) -> Iterator[Found]:
    if isinstance(name, str) and name and names and name not in names:
        yield Found(loc, f"no criterion named {name!r}{nearest(name, names)}")


def _threshold(mean: Mapping[str, Any], loc: Loc, bounds: tuple[float, float]) -> Iterator[Found]:
    below, above = mean.get("below"), mean.get("above")
    if (below is None) == (above is None):
        yield Found(loc, "needs exactly one of 'below' and 'above'")
    low, high = bounds
    if is_number(below) and 0 <= below <= low:
        yield Found((*loc, "below"), f"can never be crossed: this criterion's mean is never below {low:g}")
    if is_number(above) and high <= above <= 1:
        yield Found((*loc, "above"), f"can never be crossed: this criterion's mean is never above {high:g}")


def _range(card: Mapping[str, Any], name: Any) -> tuple[float, float]:
    """The lowest and the highest value that a criterion can have."""
    for _, criterion in mappings(card.get("criteria")):
        judge = criterion.get("judge")
        if criterion.get("name") == name and isinstance(judge, Mapping) and judge.get("kind") == "category":
            values = [v for v in graded_values(judge.get("categories")) if 0 <= v <= 1]
            return (min(values), max(values)) if values else (0.0, 1.0)
    return 0.0, 1.0
