"""Store → alerts about judges: stopped, failing, suspect, retiring, replaced by a fallback, or short of money.

These alerts need no scorecard: they watch what all scorecards rely on. Each is told once, resolves by itself, and is
committed with its incident and its outbox rows. Two overseers at once do no harm: who finds an alert locked leaves it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from evalpipe.alerts.rules import Life, Severity
from evalpipe.alerts.state import Transition
from evalpipe.channels.base import Channel
from evalpipe.detectors.base import Finding
from evalpipe.errors import ConfigError
from evalpipe.judges.base import JudgeConfig
from evalpipe.judges.retirement import retiring
from evalpipe.pipeline.telling import Telling, Words
from evalpipe.scorecard.model import Scorecard
from evalpipe.store import alerting, anchors, judge_states, judge_watch
from evalpipe.store.sql import Store, Transaction

STOPPED: Final = "judge-stopped"
FAILING: Final = "judge-failing"
SUSPECT: Final = "judge-suspect"
RETIRING: Final = "judge-retiring"
FALLBACK: Final = "judge-fallback"
CAP_NEAR: Final = "judge-cap-near"
CAP_EXHAUSTED: Final = "judge-cap-exhausted"

NEAR: Final = 0.9
"""Share of a cap from which somebody should know."""
USED_UP: Final = 0.99
"""Share from which it counts as used up: what is left is less than a call may cost."""
_SEVERITIES: Final[Mapping[str, Severity]] = {
    STOPPED: "SEV2",
    SUSPECT: "SEV2",
    FAILING: "SEV3",
    RETIRING: "SEV3",
    FALLBACK: "SEV3",
    CAP_NEAR: "SEV3",
    CAP_EXHAUSTED: "SEV3",
}
_KEEP_FIRING: Final[Mapping[str, timedelta]] = {FAILING: timedelta(minutes=2), FALLBACK: timedelta(minutes=5)}
"""Against flapping: a breaker opens and closes, and a fallback is not asked every second."""

_ENDED: Final = "; this has ended, and the alert resolves soon unless it comes back"
"""What a summary ends with while an alert is kept firing against flapping."""

log = logging.getLogger("evalpipe")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that somebody should hear about.

    Attributes:
        rule: one of this module's.
        judge: its version; of a cap, the scope.
        reason: for people.
        place: ``scorecard/criterion`` where it is about one; "" else.
        lasts: False where there is no trouble, and ``reason`` says why not: it ends an alert, and begins none.
    """

    rule: str
    judge: str
    reason: str
    place: str = ""
    lasts: bool = True

    @property
    def alert_id(self) -> str:
        """Of its alert: the same as long as it is the same trouble of the same judge."""
        return f"judges/{self.rule}/{self.judge}{f'/{self.place}' if self.place else ''}"


class Oversee:
    """The stage, with what it needs.

    Args:
        store: where.
        scorecards: whose judges are watched.
        channels: every notification goes to each.
        source: CloudEvents' ``source``.
        config_of: what a scorecard's word for a model means; may raise ConfigError.
        caps: US dollars a day by scope of the purse.
    """

    def __init__(
        self,
        store: Store,
        scorecards: Sequence[Scorecard],
        channels: Mapping[str, Channel],
        *,
        source: str,
        config_of: Callable[[str], JudgeConfig],
        caps: Mapping[str, float],
    ) -> None:
        self._store = store
        self._models = sorted({
            model for card in scorecards for c in card.criteria if c.judge is not None for model in c.judge.models
        })  # fmt: skip
        self._telling = Telling(channels, source)
        self._config_of = config_of
        self._caps = caps

    def __call__(self, now: datetime) -> list[Transition]:
        """Look at every judge, and tell what changed."""
        return self._store.patiently(lambda tx: self._look(tx, now))

    def _look(self, tx: Transaction, now: datetime) -> list[Transition]:
        found = {trouble.alert_id: trouble for trouble in self._troubles(tx, now)}
        past = {
            row["alert_id"]: Trouble(row["rule"], row["variant"], row["summary"].removesuffix(_ENDED), _place(row))
            for row in alerting.list_alerts(tx)
            if not row["scorecard"] and row["rule"] in _SEVERITIES and row["status"] in {"pending", "firing"}
        }
        found = {alert_id: trouble for alert_id, trouble in found.items() if trouble.lasts or alert_id in past}
        transitions = []
        for alert_id in sorted(found.keys() | past.keys()):
            trouble = found.get(alert_id) or past[alert_id]
            change = self._advance(tx, alert_id, trouble, is_there=alert_id in found and trouble.lasts, now=now)
            if change is not None:
                transitions.append(change)
        return transitions

    def _troubles(self, tx: Transaction, now: datetime) -> Iterator[Trouble]:
        yield from _of_breakers(tx, now)
        yield from _of_anchors(tx)
        yield from self._of_retirement(now)
        for row in judge_watch.fallbacks(tx, now):
            minutes = judge_watch.WINDOW // timedelta(minutes=1)
            reason = (
                f"{row.scorer} gave {row.n} scores of {row.scorecard}/{row.criterion} in the last {minutes} min: it is "
                f"step {row.step} of the ladder, those before it do not answer; its scores are an epoch of their own"
            )
            yield Trouble(FALLBACK, row.scorer, reason, f"{row.scorecard}/{row.criterion}")
        yield from self._of_money(tx, now)

    def _of_retirement(self, now: datetime) -> Iterator[Trouble]:
        for model in self._models:
            try:
                config = self._config_of(model)
                reason = retiring(config, now.date())
            except ConfigError as error:
                log.debug("no retirement of %s: %s", model, error)
                continue
            if reason:
                yield Trouble(RETIRING, f"{config.provider}:{config.model}", reason)

    def _of_money(self, tx: Transaction, now: datetime) -> Iterator[Trouble]:
        spent = judge_watch.spending(tx, now) if self._caps else {}
        for scope, cap in sorted(self._caps.items()):
            share = spent.get(scope, 0.0) / cap if cap > 0 else 1.0
            if share >= NEAR:
                used_up = share >= USED_UP
                what = (
                    "is used up: less urgent work is shed, and the rest waits for no judge" if used_up else "runs short"
                )
                reason = f"the cap of {cap:g} USD a day of {scope} {what} ({share:.0%} until midnight UTC)"
                yield Trouble(CAP_EXHAUSTED if used_up else CAP_NEAR, scope, reason)

    def _advance(
        self, tx: Transaction, alert_id: str, trouble: Trouble, *, is_there: bool, now: datetime
    ) -> Transition | None:
        severity, criterion = _SEVERITIES[trouble.rule], trouble.place.rpartition("/")[2]
        life = Life(
            name=trouble.rule,
            keep_firing_for=_KEEP_FIRING.get(trouble.rule, timedelta(0)),
            severity=severity,
        )
        keys = {
            "scorecard": "",
            "rule": trouble.rule,
            "service": "",
            "environment": "",
            "variant": trouble.judge,
            "kind": "judge",
            "severity": severity,
        }
        return self._telling.advance(
            tx,
            alert_id,
            keys,
            life,
            Finding(violated=is_there, value=float(is_there), n=1, reason=trouble.reason),
            now,
            about=f"{trouble.judge} on {trouble.place}" if trouble.place else trouble.judge,
            words=_words(trouble, is_there=is_there),
            labels={"judge": trouble.judge} | ({"criterion": criterion} if criterion else {}),
            incident=severity in {"SEV1", "SEV2"},
        )


def _place(row: Mapping[str, Any]) -> str:
    """What an alert's id has behind the judge."""
    return str(row["alert_id"]).removeprefix(Trouble(row["rule"], row["variant"], "").alert_id).removeprefix("/")


def _words(trouble: Trouble, *, is_there: bool) -> Words:
    def say(transition: Transition) -> str:
        if transition.after == "resolved":
            reason = f"it is over: {trouble.reason}"
        else:
            reason = trouble.reason if is_there else trouble.reason + _ENDED
        return reason

    return say


def _of_breakers(tx: Transaction, now: datetime) -> Iterator[Trouble]:
    for judge, state in sorted(judge_states.read(tx).items()):
        why = state.reason or state.cause or "no reason is known"
        if state.state == "stopped":
            advice = "it is asked nothing until it is mended and resumed"
            yield Trouble(STOPPED, judge, f"judge {judge} is stopped: {why}; {advice}")
        elif (since := judge_watch.nobody_asks(tx, judge, state, now)) is not None:
            idle = f"since {since:%Y-%m-%d %H:%M} UTC it may be tried again, and nobody has asked it since"
            yield Trouble(FAILING, judge, f"judge {judge} failed: {why}; {idle}", lasts=False)
        elif state.state != "closed":
            yield Trouble(FAILING, judge, f"judge {judge} fails: {why}; it is tried again by itself")


def _of_anchors(tx: Transaction) -> Iterator[Trouble]:
    for row in anchors.health(tx):
        if row["state"] == "suspect" and row["current"]:
            place = f"{row['scorecard']}/{row['criterion']}"
            reason = (
                f"judge {row['judge_version']} is suspect on {place}: {row['reason']}; rollouts that it grades can "
                "only hold until its new behaviour is accepted ('evalpipe judge anchors accept') or it is replaced"
            )
            yield Trouble(SUSPECT, row["judge_version"], reason, place)
