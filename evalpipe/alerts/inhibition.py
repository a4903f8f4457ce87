"""Alerts that others make superfluous, as Alertmanager inhibits: while the source fires, the target is not told.

Two are built in. A SEV1 mutes the SEV3 and SEV4 of its service and environment. A judge in trouble mutes the alerts
whose values come from it, SEV1 aside: what may hurt people is told though its judge is in doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from evalpipe.alerts.routing import Inhibition, Standing
from evalpipe.alerts.silence import fits

JUDGE_TROUBLES: Final = frozenset({"judge-stopped", "judge-failing", "judge-suspect"})
"""Rules of the alerts about judges that make their scores worth little."""
_PLACE: Final = ("service", "environment")


def inhibited(alerts: Iterable[Standing], rules: Iterable[Inhibition]) -> dict[str, str]:
    """The alerts that fire and are not told, each with the alert that mutes it.

    As in Alertmanager, a source mutes though a silence covers it. A dry run mutes nothing, since nobody hears of it.
    """
    firing = sorted((a for a in alerts if a.firing and not a.dry_run), key=lambda a: (-a.rank, a.alert_id))
    ruled = [(rule, [a for a in firing if fits(rule.source, a.labels)]) for rule in rules]
    severe = {_values(a.labels, *_PLACE): a for a in reversed(firing) if a.severity == "SEV1"}
    judges = [a for a in firing if a.labels.get("rule") in JUDGE_TROUBLES]
    found: dict[str, str] = {}
    for target in firing:
        by = (
            _by_severity(target, severe)
            or _by_judge(target, judges)
            or next((source for rule, sources in ruled if (source := _by_rule(target, rule, sources))), None)
        )
        if by is not None:
            found[target.alert_id] = by.alert_id
    return found


def _by_severity(target: Standing, severe: Mapping[tuple[str, ...], Standing]) -> Standing | None:
    if target.severity not in {"SEV3", "SEV4"} or not target.labels.get("service"):
        return None
    return severe.get(_values(target.labels, *_PLACE))


def _by_judge(target: Standing, judges: Iterable[Standing]) -> Standing | None:
    if target.severity == "SEV1" or not target.judges:
        return None
    for source in judges:
        place = _values(source.labels, "scorecard", "criterion")
        everywhere = place == ("", "")
        if source.labels.get("judge", "") in target.judges and (
            everywhere or place == _values(target.labels, "scorecard", "criterion")
        ):
            return source
    return None


def _by_rule(target: Standing, rule: Inhibition, sources: Iterable[Standing]) -> Standing | None:
    if not fits(rule.target, target.labels):
        return None
    # In Alertmanager two labels that are both missing are equal, and one alert can mute the whole house.
    place = _values(target.labels, *rule.equal)
    if not all(place):
        return None
    is_source = fits(rule.source, target.labels)
    for source in sources:
        if source.alert_id == target.alert_id or _values(source.labels, *rule.equal) != place:
            continue
        if not (is_source and fits(rule.target, source.labels)):  # two that are both would mute one another
            return source
    return None


def _values(labels: Mapping[str, str], *names: str) -> tuple[str, ...]:
    return tuple(labels.get(name, "") for name in names)
