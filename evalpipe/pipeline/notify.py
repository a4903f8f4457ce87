"""Alerts → outbox: tell people, grouped, once, and as often as it takes; see ``evalpipe.alerts.manager``.

What is told, that it was told, and the letters to the channels are one transaction, and one notifier at a time makes
it: whoever dies in it has told nobody, and whoever comes second sees what the first one told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from evalpipe.alerts.escalation import RANK
from evalpipe.alerts.grouping import Group, Notice
from evalpipe.alerts.inhibition import JUDGE_TROUBLES
from evalpipe.alerts.manager import manage, muted
from evalpipe.alerts.message import notice_data
from evalpipe.alerts.routing import Routing, Standing
from evalpipe.alerts.rules import Severity
from evalpipe.channels.base import Channel
from evalpipe.incidents.incident import id_of_alert
from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED, Notification
from evalpipe.pipeline.telling import event_id
from evalpipe.store import alerting, notices, outbox, silences
from evalpipe.store.sql import Store, Transaction

log = logging.getLogger("evalpipe")

_LABELS: Final = (
    "alert_id", "rule", "kind", "severity", "service", "environment", "variant", "feature", "release_id", "scorecard",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the alerts comes to: groups before and after, notices, and alerts newly muted or unmuted."""

    before: dict[str, Group]
    after: dict[str, Group]
    notices: list[Notice]
    muted: dict[str, str]

    @property
    def changes(self) -> bool:
        """Whether anything is to be written."""
        return bool(self.notices or self.muted) or self.before != self.after


class Notify:
    """The stage, with what it needs.

    Args:
        store: where alerts are read, and the outbox and what was told are written.
        channels: by name; routes name them.
        source: CloudEvents' ``source``.
        routing: who hears of what.
        url: where the pages are; "" if nobody has said.
    """

    def __init__(
        self,
        store: Store,
        channels: Mapping[str, Channel],
        *,
        source: str,
        routing: Routing | None = None,
        url: str = "",
    ) -> None:
        self._store = store
        self._channels = channels
        self._source = source
        self._routing = routing or Routing()
        self._url = url

    def __call__(self, now: datetime) -> list[Notice]:
        """Tell what there is to tell at ``now``."""
        with self._store.read() as tx:  # most of the time there is nothing to do, and nobody need wait for that
            if not notices.fires_anywhere(tx) or not self._look(tx, now).changes:
                return []
        return self._store.patiently(lambda tx: self._tell(tx, now))

    def _tell(self, tx: Transaction, now: datetime) -> list[Notice]:
        notices.lock(tx)
        look = self._look(tx, now)
        for notice in look.notices:
            self._post(tx, notice)
        for alert_id, by in look.muted.items():
            notices.mute(tx, alert_id, by)
        notices.save(tx, look.before, look.after, now)
        return look.notices

    def _look(self, tx: Transaction, now: datetime) -> _Look:
        before = notices.groups(tx)
        ids = {alert_id for group in before.values() for alert_id in group.marks}
        rows = [row for row in notices.standing(tx, ids) if row["severity"] in RANK]
        alerts, quiet = [_standing(row) for row in rows], silences.active(tx, now)
        after, found = manage(alerts, self._routing, quiet, before, now)
        by = muted(alerts, self._routing, quiet, now)
        noted = {row["alert_id"]: row["muted_by"] for row in rows}
        changed = {id_: by.get(id_, "") for id_, was in noted.items() if by.get(id_, "") != was}
        return _Look(before, after, found, changed)

    def _post(self, tx: Transaction, notice: Notice) -> None:
        rows = notices.whole(tx, [*notice.firing, *notice.resolved])
        told = {whole: notice_data(notice, rows, self._url, whole=whole) for whole in (False, True)}
        type_ = ALERT_FIRING if notice.status == "firing" else ALERT_RESOLVED
        group = notice.group
        names = [name for name in self._channels if notice.channels is None or name in notice.channels]
        for name in names:
            id_ = event_id(group.key, group.since.isoformat(), str(group.number), name)
            channel = self._channels[name]
            data = told[getattr(channel, "whole", False)]
            notification = Notification(id_, type_, group.key, notice.at, data, self._source)
            try:
                body = channel.render(notification)
            except Exception:  # a plugin with a mistake must not keep all others from hearing
                log.exception("channel %s cannot render %s: nobody is told by it", name, id_)
                continue
            outbox.post(tx, notification, name, body)
        notices.log(tx, notice, names)
        for alert_id in notice.escalated:
            if (row := rows.get(alert_id)) is not None and row["fired_at"] is not None:
                text = f"nobody has acknowledged {row['rule']} in time; told to {', '.join(names) or 'no channel'}"
                alerting.note_incident(tx, id_of_alert(alert_id, row["fired_at"]), text, notice.at)


def _standing(row: Mapping[str, Any]) -> Standing:
    labels = labels_of(row)
    return Standing(
        alert_id=row["alert_id"],
        severity=cast("Severity", row["severity"]),
        firing=row["status"] == "firing",
        fired_at=row["fired_at"] or row["updated_at"],
        labels=labels,
        acked=notices.is_acked(row),
        dry_run=bool(row["dry_run"]),
        judges=frozenset(labels.get("judge", "").split(", ")) - {""} if row["kind"] != "judge" else frozenset(),
    )


def labels_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The labels of an alert that routes, silences and inhibition match; its own names win over the rule's labels."""
    found = {**(row["labels"] or {}), **{name: str(row[name]) for name in _LABELS}}
    if row["rule"] in JUDGE_TROUBLES and not row["scorecard"]:
        found["judge"] = row["variant"]
        rest = row["alert_id"].removeprefix(f"judges/{row['rule']}/{row['variant']}").strip("/")
        found["scorecard"], _, found["criterion"] = rest.partition("/")
    return found
