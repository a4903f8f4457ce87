"""Whatever alerts, silences, acknowledgements and time do: what people are told keeps these promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evalpipe.alerts.escalation import RANK, RESPONSE_TIME
from evalpipe.alerts.grouping import Group, Notice
from evalpipe.alerts.manager import manage, muted
from evalpipe.alerts.routing import DEFAULT, WAIT, Routing, Standing
from evalpipe.alerts.silence import Silence

AT = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
NAMES = [f"{service}-{n}" for service in ("desk", "shop") for n in range(3)]
SEVERITIES = st.sampled_from(sorted(RANK))
ABOUT = {"0": {"criterion": "x", "feature": ""}, "1": {"criterion": "x", "feature": "chat"}, "2": {"criterion": "y"}}
ROUTING = Routing()


class People(RuleBasedStateMachine):
    """What happens to six alerts of two services, and a simple model of what people know."""

    def __init__(self) -> None:
        super().__init__()
        self.now = AT
        self.alerts: dict[str, Standing] = {}
        self.silences: list[Silence] = []
        self.groups: Mapping[str, Group] = {}
        # What people know: alerts that were told as firing and of whose end they have not heard.
        self.known: set[str] = set()
        # The episodes and severities that were told, when, and what was not muted since.
        self.told_at: dict[tuple[str, datetime, str], datetime] = {}
        self.loud_since: dict[str, datetime] = {}
        self.notices: list[Notice] = []
        # Of each page: when it had news, and when an alert of it was told first.
        self.news: dict[str, set[tuple[datetime, str]]] = {}
        self.first_told: dict[tuple[str, str], datetime] = {}
        self.worst: dict[str, int] = {}

    @rule(name=st.sampled_from(NAMES), severity=SEVERITIES, dry_run=st.sampled_from([False] * 5 + [True]))
    def fires(self, name: str, severity: Any, dry_run: bool) -> None:
        """An alert begins an episode."""
        if name not in self.alerts or not self.alerts[name].firing:
            labels = {"rule": name, "service": name[:4], "environment": "prod", "variant": "v", "severity": severity}
            # The first two of a service are about the same scores: everywhere, and in one feature.
            labels |= {"scorecard": "c", **ABOUT[name[-1]]}
            self.alerts[name] = Standing(name, severity, True, self.now, labels, dry_run=dry_run)
            self.look()

    @rule(name=st.sampled_from(NAMES), severity=SEVERITIES)
    def gets_worse(self, name: str, severity: Any) -> None:
        """Its severity rises; an acknowledgement is void then."""
        alert = self.alerts.get(name)
        if alert is not None and alert.firing and RANK[severity] > alert.rank:
            labels = {**alert.labels, "severity": severity}
            self.alerts[name] = replace(alert, severity=severity, labels=labels, acked=False)
            self.look()

    @rule(name=st.sampled_from(NAMES))
    def resolves(self, name: str) -> None:
        """It is over."""
        if name in self.alerts:
            self.alerts[name] = replace(self.alerts[name], firing=False, acked=False)
            self.look()

    @rule(name=st.sampled_from(NAMES))
    def is_taken(self, name: str) -> None:
        """Somebody acknowledges it."""
        if name in self.alerts and self.alerts[name].firing:
            self.alerts[name] = replace(self.alerts[name], acked=True)
            self.look()

    @rule(glob=st.sampled_from([*NAMES, "desk*", "*-1"]), minutes=st.integers(1, 600))
    def is_silenced(self, glob: str, minutes: int) -> None:
        """Somebody mutes some of them."""
        until = self.now + timedelta(minutes=minutes)
        self.silences.append(Silence(f"s{len(self.silences)}", {"rule": glob}, "ada", "x", self.now, until))
        self.look()

    @rule()
    def silences_end(self) -> None:
        """Somebody ends them all."""
        self.silences = [replace(silence, ended_at=silence.ended_at or self.now) for silence in self.silences]
        self.look()

    @rule(seconds=st.sampled_from([1, 2, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600]))
    def time_passes(self, seconds: int) -> None:
        """The beat ticks."""
        self.now += timedelta(seconds=seconds)
        self.look()

    def look(self) -> None:
        """One run of the notifier, and what follows for the model."""
        quiet = muted(list(self.alerts.values()), ROUTING, self.silences, self.now)
        loud = {name for name, alert in self.alerts.items() if alert.firing and not alert.dry_run and name not in quiet}
        self.loud_since = {name: self.loud_since.get(name, self.now) for name in loud}
        groups, self.notices = manage(self.alerts.values(), ROUTING, self.silences, self.groups, self.now)
        self.groups = {key: Group.from_state(group.key, group.to_state()) for key, group in groups.items()}
        again = manage(self.alerts.values(), ROUTING, self.silences, self.groups, self.now)
        assert again == (self.groups, []), "a second look at the same moment tells nothing"
        for notice in self.notices:
            self.check(notice, loud)
            self.known |= set(notice.firing)
            self.known -= set(notice.resolved)

    def check(self, notice: Notice, loud: set[str]) -> None:
        """What one notice may say."""
        assert set(notice.firing) <= loud, "only what fires and is neither muted nor a dry run"
        assert set(notice.resolved) <= self.known, "only what people were told of resolves, and once"
        assert all(not self.alerts[name].firing for name in notice.resolved)
        assert (notice.status == "resolved") == (not notice.firing)
        if notice.status == "resolved":
            others = {name for group in self.groups.values() for name in group.marks}
            assert not others & set(notice.resolved), "what is over is in no page any more"
        if notice.cause == "repeat":
            assert any(not self.alerts[name].acked for name in notice.firing)
            last = max(at for (name, _, _), at in self.told_at.items() if name in notice.firing)
            assert self.now - last >= DEFAULT.repeat_interval
        for name in notice.escalated:
            mark = notice.group.marks[name]
            assert not self.alerts[name].acked
            # Since it was told: one that was over in between and is back is known.
            assert self.now - mark.told_at >= RESPONSE_TIME[mark.severity]
        for name in notice.firing:
            alert = self.alerts[name]
            self.told_at[name, alert.fired_at, alert.severity] = self.now

    @invariant()
    def nothing_new_means_no_notice(self) -> None:
        """Two notices of a group with the same content within the repeat interval would be spam."""
        for notice in self.notices:
            if notice.cause in {"added", "raised"}:
                before = self.groups[notice.group.dedup_key]
                fresh = [name for name in notice.firing if before.marks[name].told_at == self.now]
                assert fresh, "something is new, more severe, or was muted until now"

    @invariant()
    def a_sev1_is_never_passed_over(self) -> None:
        """One that is not muted was told at the latest when somebody looked first; and again while nobody has it."""
        for name, since in self.loud_since.items():
            alert = self.alerts[name]
            if alert.severity != "SEV1":
                continue
            marks = [group.marks[name] for group in self.groups.values() if name in group.marks]
            assert marks, f"{name} is a SEV1 since {since} and nobody knows"
            assert not marks[0].muted or alert.acked
            assert marks[0].severity == "SEV1"
            if not alert.acked and self.now - marks[0].told_at >= RESPONSE_TIME["SEV1"]:
                assert marks[0].escalated

    @invariant()
    def what_is_loud_is_told_in_time(self) -> None:
        """By the group's wait for the first notice, by its interval for what came later."""
        for name, since in self.loud_since.items():
            if self.alerts[name].acked or self.now - since < DEFAULT.group_interval:
                continue
            marks = [group.marks[name] for group in self.groups.values() if name in group.marks]
            gathering = [group for group in self.groups.values() if group.told_at is None]
            if not marks and any(self.now - group.since < WAIT for group in gathering):
                continue  # nobody looked for so long that it has a page of its own, which gathers now
            assert [mark.muted for mark in marks] == [False], "it was told, and told anew if it was muted since"
            assert name in self.known

    @invariant()
    def a_page_is_joined_by_what_comes_soon_only(self) -> None:
        """An alert has one page; what is told first in an open page came before the repeat interval was over.

        Or it is about the same scores as another one there that fires, and no worse than all that was told.
        """
        names = [name for group in self.groups.values() for name in group.marks]
        assert len(names) == len(set(names))
        for group in self.groups.values():
            news = self.news.setdefault(group.dedup_key, set())
            news |= {(mark.told_at, name) for name, mark in group.marks.items()}
            for name, mark in group.marks.items():
                if (group.dedup_key, name) not in self.first_told:
                    self.first_told[group.dedup_key, name] = mark.told_at
                    others = [at for at, other in news if at <= mark.told_at and other != name]
                    late = DEFAULT.repeat_interval + DEFAULT.group_interval
                    quiet = mark.told_at - max(others) if others else timedelta(0)
                    longer = quiet < 2 * DEFAULT.repeat_interval + late and self.is_known_trouble(name, group)
                    assert quiet < late or longer
            self.worst[group.dedup_key] = RANK[group.worst] if group.worst else 0

    def is_known_trouble(self, name: str, group: Group) -> bool:
        """Whether somebody who was told of the page knows as much."""
        same = [n for n in group.marks if n[-1] in "01" and name[-1] in "01" and n != name and self.alerts[n].firing]
        return bool(same) and self.alerts[name].rank <= self.worst.get(group.dedup_key, 0)

    @invariant()
    def what_is_over_is_told(self) -> None:
        """Nobody waits for the end of something for longer than the interval, once all of its group is over."""
        for group in self.groups.values():
            if group.told_at is not None and self.now - group.told_at >= DEFAULT.group_interval:
                assert any(self.alerts[name].firing for name in group.marks)


People.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPeople = People.TestCase
