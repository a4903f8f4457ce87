"""Slack, PagerDuty and Alertmanager against a recording server that checks what they take, refuses and hangs up."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from typing import Any

import jsonschema_rs
import pytest
from channel_schemas import ALERTMANAGER, PAGERDUTY, PAGERDUTY_CHANGE, SLACK
from hypothesis import given, settings
from hypothesis import strategies as st
from notices import AT, FIRED, INJECTED, alert, decision, notice, old_alert
from recording import Recorder, Seen, always
from stopwatch import assert_quick

from evalpipe.channels.alertmanager import Alertmanager, AlertmanagerConfig
from evalpipe.channels.base import Channel, Delivery
from evalpipe.channels.email import Email, EmailConfig
from evalpipe.channels.pagerduty import PagerDuty, PagerDutyConfig
from evalpipe.channels.slack import GAP_S, Slack, SlackConfig
from evalpipe.errors import ConfigError
from evalpipe.notification import ADVANCE, HOLD, ROLLBACK, ROLLBACK_INEFFECTIVE, ROLLBACK_VERIFIED, Notification

KEY = "R0UT1NGKEY0123456789abcdef012345"
SCHEMAS = {
    "/services/T0/B0/" + KEY: jsonschema_rs.validator_for(SLACK, validate_formats=True),
    "/v2/enqueue": jsonschema_rs.validator_for(PAGERDUTY, validate_formats=True),
    "/v2/change/enqueue": jsonschema_rs.validator_for(PAGERDUTY_CHANGE, validate_formats=True),
    "/api/v2/alerts": jsonschema_rs.validator_for(ALERTMANAGER, validate_formats=True),
}
OK = {"slack": (200, b"ok"), "pagerduty": (202, b'{"status":"success"}'), "alertmanager": (200, b"")}
NAMES = list(OK)
TOLD = [
    notice(),
    notice("added", alert(), alert(rule="slow", alert_id="b", severity="SEV3")),
    notice("raised", alert(severity="SEV1")),
    notice("repeat", acked_by="ada@example.com"),
    notice("escalated", escalation=1),
    notice("acknowledged", acked_by="ada@example.com"),
    notice("resolved", alert(status="resolved", resolved_at="2026-11-22T03:30:00+00:00")),
    old_alert(),
    decision(ROLLBACK),
    decision(ADVANCE, to_percent=25.0),
    decision(HOLD, to_percent=5.0, actor="ada@example.com"),
    decision(ROLLBACK_INEFFECTIVE, severity="SEV1"),
    decision(ROLLBACK_VERIFIED),
]


def strict(name: str) -> Any:
    """An answer that takes what its reference says, and refuses the rest with 400 as the real one does."""

    def answer(seen: Seen) -> tuple[int, dict[str, str], bytes]:
        errors = [f"{e.instance_path}: {e.message}" for e in SCHEMAS[seen.path].iter_errors(seen.json)]
        return (400, {}, "; ".join(errors).encode()) if errors else (OK[name][0], {}, OK[name][1])

    return answer


@pytest.fixture
def server() -> Iterator[Recorder]:
    """A recording server."""
    with Recorder() as recorder:
        yield recorder


def made(name: str, url: str, **options: Any) -> Channel:
    """A channel that sends to ``url``."""
    if name == "slack":
        return Slack(SlackConfig(url=f"{url}/services/T0/B0/{KEY}", **options))
    if name == "pagerduty":
        return PagerDuty(PagerDutyConfig(routing_key=KEY, api_url=url, **options))
    return Alertmanager(AlertmanagerConfig(url=url, token=KEY, **options))


def sent(channel: Channel, notification: Notification, at: datetime | None = None) -> Delivery:
    """What became of one attempt."""
    body = channel.render(notification)
    return channel.send(body, event_id=notification.event_id, at=at or datetime.now(UTC))


def alerts_in(body: bytes) -> list[dict[str, Any]]:
    """What Alertmanager is told."""
    found: list[dict[str, Any]] = json.loads(body)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("told", TOLD, ids=lambda n: f"{n.type.split('.', 2)[2]} {n.data.get('cause')}")
def test_what_is_told_is_what_the_other_side_takes(
    server: Recorder, name: str, told: Notification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a schema of its reference; the same bytes for the same notification, and no secret in them."""
    monkeypatch.setattr("evalpipe.channels.slack.GAP_S", 0.0)
    server.answering = strict(name)
    channel = made(name, server.url)
    body = channel.render(told)
    assert body == made(name, server.url).render(told)
    assert KEY.encode() not in body
    if name == "alertmanager" and told.type in {ADVANCE, HOLD}:
        assert body == b""  # nothing that stands
        return
    assert channel.send(body, event_id=told.event_id, at=AT) == Delivery(
        ok=True, status=OK[name][0], elapsed_ms=pytest.approx(0, abs=60_000)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_judged_text_stays_a_text(server: Recorder, name: str) -> None:
    """Mentions, links, markup, scripts and line ends in every place that may quote users; and texts without an end."""
    server.answering = strict(name)
    texts = dict.fromkeys(("reason", "rule", "criterion", "feature", "runbook", "alert_id", "url"), INJECTED * 400)
    example = {"record_id": INJECTED, "value": INJECTED, "explanation": INJECTED * 400, "at": ""}
    bad = alert(
        **texts, labels={INJECTED: INJECTED, "0 a": "x"}, explanation={"normal": INJECTED, "examples": [example] * 10}
    )
    group = [{**bad, "alert_id": str(i)} for i in range(20)]
    texts = {"title": INJECTED, "summary": INJECTED * 100, "acked_by": INJECTED, "service": INJECTED}
    told = notice("added", *group, **texts, url="javascript:alert(1)", dedup_key="k" * 600, n_alerts=99)
    assert sent(made(name, server.url), told).ok
    seen = server.seen[0]
    assert len(seen.body) < 200_000
    text = json.dumps(seen.json, ensure_ascii=False)
    assert "javascript:" not in text
    assert "\u202e" not in text
    if name == "slack":
        assert "<" not in text
    for key in ("startsAt", "dedup_key"):
        assert len(str(seen.json[0].get(key) if isinstance(seen.json, list) else seen.json.get(key))) <= 255


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("answer", "recoverable", "retry_after_s"),
    [
        (always(429, b"slow down", retry_after="30"), True, 30.0),
        (always(500, b"oops"), True, None),
        (always(503, b"busy", retry_after="7"), True, 7.0),
        (always(404, b"no_service"), True, None),
        (always(400, b"invalid_payload"), False, None),
        (lambda _: None, True, None),
    ],
    ids=["429", "500", "503", "404", "400", "hangs up"],
)
def test_what_can_be_tried_again_is_and_nothing_else(
    server: Recorder, name: str, answer: Any, recoverable: bool, retry_after_s: float | None
) -> None:
    """Rate limits with the time that they ask for; a payload that cannot be read will not be read later either."""
    server.answering = answer
    done = sent(made(name, server.url), notice())
    assert (done.ok, done.recoverable, done.retry_after_s, done.disable) == (False, recoverable, retry_after_s, False)


@pytest.mark.parametrize("name", NAMES)
def test_no_error_and_no_log_has_the_secret(server: Recorder, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Though the other side quotes it, the URL has it, and everything is logged."""
    caplog.set_level(logging.INFO)
    server.answering = lambda seen: (403, {}, f"who is {KEY}? {seen.path} {seen.headers}".encode())
    done = sent(made(name, server.url), notice())
    assert not done.ok
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused = sent(made(name, f"http://127.0.0.1:{port}"), notice())
    assert (refused.ok, refused.recoverable, refused.status) == (False, True, None)
    for text in (done.error, refused.error, caplog.text, repr(made(name, server.url)._config)):
        assert KEY not in text
    assert done.error
    with pytest.raises(ConfigError) as caught:
        made(name, f"ftp://{KEY if name == 'slack' else 'x'}")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_hangs_costs_a_bounded_time(server: Recorder, name: str) -> None:
    """And the delivery is tried again."""

    def hang(_: Seen) -> None:
        time.sleep(1.0)

    server.answering = hang
    started = time.monotonic()
    done = sent(made(name, server.url, timeout_s=0.2), notice())
    assert_quick(time.monotonic() - started, 0.9)
    assert (done.ok, done.recoverable) == (False, True)


@pytest.mark.parametrize("name", ["slack", "pagerduty"])
def test_a_receiver_that_asks_for_quiet_gets_it_for_all_letters(server: Recorder, name: str) -> None:
    """The next letters of the lane would only be refused too."""
    server.answering = always(429, retry_after="30")
    channel = made(name, server.url)
    at = datetime.now(UTC)
    sent(channel, notice(), at)
    later = sent(channel, notice(event_id="evt_2"), at + timedelta(seconds=10))
    assert (len(server.seen), later.ok, later.recoverable, later.retry_after_s) == (1, False, True, 20.0)
    server.answering = strict(name)
    assert sent(channel, notice(event_id="evt_2"), at + timedelta(seconds=31)).ok


def test_slack_gets_a_message_a_second(server: Recorder) -> None:
    """More it does not take from one webhook."""
    server.answering = strict("slack")
    channel = made("slack", server.url)
    started = time.monotonic()
    assert sent(channel, notice()).ok
    assert sent(channel, notice()).ok
    took = time.monotonic() - started
    assert took >= GAP_S
    assert_quick(took, 2 * GAP_S)


def test_slack_shows_severity_state_numbers_examples_and_a_link(server: Recorder) -> None:
    """In plain words, with the page as a button."""
    channel = made("slack", server.url)
    message = json.loads(channel.render(notice()))
    header, *rest = message["blocks"]
    assert header["text"]["text"] == ":large_orange_circle: SEV2 desk production: too-low"
    shown = json.dumps(rest, ensure_ascii=False)
    for part in ("respond by: 2026-11-22 04:29:00", "value 0.712345 · n 240 · threshold 0.9", "traffic affected 31%",
                 "rec-2: 0: promises a refund", "https://evalpipe.example.com/alerts"):  # fmt: skip
        assert part in shown
    assert "rec-3" not in shown
    resolved = json.loads(channel.render(notice("resolved")))["blocks"][0]["text"]["text"]
    assert resolved == ":large_green_circle: SEV2 (resolved) desk production: too-low"
    assert json.loads(channel.render(decision()))["text"].startswith("SEV2 desk: canary v7 rolled back: grounded is")


def test_pagerduty_has_one_alert_for_one_episode(server: Recorder) -> None:
    """The same dedup_key from the first notice to the last; severities and actions in PagerDuty's words."""
    server.answering = strict("pagerduty")
    channel = made("pagerduty", server.url)
    acked = notice("acknowledged", acked_by="ada@example.com", respond_by=None)
    for told in (notice(), notice("raised", alert(severity="SEV1")), acked, notice("resolved")):
        assert sent(channel, told).ok
    events = [seen.json for seen in server.seen]
    assert [e["event_action"] for e in events] == ["trigger", "trigger", "acknowledge", "resolve"]
    assert {e["dedup_key"] for e in events} == {"evalpipe/desk/production/canary/1795318140"}
    assert [e["payload"]["severity"] for e in events[:2]] == ["error", "critical"]
    assert events[0]["payload"]["timestamp"] == FIRED
    assert [link["text"] for link in events[0]["links"]] == ["evalpipe", "runbook"]
    assert {seen.path for seen in server.seen} == {"/v2/enqueue"}
    partly = json.loads(channel.render(notice("acknowledged", acked_by="ada@example.com")))["event"]
    assert partly["event_action"] == "trigger"  # another alert of the group still waits for somebody


def test_pagerduty_pages_nobody_for_a_decision(server: Recorder) -> None:
    """Steps, rollbacks and orders are change events; a rollback without effect is an alert until it has one."""
    server.answering = strict("pagerduty")
    channel = made("pagerduty", server.url)
    told = [decision(), decision(ADVANCE, to_percent=25.0, actor="ada@example.com"), decision(ROLLBACK_INEFFECTIVE),
            decision(ROLLBACK_VERIFIED)]  # fmt: skip
    assert all(sent(channel, one).ok for one in told)
    assert [seen.path for seen in server.seen] == ["/v2/change/enqueue"] * 2 + ["/v2/enqueue"] * 2
    assert server.seen[1].json["payload"]["custom_details"]["by"] == "ada@example.com"
    assert server.seen[1].json["payload"]["custom_details"]["traffic"] == "5 % to 25 %"
    assert [seen.json["event_action"] for seen in server.seen[2:]] == ["trigger", "resolve"]
    assert server.seen[2].json["dedup_key"] == server.seen[3].json["dedup_key"]


def test_alertmanager_is_told_numbers_as_annotations_and_who_it_is_as_labels(server: Recorder) -> None:
    """A label that changes would be another alert."""
    server.answering = strict("alertmanager")
    channel = made("alertmanager", server.url)
    assert sent(channel, notice(), AT).ok
    first = server.seen[0].json[0]
    assert first["labels"] == {
        "alertname": "too-low", "severity": "error", "sev": "2", "service": "desk", "environment": "production",
        "variant": "canary", "scorecard": "support", "criterion": "grounded", "kind": "quality", "team": "support",
        "alert_id": "desk/production/canary/support/too-low", "reported_by": "evalpipe",
    }  # fmt: skip
    assert (first["annotations"]["value"], first["annotations"]["n"]) == ("0.712345", "240")
    assert (first["startsAt"], first["endsAt"]) == ("2026-11-22T03:29:00Z", "2026-11-23T03:30:00Z")
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    again = alerts_in(channel.render(notice("repeat", alert(value=0.5, n=999, reason="worse"))))[0]
    assert again["labels"] == first["labels"]


def test_alertmanager_hears_that_the_milder_alert_is_over_when_an_alert_gets_worse() -> None:
    """A severity is a label: there the raised alert is another one."""
    channel = made("alertmanager", "http://127.0.0.1:1")
    told = alerts_in(channel.render(notice("raised", alert(severity="SEV1"))))
    assert [(a["labels"]["sev"], a.get("endsAt")) for a in told] == [
        ("1", None), ("2", "2026-11-22T03:30:00Z"), ("3", "2026-11-22T03:30:00Z"), ("4", "2026-11-22T03:30:00Z"),
    ]  # fmt: skip
    ended = alerts_in(channel.render(notice("resolved", alert(resolved_at="2026-11-22T03:29:30+00:00"))))[0]
    assert ended["endsAt"] == "2026-11-22T03:29:30Z"


def test_several_alerts_are_one_request_and_those_of_alertmanager_do_not_go_back() -> None:
    """It knows them; what is over in a group that fires is told as over."""
    channel = made("alertmanager", "http://127.0.0.1:1")
    group = [alert(), alert(rule="b", alert_id="b", status="resolved", resolved_at=FIRED), alert(kind="external")]
    told = alerts_in(channel.render(notice("first", *group)))
    assert [(a["labels"]["alertname"], "endsAt" in a) for a in told] == [("too-low", False), ("b", True)]
    assert channel.render(notice("first", alert(kind="external"))) == b""


@pytest.mark.parametrize("name", NAMES)
def test_a_channel_may_be_told_of_some_severities_and_types_only(name: str) -> None:
    """The rest is nothing for it."""
    url = "http://127.0.0.1:1"
    assert made(name, url, severities=("SEV1",)).render(notice()) == b""
    assert made(name, url, severities=("SEV1", "SEV2")).render(notice("resolved")) != b""
    assert made(name, url, severities=("SEV1",)).render(decision()) != b""
    assert made(name, url, types=("alert",)).render(decision()) == b""
    assert made(name, url, types=("decision",)).render(notice()) == b""


ANYTHING = st.one_of(
    st.none(), st.text(max_size=400), st.floats(), st.integers(), st.lists(st.text(max_size=20), max_size=3)
)
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=400)


@given(
    more=st.dictionaries(
        st.sampled_from(sorted(notice().data.keys() - {"alerts", "severity", "cause"})), ANYTHING, max_size=8
    ),
    one=st.dictionaries(st.sampled_from(sorted(alert())), ANYTHING, max_size=12),
    text=TEXT,
    cause=st.sampled_from(["first", "raised", "resolved"]),
)
@settings(max_examples=60)
def test_whatever_a_notice_has_every_channel_can_tell_it(
    more: dict[str, Any], one: dict[str, Any], text: str, cause: str
) -> None:
    """It is rendered in the transaction that decides: an error there would undo the decision."""
    listed = alert(reason=text, **{name: value for name, value in one.items() if name != "reason"})
    told = notice(cause, {**listed, "severity": "SEV2"}, **{"title": text, **more})
    slack = json.loads(made("slack", "http://127.0.0.1:1").render(told))
    jsonschema_rs.validator_for(SLACK).validate(slack)
    event = json.loads(made("pagerduty", "http://127.0.0.1:1").render(told))["event"]
    SCHEMAS["/v2/enqueue"].validate({**event, "routing_key": KEY})
    if body := made("alertmanager", "http://127.0.0.1:1").render(told):
        alerts = [{"endsAt": FIRED, **found} for found in json.loads(body)]
        SCHEMAS["/api/v2/alerts"].validate(alerts)
    mail = Email(EmailConfig(host="x", security="none", sender="a@example.com", to=("b@example.com",))).render(told)
    assert mail.isascii()
    assert message_from_bytes(mail, policy=policy.default)["To"] == "b@example.com"
