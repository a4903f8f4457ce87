"""Outbox → alerts about delivery itself: a rollback that somebody has not heard of, and a channel that is disabled.

Each is told once, through the channels that do work, resolves by itself, and is committed with its incident and its
outbox rows. Two at once do no harm: who finds an alert locked leaves it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final

from sqlalchemy import select

from evalpipe.alerts.rules import Life, Severity
from evalpipe.alerts.state import Transition
from evalpipe.channels.base import Channel
from evalpipe.channels.stdout import Stdout
from evalpipe.detectors.base import Finding
from evalpipe.pipeline.telling import Telling
from evalpipe.store import endpoints, outbox
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import alerts, rollouts

UNDELIVERED: Final = "rollback-undelivered"
DISABLED: Final = "channel-disabled"
PATIENCE: Final = timedelta(seconds=60)
"""By then every channel must have delivered what takes a canary out of traffic."""
_SEVERITIES: Final[Mapping[str, Severity]] = {UNDELIVERED: "SEV1", DISABLED: "SEV2"}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that somebody should hear about.

    Attributes:
        rule: one of this module's.
        what: the channel, or the decision.
        service: whose; "" of a channel.
        reason: for people.
    """

    rule: str
    what: str
    service: str
    reason: str

    @property
    def alert_id(self) -> str:
        """Of its alert."""
        return f"delivery/{self.rule}/{self.what}"


class Undelivered:
    """The stage, with what it needs.

    Args:
        store: where.
        channels: every notification goes to each; what goes to standard output alone counts as undelivered.
        source: CloudEvents' ``source``.
    """

    def __init__(self, store: Store, channels: Mapping[str, Channel], *, source: str) -> None:
        self._store = store
        self._names = frozenset(channels)
        self._quiet = [name for name, channel in channels.items() if isinstance(channel, Stdout)]
        self._telling = Telling(channels, source)

    def __call__(self, now: datetime) -> list[Transition]:
        """Look at what is owed, and tell what changed."""
        with self._store.read() as tx:
            if not self._troubles(tx, now) and not _standing(tx):
                return []
        return self._store.patiently(lambda tx: self._look(tx, now))

    def _look(self, tx: Transaction, now: datetime) -> list[Transition]:
        found = self._troubles(tx, now)
        standing = _standing(tx)
        over = {id_: _over(tx, trouble) for id_, trouble in standing.items() if id_ not in found}
        changes = [
            self._advance(tx, trouble, is_there=id_ in found, now=now)
            for id_, trouble in sorted((found | over).items())
        ]
        return [change for change in changes if change is not None]

    def _troubles(self, tx: Transaction, now: datetime) -> dict[str, Trouble]:
        found = [*self._of_rollbacks(tx, now), *_of_channels(tx, self._names)]
        return {trouble.alert_id: trouble for trouble in found}

    def _of_rollbacks(self, tx: Transaction, now: datetime) -> Iterator[Trouble]:
        unheard = [u for u in outbox.undelivered(tx, now - PATIENCE, self._quiet) if self._matters(u)]
        for (rollout_id, seq), letters in groupby(unheard, key=lambda u: (u.subject, u.seq)):
            query = select(rollouts.c.service, rollouts.c.canary).where(rollouts.c.rollout_id == rollout_id)
            row = tx.connection.execute(query).first()
            whose = f"canary {row.canary} of {row.service}" if row else f"the canary of {rollout_id}"
            missing = list(letters)
            names = ", ".join(u.channel for u in missing)
            reason = (
                f"not delivered to {names}: {whose} is to be taken out of traffic, decided "
                f"{missing[0].at:%Y-%m-%d %H:%M:%S} UTC; take it out by hand, and see 'evalpipe deliveries'"
            )
            what = rollout_id if seq is None else f"dec_{rollout_id}_{seq}"
            yield Trouble(UNDELIVERED, what, row.service if row else "", reason)

    def _matters(self, unheard: outbox.Unheard) -> bool:
        """A channel that is disabled, or not configured any more, is missed where no other has it."""
        return not unheard.elsewhere or (unheard.channel in self._names and not unheard.disabled)

    def _advance(self, tx: Transaction, trouble: Trouble, *, is_there: bool, now: datetime) -> Transition | None:
        severity = _SEVERITIES[trouble.rule]
        life = Life(trouble.rule, severity=severity)
        keys = {
            "scorecard": "",
            "rule": trouble.rule,
            "service": trouble.service,
            "environment": "",
            "variant": trouble.what,
            "kind": "delivery",
            "severity": severity,
        }
        about = trouble.service or trouble.what
        labels = {"decision_id" if trouble.rule == UNDELIVERED else "channel": trouble.what}
        finding = Finding(violated=is_there, value=float(is_there), n=1, reason=trouble.reason)
        return self._telling.advance(
            tx, trouble.alert_id, keys, life, finding, now, about=about, words=lambda _: trouble.reason, labels=labels
        )


def _of_channels(tx: Transaction, names: Collection[str]) -> Iterator[Trouble]:
    for row in endpoints.listing(tx):
        if row["disabled_at"] is not None and row["channel"] in names:
            name = row["channel"]
            reason = (
                f"nothing is sent to channel {name} since {row['disabled_at']:%Y-%m-%d %H:%M} UTC: {row['reason']}; "
                f"mend it, then 'evalpipe deliveries enable {name}'"
            )
            yield Trouble(DISABLED, name, "", reason)


def _standing(tx: Transaction) -> dict[str, Trouble]:
    """The alerts of this stage that fire."""
    query = select(alerts).where(alerts.c.rule.in_(_SEVERITIES), alerts.c.scorecard == "", alerts.c.status == "firing")
    found = [Trouble(row.rule, row.variant, row.service, row.summary) for row in tx.connection.execute(query)]
    return {trouble.alert_id: trouble for trouble in found}


def _over(tx: Transaction, trouble: Trouble) -> Trouble:
    """The same trouble, with why it is none any more."""
    reason = "it is delivered, or a later decision"
    if trouble.rule == DISABLED:
        row = next((row for row in endpoints.listing(tx) if row["channel"] == trouble.what), None)
        there = row is not None and row["disabled_at"] is None
        reason = (
            f"enabled again by {row['actor']}: {row['reason']}" if row and there else "it is not configured any more"
        )
    return Trouble(trouble.rule, trouble.what, trouble.service, reason)
