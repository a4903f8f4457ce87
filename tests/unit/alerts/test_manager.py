"""Who is told of which alerts, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from evalpipe.alerts.escalation import Step
from evalpipe.alerts.grouping import Group, Notice
from evalpipe.alerts.manager import manage, muted
from evalpipe.alerts.routing import Inhibition, Route, Routing, Standing, routing_of
from evalpipe.alerts.silence import Silence
from evalpipe.scorecard.notify_rules import NotifyRules, notify_problems

AT = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def alert(name: str, severity: Any = "SEV3", **options: Any) -> Standing:
    """An alert that fires, of a rule of this name."""
    labels = {"rule": name, "service": "desk", "environment": "prod", "variant": "v7", "severity": severity}
    labels |= options.pop("labels", {})
    return Standing(name, severity, options.pop("firing", True), AT, labels, **options)


class Desk:
    """A manager with its memory, which is written and read back between two looks, as the store does."""

    def __init__(self, routing: Routing | None = None) -> None:
        self.routing = routing or Routing()
        self.groups: Mapping[str, Group] = {}
        self.silences: list[Silence] = []
        self.now = AT

    def look(self, *alerts: Standing, after: timedelta = timedelta(0)) -> list[Notice]:
        """What is told so much later."""
        self.now += after
        known = {a.alert_id: a for a in alerts}
        groups, notices = manage(known.values(), self.routing, self.silences, self.groups, self.now)
        self.groups = {key: Group.from_state(group.key, group.to_state()) for key, group in groups.items()}
        assert self.groups == groups, "nothing is lost in the store"
        return notices

    def told(self, *alerts: Standing, after: timedelta = timedelta(0)) -> list[tuple[str, ...]]:
        """The same in short: cause, then the alerts that fire, then those that resolved with a dash."""
        return [(n.cause, *n.firing, *(f"-{id_}" for id_ in n.resolved)) for n in self.look(*alerts, after=after)]

    def silence(self, lasts: timedelta, **matchers: str) -> None:
        """Mute from now on."""
        self.silences.append(Silence("s-1", matchers, "ada", "known", self.now, self.now + lasts))


def test_what_wakes_people_is_told_at_once_and_the_rest_gathers_first():
    """SEV1 and SEV2 after 0 s, SEV3 and SEV4 after 30 s, in one notice."""
    for severity in ("SEV1", "SEV2"):
        assert Desk().told(alert("a", severity)) == [("first", "a")]
    desk = Desk()
    assert desk.told(alert("a")) == []
    assert desk.told(alert("a"), alert("b", "SEV4"), after=timedelta(seconds=29)) == []
    assert desk.told(alert("a"), alert("b", "SEV4"), after=timedelta(seconds=1)) == [("first", "a", "b")]
    gathers = Desk()
    assert gathers.told(alert("a")) == []
    assert gathers.told(alert("a"), alert("b", "SEV2"), after=timedelta(seconds=2)) == [("first", "b", "a")]


def test_a_group_that_resolves_before_it_was_told_is_never_told():
    """As in Alertmanager: nobody is told that something is over of which nobody heard."""
    desk = Desk()
    assert desk.told(alert("a")) == []
    assert desk.told(alert("a", firing=False), after=timedelta(seconds=10)) == []
    assert desk.told(after=HOUR) == []
    assert desk.groups == {}
    assert desk.told(alert("a"), after=MINUTE) == [], "and it gathers anew"


def test_what_came_to_a_group_waits_for_its_interval_and_what_is_worse_does_not():
    """Added after 5 minutes; a higher severity and a new SEV1 at once."""
    desk = Desk()
    a, b = alert("a", "SEV2"), alert("b", "SEV2")
    assert desk.told(a) == [("first", "a")]
    assert desk.told(a, b, after=MINUTE) == []
    assert desk.told(a, b, after=4 * MINUTE) == [("added", "a", "b")]
    assert desk.told(a, b, after=HOUR / 2) == []
    assert desk.told(a, alert("b", "SEV1"), after=MINUTE) == [("raised", "b", "a")]
    assert desk.told(a, alert("b", "SEV1"), alert("c", "SEV1"), after=MINUTE) == [("added", "b", "c", "a")]


def test_what_is_over_is_told_once_to_those_who_were_told():
    """When all of it is over, no sooner than the interval; a flap in between is nobody's business."""
    desk = Desk()
    a, b = alert("a", "SEV2"), alert("b", "SEV2")
    over = replace(a, firing=False), replace(b, firing=False)
    assert desk.told(a, b) == [("first", "a", "b")]
    assert desk.told(over[0], b, after=MINUTE) == []
    assert desk.told(a, b, after=MINUTE) == [], "it flaps"
    assert desk.told(over[0], b, after=10 * MINUTE) == []
    (ended,) = desk.look(*over, after=MINUTE)
    assert (ended.cause, ended.status, ended.firing, ended.resolved) == ("resolved", "resolved", (), ("a", "b"))
    assert desk.told(*over, after=MINUTE) == []
    assert desk.groups == {}
    (again,) = desk.look(a, after=MINUTE)
    assert again.cause == "first"
    assert again.group.dedup_key != ended.group.dedup_key, "another episode"


def test_what_comes_long_after_the_last_news_of_a_group_is_a_page_of_its_own():
    """With its own key, so that a pager calls; what is known keeps its page, and each is told to be over."""
    desk = Desk()
    a, b, c = alert("a", "SEV2", acked=True), alert("b", "SEV2"), alert("c", "SEV2")
    (first,) = desk.look(a)
    (second,) = desk.look(a, b, after=4 * HOUR)
    assert (second.cause, second.firing) == ("first", ("b",))
    assert (second.group.key, second.group.dedup_key != first.group.dedup_key) == (first.group.key, True)
    assert desk.told(a, b, c, after=HOUR) == [("escalated", "b", "c")], "soon after, it joins the newest"
    assert desk.told(replace(a, severity="SEV1"), b, c, after=MINUTE) == [("raised", "a")]
    over = [replace(each, firing=False) for each in (a, b, c)]
    assert desk.told(*over, after=HOUR) == [("resolved", "-a"), ("resolved", "-b", "-c")]
    assert desk.groups == {}


def test_more_of_the_same_is_no_page_of_its_own_however_late():
    """A feature of what has fallen everywhere, and everywhere after a feature: as long as it is no worse."""
    about = {"scorecard": "support", "criterion": "grounded"}
    everywhere = alert("e", "SEV2", labels={**about, "feature": ""})
    chat = alert("c", "SEV3", labels={**about, "feature": "chat"})
    for told, later in ((everywhere, chat), (chat, replace(everywhere, severity="SEV3"))):
        desk = Desk(Routing((Route("all", group_wait=timedelta(0)),)))
        (first,) = desk.look(told)
        (second,) = desk.look(told, later, after=5 * HOUR)
        assert (first.group.dedup_key, len(second.firing)) == (second.group.dedup_key, 2)
        desk = Desk(Routing((Route("all", group_wait=timedelta(0)),)))
        desk.look(replace(told, acked=True))
        (stale,) = desk.look(replace(told, acked=True), later, after=12 * HOUR)
        assert (stale.cause, stale.firing) == ("first", (later.alert_id,)), "somebody else is on call by then"
    news = {
        "worse": alert("n", "SEV1", labels=chat.labels | {"severity": "SEV1"}),
        "another criterion": alert("n", labels={**chat.labels, "criterion": "tone"}),
        "another card": alert("n", labels={**chat.labels, "scorecard": "sales"}),
        "no criterion": alert("n", labels={**chat.labels, "criterion": ""}),
        "another feature": alert("n", labels={**chat.labels, "feature": "mail"}),
    }
    for why, later in news.items():
        desk = Desk(Routing((Route("all", group_wait=timedelta(0)),)))
        told = chat if why == "another feature" else everywhere
        (first,) = desk.look(replace(told, acked=True))
        (second,) = desk.look(replace(told, acked=True), later, after=5 * HOUR)
        assert (second.cause, second.firing) == ("first", ("n",)), why
        assert second.group.dedup_key != first.group.dedup_key, why
    desk = Desk(Routing((Route("all", group_wait=timedelta(0)),)))
    other = alert("o", "SEV2", acked=True)
    desk.look(everywhere, other)
    over = replace(everywhere, firing=False)
    assert desk.told(over, other, chat, after=5 * HOUR)[-1] == ("first", "c"), "what is over says nothing any more"


def test_a_group_that_gathers_is_told_however_long_nobody_looked():
    """Also where the notifier was away for longer than the repeat interval."""
    desk = Desk()
    assert desk.told(alert("a")) == []
    assert desk.told(alert("a"), alert("b"), after=9 * HOUR) == [("first", "a", "b")]


def test_part_of_a_group_that_is_over_is_told_with_the_next_notice():
    """Once, and then no more."""
    desk = Desk()
    a, b = alert("a", "SEV2"), alert("b", "SEV2")
    desk.told(a, b)
    over = replace(a, firing=False)
    assert desk.told(over, b, alert("c", "SEV2"), after=6 * MINUTE) == [("added", "b", "c", "-a")]
    done = replace(b, firing=False), alert("c", "SEV2", firing=False)
    assert desk.told(over, *done, after=6 * MINUTE) == [("resolved", "-b", "-c")]


def test_it_is_told_again_and_escalated_until_somebody_takes_it():
    """Repeated each 4 h; escalated when nobody answered in the response time; neither once it is acknowledged."""
    desk = Desk()
    a = alert("a", "SEV2")
    (first,) = desk.look(a)
    assert first.respond_by == AT + HOUR
    assert desk.told(a, after=HOUR - MINUTE) == []
    (escalated,) = desk.look(a, after=MINUTE)
    assert (escalated.cause, escalated.escalation, escalated.escalated) == ("escalated", 1, ("a",))
    assert desk.told(a, after=3 * HOUR) == []
    assert desk.told(a, after=HOUR) == [("repeat", "a")]
    taken = replace(a, acked=True)
    assert desk.told(taken, after=MINUTE) == [("acknowledged", "a")]
    assert desk.told(taken, after=9 * HOUR) == []
    worse = alert("a", "SEV1")
    assert desk.told(worse, after=MINUTE) == [("raised", "a")], "an acknowledgement is void above its severity"
    assert desk.told(worse, after=15 * MINUTE) == [("escalated", "a")]
    assert desk.told(replace(worse, firing=False), after=HOUR) == [("resolved", "-a")]


@pytest.mark.parametrize(("severity", "minutes"), [("SEV1", 15), ("SEV2", 60), ("SEV3", 240), ("SEV4", 1440)])
def test_each_severity_has_its_response_time(severity: str, minutes: int):
    """15 min, 1 h, 4 h, 24 h after it was told."""
    desk = Desk(Routing((Route("all", group_wait=timedelta(0), repeat_interval=48 * HOUR),)))
    desk.look(alert("a", severity))
    assert desk.told(alert("a", severity), after=timedelta(minutes=minutes, seconds=-1)) == []
    assert desk.told(alert("a", severity), after=timedelta(seconds=1)) == [("escalated", "a")]
    assert desk.told(alert("a", severity), after=timedelta(hours=47)) == [], "once"


def test_steps_of_escalation_bring_in_others_who_then_hear_the_end():
    """Each step has its own channels; what is over is told to everybody who was told."""
    steps = Step(10 * MINUTE, ("lead",)), Step(20 * MINUTE, ("boss",), frozenset({"SEV1"}))
    desk = Desk(Routing((Route("all", channels=("team",)),), steps))
    worst, bad = alert("a", "SEV1"), alert("b", "SEV2", labels={"service": "other"})
    assert [n.channels for n in desk.look(worst, bad)] == [("team",), ("team",)]
    assert [n.channels for n in desk.look(worst, bad, after=10 * MINUTE)] == [("team", "lead")] * 2
    (third,) = desk.look(worst, bad, after=10 * MINUTE)
    assert (third.firing, third.channels, third.escalation) == (("a",), ("team", "lead", "boss"), 2)
    (end,) = desk.look(replace(worst, firing=False), bad, after=6 * MINUTE)
    assert end.channels == ("team", "lead", "boss")


def test_a_silence_mutes_and_what_still_fires_when_it_ends_is_told():
    """It mutes what fires and what begins to; that something told is over is told all the same."""
    desk = Desk()
    a, b = alert("a", "SEV1"), alert("b", "SEV1")
    desk.silence(HOUR, rule="a*", service="de?k")
    assert desk.told(a) == []
    assert desk.told(a, b, after=MINUTE) == [("first", "b")]
    assert desk.told(a, b, after=59 * MINUTE) == [("escalated", "a", "b")]
    desk.silences.clear()
    desk.silence(2 * HOUR, rule="b")
    assert desk.told(a, b, after=10 * MINUTE) == []
    assert desk.told(replace(a, firing=False), b, after=10 * MINUTE) == []
    assert desk.told(b, after=100 * MINUTE) == [("added", "b", "-a")], "told anew, an hour after it was muted"
    desk.silence(2 * HOUR, rule="b")
    assert desk.told(b, after=10 * MINUTE) == []
    assert desk.told(replace(b, firing=False), after=10 * MINUTE) == [("resolved", "-b")]


def test_a_silence_that_was_ended_mutes_no_more():
    """From the moment that somebody ended it."""
    silence = Silence("s", {"rule": "a"}, "ada", "x", AT, AT + HOUR, AT + MINUTE)
    labels = {"rule": "a"}
    assert [silence.mutes(labels, AT + at) for at in (-MINUTE, timedelta(0), MINUTE, HOUR)] == [
        False, True, False, False]  # fmt: skip
    assert not silence.mutes({"rule": "b"}, AT)
    assert Silence("s", {"feature": "*"}, "a", "r", AT, AT + HOUR).mutes(labels, AT), "a missing label is empty"
    assert Silence("s", {"rule": "a[1]"}, "a", "r", AT, AT + HOUR).mutes({"rule": "a[1]"}, AT), "exact goes first"


def test_a_dry_run_is_never_told_and_mutes_nothing():
    """Neither as itself, nor by what a SEV1 would mute."""
    desk = Desk()
    assert desk.told(alert("a", "SEV1", dry_run=True), alert("b", "SEV3")) == []
    assert desk.told(alert("a", "SEV1", dry_run=True), alert("b", "SEV3"), after=MINUTE) == [("first", "b")]
    assert desk.told(alert("a", "SEV1", dry_run=True), alert("b", "SEV3", dry_run=True), after=9 * HOUR) == []


def test_a_sev1_mutes_what_is_minor_in_its_service_and_environment():
    """Not a SEV2, not another service, and nothing at all where there is no service."""
    worst = alert("w", "SEV1", labels={"variant": "v6"})
    minor = {"s3": alert("s3"), "s4": alert("s4", "SEV4"), "s2": alert("s2", "SEV2")}
    elsewhere = {"other": alert("other", labels={"service": "x"}), "stage": alert("stage", labels={"environment": "s"})}
    found = muted([worst, *minor.values(), *elsewhere.values()], Routing(), [], AT)
    assert found == {"s3": "w", "s4": "w"}
    nowhere = {"service": "", "environment": ""}
    assert muted([alert("w", "SEV1", labels=nowhere), alert("m", labels=nowhere)], Routing(), [], AT) == {}
    assert muted([replace(worst, firing=False), minor["s3"]], Routing(), [], AT) == {}
    no_environment = {"environment": ""}
    assert muted([alert("w", "SEV1", labels=no_environment), alert("m", labels=no_environment)], Routing(), [], AT)


def test_a_judge_in_trouble_mutes_what_comes_from_it_but_no_sev1():
    """All that it grades where it is down; one criterion where it is suspect on that one."""
    place = {"service": "", "environment": "", "variant": "j-1"}
    down = alert("judge-stopped", "SEV2", labels={**place, "judge": "j-1"})
    suspect = alert("judge-suspect", "SEV2", labels={**place, "judge": "j-1", "scorecard": "c", "criterion": "x"})
    x = alert("x", labels={"scorecard": "c", "criterion": "x"}, judges=frozenset({"j-1"}))
    y = alert("y", labels={"scorecard": "c", "criterion": "y"}, judges=frozenset({"j-1", "j-2"}))
    others = alert("z", judges=frozenset({"j-2"})), alert("w", "SEV1", labels={"service": "q"}, judges=x.judges)
    assert muted([down, x, y, *others], Routing(), [], AT) == {"x": "judge-stopped", "y": "judge-stopped"}
    assert muted([suspect, x, y, *others], Routing(), [], AT) == {"x": "judge-suspect"}


def test_declared_inhibition_needs_labels_that_are_there():
    """In Alertmanager two missing labels are equal; here they are not. Two that are both do not mute one another."""
    rule = Inhibition({"rule": "down*"}, {"rule": "*"}, ("service", "team"))
    routing = Routing(inhibit=(rule,))
    down, slow = alert("down", "SEV2"), alert("slow", "SEV2")
    assert muted([down, slow], routing, [], AT) == {}
    team = {"team": "t"}
    down, down2, slow = (alert(name, "SEV2", labels=team) for name in ("down", "down-too", "slow"))
    assert muted([down, down2, slow], routing, [], AT) == {"slow": "down"}


def test_routes_take_what_fits_in_their_order_and_what_none_takes_goes_to_everybody():
    """The first that fits, and more where it goes on."""
    routes = (
        Route("log", channels=("log",), goes_on=True),
        Route("pay", {"service": "pay*"}, channels=("pay",), group_by=("service",)),
        Route("night", severities=frozenset({"SEV1"}), channels=("pager",)),
    )
    desk = Desk(Routing(routes))
    found = desk.look(alert("a", "SEV1", labels={"service": "payment"}), alert("b", "SEV1"))
    assert [(n.group.key, n.channels) for n in found] == [
        ("log{service=desk,environment=prod,variant=v7}", ("log",)),
        ("log{service=payment,environment=prod,variant=v7}", ("log",)),
        ("night{service=desk,environment=prod,variant=v7}", ("pager",)),
        ("pay{service=payment}", ("pay",)),
    ]
    assert Desk(Routing(routes[1:])).look(alert("c", "SEV2"))[0].channels is None


def test_an_alert_that_moves_to_another_route_is_not_called_resolved_in_the_first():
    """It gets more severe, another route takes it; both are told when it is over."""
    low = Route("low", severities=frozenset({"SEV2"}), channels=("chat",))
    desk = Desk(Routing((low, Route("high", channels=("pager",)))))
    a = alert("a", "SEV2")
    desk.look(a)
    assert [(n.cause, n.channels) for n in desk.look(alert("a", "SEV1"), after=MINUTE)] == [("first", ("pager",))]
    assert desk.told(alert("a", "SEV1", acked=True), after=9 * HOUR) == [("acknowledged", "a")]
    desk.routing = Routing()
    assert [n.channels for n in desk.look(alert("a", "SEV1", acked=True), after=MINUTE)] == [None]
    ended = desk.look(alert("a", "SEV1", firing=False), after=HOUR)
    assert sorted((n.cause, str(n.channels)) for n in ended) == [
        ("resolved", "('chat',)"), ("resolved", "('pager',)"), ("resolved", "None")]  # fmt: skip


def test_rules_of_a_file_become_routes_and_unknown_channels_are_named_with_their_place():
    """Defaults are the same with and without a file."""
    assert routing_of(NotifyRules()) == Routing()
    rules = NotifyRules.model_validate({
        "routes": [
            {"name": "pay", "match": {"service": "pay"}, "channels": ["chat"], "severities": ["SEV1"],
             "group_by": [], "group_wait": "10s", "repeat_interval": "1h"},
            {"name": "pay", "repeat_interval": "1m", "group_interval": "2m"},
        ],
        "escalate": [{"after": "5m", "channels": ["boss"]}],
        "inhibit": [{"source": {"rule": "a"}, "target": {"rule": "b"}, "equal": ["service"]}],
    })  # fmt: skip
    routing = routing_of(rules)
    assert routing.routes[0] == Route(
        "pay", {"service": "pay"}, frozenset({"SEV1"}), ("chat",), group_by=(), group_wait=timedelta(seconds=10),
        repeat_interval=HOUR,
    )  # fmt: skip
    assert routing.escalate == (Step(5 * MINUTE, ("boss",)),)
    assert list(notify_problems(rules, ["chat", "mail"])) == [
        (("routes", 1, "name"), "two routes are named 'pay'; rename one of them"),
        (("routes", 1, "repeat_interval"), "repeat_interval must not be shorter than group_interval"),
        (("escalate", 0, "channels", 0), "there is no channel 'boss'; there are: chat, mail"),
    ]
    with pytest.raises(ValidationError, match="group_wait"):
        NotifyRules.model_validate({"routes": [{"name": "x", "group_wait": "soon"}]})


def test_a_key_stays_short_however_long_the_labels_are():
    """PagerDuty takes 255 characters."""
    (found,) = Desk().look(alert("a", "SEV1", labels={"service": "s" * 400}))
    assert len(found.group.dedup_key) <= 255
