"""The doctor's look at alerting: rules that cannot find anything, and why, and whether anybody evaluates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from evalpipe.cli.doctor_finding import Finding
from evalpipe.errors import ConfigError
from evalpipe.scorecard.alert_rule import AlertRule
from evalpipe.store import alerting, baselines, evaluations, prints
from evalpipe.store.sql import Transaction
from evalpipe.wiring import Wiring, now

LATE: Final = timedelta(minutes=3)
"""Rules are evaluated several times a minute, whether there are new scores or not."""
SHOWN: Final = 5
"""So many names are said; the rest is a number."""
CAPTURE: Final = "capture a"
"""What the reason of an alert that lacks its baseline advises: no baseline, one of another epoch, one too small."""
USUAL_KEYS: Final[Mapping[str, str]] = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


def look(wiring: Wiring) -> list[Finding]:
    """What is wrong with alert rules and fingerprints."""
    rules = written(wiring)
    with wiring.store.read() as tx:
        rows = [row for row in alerting.list_alerts(tx) if (row["scorecard"], row["rule"]) in rules]
        found = [
            *_evaluated(tx, rules),
            *_unarmed(rows),
            *_baselines(tx, rules),
            *_blind(rules, rows),
            *_fingerprints(tx, wiring, rules),
        ]
    if found:
        return found
    if not rules:
        advice = "write 'alerts:' in a scorecard, or set EVALPIPE_ALERTS: docs/alerts.md"
        return [Finding("alerts", "warn", "there is no alert rule", advice)]
    firing = sum(row["status"] == "firing" for row in rows)
    return [Finding("alerts", "ok", f"{_n(len(rules), 'rule')}, {_n(len(rows), 'place')} looked at, {firing} firing")]


def written(wiring: Wiring) -> dict[tuple[str, str], AlertRule]:
    """Every alert rule by scorecard ("" for none) and name."""
    found: dict[tuple[str, str], AlertRule] = {
        (card.name, rule.name): rule for card in wiring.scorecards for rule in card.alerts
    }
    return found | {(entry.scorecard, entry.name): entry for _, entry in wiring.alerting.entries}


def _evaluated(tx: Transaction, rules: Mapping[tuple[str, str], AlertRule]) -> Iterable[Finding]:
    last = evaluations.last(tx)
    if last is None or not rules:
        return
    age = now() - last.at
    if age > LATE:
        detail = f"the rules were last evaluated {age.total_seconds() / 60:.0f} minutes ago"
        advice = "'evalpipe worker --queues evaluate' and 'evalpipe beat' must run; their logs say what stops them"
        yield Finding("alerts", "bad", detail, advice)
    if last.errors:
        detail = f"cannot be evaluated: {_names(last.errors)}; their alerts are as on_error says"
        yield Finding("alerts", "bad", detail, "the log of 'evalpipe worker --queues evaluate' has the reason")


def _unarmed(rows: Iterable[Mapping[str, Any]]) -> Iterable[Finding]:
    lacking = {_name(row): row for row in rows if CAPTURE in row["summary"]}
    if lacking:
        first = next(iter(lacking.values()))
        service = f" --service {first['service']}" if first["service"] else ""
        advice = f"'evalpipe baseline capture NAME{service}', or wait for the automatic one: docs/baselines.md"
        yield Finding("alerts", "warn", f"not armed for want of a baseline: {_names(lacking)}", advice)


def _baselines(tx: Transaction, rules: Mapping[tuple[str, str], AlertRule]) -> Iterable[Finding]:
    """Baselines that rules name, and that are not there."""
    there = {header.name for header in baselines.listing(tx)} | {"latest"}
    for (card, name), rule in rules.items():
        wanted = rule.normal.baseline if rule.normal is not None else None
        if wanted is not None and wanted not in there:
            detail = f"rule {_said(card, name)} compares with baseline {wanted!r}, which does not exist"
            yield Finding(
                "alerts", "bad", detail, "'evalpipe baseline list' shows those that do, 'latest' is the newest"
            )


def _blind(rules: Mapping[tuple[str, str], AlertRule], rows: Iterable[Mapping[str, Any]]) -> Iterable[Finding]:
    """Rules that no place belongs to, though others have some."""
    seen = {(row["scorecard"], row["rule"]) for row in rows}
    never = [_said(*key) for key in rules if key not in seen]
    if seen and never:
        advice = "does their 'match' fit what 'evalpipe meter' shows, and is there a score of what they watch?"
        yield Finding("alerts", "warn", f"never had anything to look at: {_names(never)}", advice)


def _fingerprints(tx: Transaction, wiring: Wiring, rules: Mapping[tuple[str, str], AlertRule]) -> Iterable[Finding]:
    try:
        declared = {one.name: one for one in wiring.fingerprints}
    except ConfigError as error:
        yield Finding("fingerprints", "bad", str(error).splitlines()[0], "mend the file of EVALPIPE_FINGERPRINTS")
        return
    ran = {row["name"]: row for row in prints.listing(tx)}
    for (card, name), rule in rules.items():
        wanted = rule.params.get("fingerprint") if rule.detect == "fingerprint" else None
        if wanted is not None and wanted not in declared and wanted not in ran:
            detail = f"rule {_said(card, name)} watches fingerprint {wanted!r}, which no file declares"
            yield Finding("fingerprints", "bad", detail, "declare it in the file of EVALPIPE_FINGERPRINTS")
    for name, one in declared.items():
        variable = one.model.api_key or ("" if one.model.base_url else USUAL_KEYS[one.model.protocol])
        if variable and not os.environ.get(variable):
            detail = f"{name}: the variable {variable} with the model's key is not set here"
            yield Finding("fingerprints", "warn", detail, "set it for 'evalpipe worker --queues fingerprint'")
        elif said := ran.get(name, {}).get("error"):
            yield Finding("fingerprints", "warn", f"{name}: {said}", f"'evalpipe fingerprint run {name}' asks now")


def _name(row: Mapping[str, Any]) -> str:
    return _said(row["scorecard"], row["rule"])


def _said(card: str, name: str) -> str:
    return f"{card}/{name}" if card else name


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _n(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
