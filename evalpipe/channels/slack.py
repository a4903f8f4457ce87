"""Slack: a message by an incoming webhook.

Everything that is told is ``plain_text``, and escaped on top: no markup, mention or link of a judged text is ever one
in Slack. Its limits (characters of a header 150, of a text 3,000, of a field 2,000; 10 fields; 50 blocks; about one
message a second) are those of Slack's "Block Kit" and "Rate limits" reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from pydantic import Field

from evalpipe.channels.base import TIMEOUT_S, Channel, ChannelConfig, Delivery, Secret, channels
from evalpipe.channels.http import UNREADABLE, Request, check_secret_url, send
from evalpipe.channels.notice import Notice, PeopleConfig, examples, line, notice_of, numbers
from evalpipe.channels.pace import Pace
from evalpipe.notification import Notification

HEADER, TEXT, FIELD, FIELDS, BLOCKS = 150, 3_000, 2_000, 10, 50
GAP_S: Final = 1.0
_ALERTS: Final = 10
_EXAMPLES: Final = 3
_SIGNS: Final = {"SEV1": ":red_circle:", "SEV2": ":large_orange_circle:", "SEV3": ":large_yellow_circle:"}


class SlackConfig(PeopleConfig):
    """Which webhook takes the messages."""

    url: Secret = Field(repr=False, description="The incoming webhook's URL; who knows it can post.")
    timeout_s: float = Field(TIMEOUT_S - 1, gt=0, le=TIMEOUT_S - 1, description="Seconds for one attempt.")


@channels.register("slack")
class Slack(Channel):
    """Posts one message for each notification; a message cannot be changed later, so a resolution is one of its own."""

    Config = SlackConfig
    in_order = True

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, SlackConfig)
        check_secret_url(config.url, "the Slack webhook")
        self._config = config
        self._pace = Pace(GAP_S)

    def render(self, notification: Notification) -> bytes:
        """The message; empty for what is not told."""
        notice = notice_of(notification, self._config)
        if notice is None:
            return b""
        message = {
            "text": _escaped(f"{notice.headline}: {notice.summary}".rstrip(": "), TEXT),
            "mrkdwn": False,
            "unfurl_links": False,
            "unfurl_media": False,
            "blocks": list(_blocks(notice))[:BLOCKS],
        }
        return json.dumps(message, sort_keys=True, separators=(",", ":")).encode()

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """POST ``body``, a second after the message before."""
        if (refused := self._pace.wait(at)) is not None:
            return refused
        headers = {"content-type": "application/json; charset=utf-8", "user-agent": "evalpipe"}
        url = self._config.url
        done = send(
            Request("POST", url, body, headers),
            timeout_s=self._config.timeout_s,
            at=at,
            secrets=[url, *url.split("/")[3:]],
            final=UNREADABLE,
        )
        return self._pace.heard(done, at)


def _blocks(notice: Notice) -> Iterator[dict[str, Any]]:
    sign = ":large_green_circle:" if notice.status == "resolved" else _SIGNS.get(notice.severity, ":white_circle:")
    yield {"type": "header", "text": _plain(f"{sign} {notice.headline}", HEADER)}
    if notice.summary:
        yield {"type": "section", "text": _plain(notice.summary, TEXT)}
    if fields := [_plain(f"{name}: {value}", FIELD) for name, value in notice.facts[:FIELDS]]:
        yield {"type": "section", "fields": fields}
    for alert in notice.alerts[:_ALERTS]:
        told = " · ".join(f"{name} {value}" for name, value in numbers(alert))
        reason = line(alert.get("reason"), 600)
        where = [line(alert.get(name), 100) for name in ("feature", "criterion") if alert.get(name)]
        head = " ".join([line(alert.get("severity")), line(alert.get("status")), line(alert.get("rule"), 200), *where])
        yield {
            "type": "section",
            "text": _plain("\n".join(part for part in (head.strip(), reason, told) if part), TEXT),
        }
    more = notice.n_alerts - min(len(notice.alerts), _ALERTS)
    if more > 0:
        yield {"type": "context", "elements": [_plain(f"and {more} more", TEXT)]}
    if notice.alerts and notice.status == "firing" and (quotes := examples(notice.alerts[0], _EXAMPLES)):
        yield {"type": "section", "text": _plain("\n".join(("The worst:", *quotes)), TEXT)}
    if notice.url:
        button = {"type": "button", "text": _plain("Open in evalpipe", 75), "url": notice.url}
        yield {"type": "actions", "elements": [button]}
    yield {"type": "context", "elements": [_plain(f"evalpipe {notice.key}", TEXT)]}


def _plain(text: str, most: int) -> dict[str, Any]:
    return {"type": "plain_text", "emoji": True, "text": _escaped(text, most)}


def _escaped(text: str, most: int) -> str:
    """``text`` with ``&``, ``<`` and ``>`` as Slack writes them, cut before one of them is cut in two."""
    found: list[str] = []
    left = most
    for character in text:
        written = _ESCAPES.get(character, character)
        if len(written) > left:
            break
        found.append(written)
        left -= len(written)
    return "".join(found)


_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
