"""Store → decisions and alerts → outbox: fold the new evidence of each rollout, and evaluate each alert rule.

What follows is committed with what it follows from; see ``fold_rollout`` and ``verify_rollback`` for rollouts, and
``evaluate_alerts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from evalpipe.alerts.rules import Rule
from evalpipe.alerts.state import Transition
from evalpipe.channels.base import Channel
from evalpipe.pipeline.evaluate_alerts import EvaluateAlerts
from evalpipe.pipeline.fold_rollout import LATE_AFTER, FoldRollouts
from evalpipe.pipeline.telling import Telling
from evalpipe.pipeline.trust import VersionOf
from evalpipe.pipeline.verify_rollback import VerifyRollbacks
from evalpipe.rollout.decision import Decision
from evalpipe.scorecard.model import Scorecard
from evalpipe.store.sql import Store


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one round decided.

    Attributes:
        decisions: of rollouts.
        transitions: of alerts.
        verified: rollouts whose rollback turned out to have taken effect, or not.
    """

    decisions: tuple[Decision, ...] = ()
    transitions: tuple[Transition, ...] = ()
    verified: tuple[str, ...] = ()

    @property
    def told(self) -> bool:
        """Whether there is something to deliver."""
        return bool(self.decisions or self.transitions or self.verified)


class Evaluate:
    """The stage, with what it needs.

    Args:
        store: where evidence is read, and state and outbox are written.
        scorecards: whose alert rules are evaluated.
        channels: every notification goes to each.
        source: CloudEvents' ``source``.
        late_after: how long the fold waits for a score.
        publish: tells the hooks of a service, after the commit that moved a canary's weight.
        version_of: names the judges that scorecards mean, to find out which of them are stopped.
        rules: further alert rules, of files of ``alerts:``.
    """

    def __init__(
        self,
        store: Store,
        scorecards: Sequence[Scorecard],
        channels: Mapping[str, Channel],
        *,
        source: str,
        late_after: timedelta = LATE_AFTER,
        publish: Callable[[str, datetime], object] | None = None,
        version_of: VersionOf | None = None,
        rules: Sequence[Rule] = (),
    ) -> None:
        telling = Telling(channels, source)
        self._fold = FoldRollouts(
            store, scorecards, telling, late_after=late_after, publish=publish, version_of=version_of
        )
        self._verify = VerifyRollbacks(store, telling)
        self._alerts = EvaluateAlerts(store, scorecards, rules=rules, version_of=version_of, publish=publish)

    def __call__(self, now: datetime) -> Evaluated:
        """Fold what has arrived for every rollout, then look at rollbacks and evaluate every alert rule, at ``now``.

        A part that fails stops no other; its error is raised at the end.
        """
        try:
            decisions = self._fold(now)
        finally:
            try:
                verified = self._verify(now)
            finally:
                transitions = self._alerts(now)
        return Evaluated(tuple(decisions), tuple(transitions), tuple(verified))
