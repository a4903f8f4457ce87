"""The ready-made consumers: what goes over the wire to Unleash, LaunchDarkly, GitHub and a CDEvents sink."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from recording import Recorder, always

from evalpipe.channels.base import Channel
from evalpipe.channels.cdevents import CDEvents, CDEventsConfig
from evalpipe.channels.file import load_channels
from evalpipe.channels.github import GitHub, GitHubConfig
from evalpipe.channels.launchdarkly import LaunchDarkly, LaunchDarklyConfig
from evalpipe.channels.unleash import Unleash, UnleashConfig
from evalpipe.errors import ConfigError
from evalpipe.notification import (
    ADVANCE,
    ALERT_FIRING,
    HOLD,
    ROLLBACK,
    ROLLBACK_INEFFECTIVE,
    ROLLBACK_VERIFIED,
    Notification,
)
from evalpipe.signing import new_secret, verify_signature

AT = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)
SECRET = new_secret()


def note(type_: str, **data: Any) -> Notification:
    """A decision about the canary of a service."""
    told = {
        "decision_id": "dec_ro_7", "rollout_id": "ro", "seq": 7, "action": type_.split(".")[-2], "service": "desk",
        "environment": "production", "baseline": "v6", "canary": "v7", "from_percent": 5, "to_percent": 20,
        "actor": "evalpipe", "cause": "harm_proven", "latched": type_ == ROLLBACK, "reason": "quality fell by 9 %",
        "inputs_hash": "ab12", "evidence": [{"gate": "quality"}], **data,
    }  # fmt: skip
    return Notification("evt_1", type_, "ro", AT, told, "/evalpipe/test")


def told(channel: Channel, notification: Notification, server: Recorder) -> list[Any]:
    """The requests that a notification leads to."""
    server.seen.clear()
    body = channel.render(notification)
    if body:
        assert channel.send(body, event_id=notification.event_id, at=AT).ok
    return list(server.seen)


@pytest.fixture
def server() -> Any:
    """A server that takes everything."""
    with Recorder(always(200, b"{}")) as made:
        yield made


def unleash(url: str, **fields: Any) -> Unleash:
    """The channel."""
    values = {"url": url, "service": "desk", "token": "token-1", "feature": "a flag", "strategy_id": "s-1"}
    return Unleash(UnleashConfig.model_validate({**values, **fields}))


def launchdarkly(url: str) -> LaunchDarkly:
    """The channel."""
    return LaunchDarkly(
        LaunchDarklyConfig(
            url=url, service="desk", token="token-1", flag="agent", canary_variation="id-c", baseline_variation="id-b"
        )
    )


def github(url: str) -> GitHub:
    """The channel."""
    return GitHub(GitHubConfig(url=url, service="desk", token="token-1", repository="acme/desk"))


def test_unleash_gets_the_share_and_then_on_and_a_rollback_is_off(server: Recorder) -> None:
    """The share by JSON Patch, which leaves constraints, segments and stickiness as they are."""
    place = "/api/admin/projects/default/features/a%20flag/environments/production"
    share, on = told(unleash(server.url), note(ADVANCE), server)
    assert (share.method, share.path) == ("PATCH", f"{place}/strategies/s-1")
    assert share.json == [{"op": "replace", "path": "/parameters/rollout", "value": "20"}]
    assert (on.method, on.path, on.body) == ("POST", f"{place}/on", b"")
    (off,) = told(unleash(server.url), note(ROLLBACK, to_percent=0), server)
    assert (off.method, off.path, off.headers["authorization"]) == ("POST", f"{place}/off", "token-1")
    (share, _) = told(unleash(server.url), note(ADVANCE, to_percent=0.4), server)
    assert share.json[0]["value"] == "1"


def test_unleash_is_not_turned_on_if_the_share_could_not_be_set(server: Recorder) -> None:
    """The step is tried again as a whole."""
    server.answering = lambda seen: (404 if seen.method == "PATCH" else 200, {}, b"no such strategy")
    channel = unleash(server.url)
    delivery = channel.send(channel.render(note(ADVANCE)), event_id="evt_1", at=AT)
    assert (delivery.ok, delivery.status, delivery.recoverable) == (False, 404, True)
    assert [seen.method for seen in server.seen] == ["PATCH"]


def test_launchdarkly_gets_one_semantic_patch(server: Recorder) -> None:
    """Weights in thousandths of a per cent that add up; a rollback turns the flag off."""
    (seen,) = told(launchdarkly(server.url), note(ADVANCE, to_percent=2.5), server)
    assert (seen.method, seen.path) == ("PATCH", "/api/v2/flags/default/agent")
    assert seen.headers["content-type"] == "application/json; domain-model=launchdarkly.semanticpatch"
    assert seen.headers["authorization"] == "token-1"
    assert seen.json == {
        "environmentKey": "production",
        "comment": "evalpipe dec_ro_7: quality fell by 9 %",
        "instructions": [
            {"kind": "updateFallthroughVariationOrRollout", "rolloutWeights": {"id-c": 2500, "id-b": 97500}},
            {"kind": "turnFlagOn"},
        ],
    }
    (seen,) = told(launchdarkly(server.url), note(ROLLBACK), server)
    assert seen.json["instructions"] == [{"kind": "turnFlagOff"}]


def test_github_gets_a_repository_dispatch_of_ten_keys_at_the_most(server: Recorder) -> None:
    """More would be refused with 422."""
    (seen,) = told(github(server.url), note(ROLLBACK, reason="r" * 9_000), server)
    assert (seen.method, seen.path) == ("POST", "/repos/acme/desk/dispatches")
    assert seen.headers["authorization"] == "Bearer token-1"
    assert seen.headers["accept"] == "application/vnd.github+json"
    assert seen.headers["user-agent"]
    assert seen.json["event_type"] == "evalpipe-rollback"
    payload = seen.json["client_payload"]
    assert len(payload) <= 10
    assert (payload["seq"], payload["canary"], payload["to_percent"]) == (7, "v7", 0)
    assert len(seen.body) < 10_000


@pytest.mark.parametrize("make", [unleash, launchdarkly, github])
def test_a_consumer_acts_on_its_own_rollouts_and_on_what_changes_a_share(make: Any, server: Recorder) -> None:
    """An abort, which is a hold at nothing, takes the canary out; a hold that changes nothing is no business of it."""
    channel = make(server.url)
    for other in (
        note(HOLD, from_percent=20),
        note(ADVANCE, to_percent=None),
        note(ROLLBACK, service="elsewhere"),
        note(ALERT_FIRING),
        note(ROLLBACK_VERIFIED),
    ):
        assert channel.render(other) == b""
    aborted = channel.render(note(HOLD, cause="aborted", to_percent=0))
    rolled_back = channel.render(note(ROLLBACK, to_percent=None))
    assert (aborted == rolled_back) == (make is not github)
    assert told(channel, note(HOLD, to_percent=0), server)


def test_a_consumer_may_be_of_one_environment_and_one_canary() -> None:
    """Staging's rollback turns off nothing in production."""
    channel = unleash("http://u", environment="production", canary="v7")
    assert channel.render(note(ROLLBACK))
    assert channel.render(note(ROLLBACK, environment="staging")) == b""
    assert channel.render(note(ROLLBACK, canary="v8")) == b""


# CDEvents 0.5.1, service.rolledback 0.3.0: its fields, and no others.
_TEXT = {"type": "string", "minLength": 1}
_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["context", "subject"],
    "properties": {
        "context": {
            "type": "object",
            "additionalProperties": False,
            "required": ["specversion", "id", "source", "type", "timestamp"],
            "properties": {
                "specversion": {"const": "0.5.1"},
                "id": _TEXT,
                "source": {**_TEXT, "format": "uri-reference"},
                "type": {"const": "dev.cdevents.service.rolledback.0.3.0"},
                "timestamp": {"type": "string", "format": "date-time"},
                "chainId": {"type": "string", "format": "uuid"},
                "schemaUri": {"type": "string", "format": "uri"},
                "links": {"type": "array"},
            },
        },
        "subject": {
            "type": "object",
            "additionalProperties": False,
            "required": ["id", "content"],
            "properties": {
                "id": _TEXT,
                "source": {"type": "string"},
                "content": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["environment", "artifactId"],
                    "properties": {
                        "environment": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["id"],
                            "properties": {"id": _TEXT, "source": {"type": "string"}},
                        },
                        "artifactId": {**_TEXT, "pattern": "^pkg:[a-z]+/[^/@ ]+@[^@ ]+$"},
                    },
                },
            },
        },
        "customData": {"type": "object"},
        "customDataContentType": {"type": "string"},
    },
}


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_a_cdevent_says_that_the_service_was_rolled_back_once_the_meter_has_seen_it(
    server: Recorder, secrets: tuple[str, ...]
) -> None:
    """Not when it was decided; the whole event in the CloudEvent's data, and the envelope says the same."""
    channel = CDEvents(CDEventsConfig(url=f"{server.url}/events", secrets=secrets))
    for other in (note(ROLLBACK), note(ADVANCE), note(ROLLBACK_INEFFECTIVE), note(ALERT_FIRING)):
        assert channel.render(other) == b""
    (seen,) = told(channel, note(ROLLBACK_VERIFIED, baseline="release/v 6", verified_at=AT.isoformat()), server)
    assert (seen.path, seen.headers["content-type"]) == ("/events", "application/cloudevents+json")
    assert ("webhook-signature" in seen.headers) == bool(secrets)
    if secrets:
        now = datetime.fromtimestamp(int(seen.headers["webhook-timestamp"]), UTC)
        assert verify_signature(seen.body, seen.headers, secrets, now=now) == seen.json
    event = seen.json["data"]
    Draft202012Validator(_SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(event)
    assert event["subject"]["content"] == {
        "environment": {"id": "production"},
        "artifactId": "pkg:generic/desk@release%2Fv%206",
    }
    assert event["customData"]["decision_id"] == "dec_ro_7"
    context, envelope = event["context"], seen.json
    assert [envelope[name] for name in ("id", "source", "type", "time", "subject")] == [
        *(context[name] for name in ("id", "source", "type", "timestamp")),
        "desk",
    ]
    with pytest.raises(ConfigError, match="artifact may hold"):
        CDEvents(CDEventsConfig(url=server.url, artifact="pkg:{colour}"))


# ------------------------------------------------------------------------------------------------ the file of channels

ENVIRON = {
    "DEPLOYER_SECRETS": f"{SECRET} {new_secret()}",
    "UNLEASH_TOKEN": "hidden-1",
    "LAUNCHDARKLY_TOKEN": "hidden-2",
    "GITHUB_TOKEN": "hidden-3",
    "SLACK_WEBHOOK_URL": "https://hooks.slack.example.com/services/hidden-4",
    "PAGERDUTY_ROUTING_KEY": "hidden-5",
    "SMTP_PASSWORD": "hidden-6",
}


def test_the_example_of_a_file_makes_every_kind_of_channel() -> None:
    """With the secrets of the environment."""
    made = load_channels(Path(__file__).parents[2] / "examples" / "channels.yaml", ENVIRON)
    assert {name: type(channel).__name__ for name, channel in made.items()} == {
        "deployer": "Webhook",
        "refund-flag": "Unleash",
        "agent-flag": "LaunchDarkly",
        "pipeline": "GitHub",
        "cd-events": "CDEvents",
        "team-chat": "Slack",
        "on-call": "PagerDuty",
        "alertmanager": "Alertmanager",
        "team-mail": "Email",
    }
    assert json.loads(made["refund-flag"].render(note(ROLLBACK, service="support-bot")))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":1:1: the file is empty"),
        ("# nothing\n", ":1:1: the file is empty"),
        ("- a\n", ":1:1: must be a mapping"),
        ("a: {channel: webhok, url: http://x}", ":1:14: a.channel: no channel named 'webhok'; did you mean 'webhook'?"),
        ("a: {url: http://x}", ":1:4: a: needs 'channel:', one of alertmanager, cdevents"),
        ("Big One: {channel: stdout}", "Big One: is no name"),
        ("a:\n  channel: webhook\n  secrets: whsec_hidden\n", ":3:12: a.secrets: is a secret: write ${NAME}"),
        ("a: {channel: webhook, url: http://x, secrets: '${NO}'}", "a.secrets: the variable NO is not set"),
        ("a: {channel: webhook, url: http://x, secrets: '${UNLEASH_TOKEN}'}", "a: webhook secret 1"),
        ("a: {channel: stdout, colour: red}", ":1:22: a.colour: is no field"),
        ("a: {channel: cdevents, url: nowhere}", "a: the url must be http://host"),
        ("a: {channel: cdevents, url: http://x, timeout_s: 60}", "a.timeout_s: must be at most 15, not 60"),
        ("a: {channel: github, service: s, token: '${GITHUB_TOKEN}', repository: x}", "a.repository: 'x' must have"),
        ("a: [", "not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_with_its_place_and_without_any_secret(
    tmp_path: Path, text: str, problem: str
) -> None:
    """At the start, not at the first rollback."""
    file = tmp_path / "channels.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_channels(file, ENVIRON)
    assert problem in str(caught.value)
    assert str(file) in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_file_that_is_not_there_is_told_with_its_setting(tmp_path: Path) -> None:
    """Nobody wants to send nothing without knowing it."""
    with pytest.raises(ConfigError, match="see EVALPIPE_CHANNELS"):
        load_channels(tmp_path / "none.yaml", {})
