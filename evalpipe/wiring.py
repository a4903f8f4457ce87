"""The composition root: settings in, the stages of the pipeline out. Each is made once, when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property

from evalpipe.channels.base import Channel
from evalpipe.errors import ConfigError
from evalpipe.judges.base import Judge, judges
from evalpipe.judges.config import judge_config, open_judge
from evalpipe.pipeline.deliver import Deliver
from evalpipe.pipeline.evaluate import Evaluate
from evalpipe.pipeline.feedback import FeedbackStage
from evalpipe.pipeline.ingest import Ingest
from evalpipe.pipeline.judge import JudgeStage
from evalpipe.pipeline.maintain import Maintain
from evalpipe.pipeline.measure import Measure
from evalpipe.pipeline.publish import Publish
from evalpipe.prices import price_table
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorecard.model import JudgeSpec, Scorecard
from evalpipe.scorers.base import heuristics
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.settings import Settings
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store


def now() -> datetime:
    """The clock: aware UTC."""
    return datetime.now(UTC)


class Wiring:
    """What one process of evalpipe is made of.

    Args:
        settings: from the environment by default.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_env()
        self._judges: dict[str, Judge] = {}

    @cached_property
    def store(self) -> Store:
        """The database."""
        return Store(self.settings.database_url)

    @cached_property
    def queue(self) -> Queue:
        """The Redis beside Celery."""
        return Queue(self.settings.redis_url)

    @cached_property
    def scorecards(self) -> list[Scorecard]:
        """The scorecards in the settings' folder.

        Raises:
            ConfigError: there is no such folder, or none in it.
            ScorecardError: one of them cannot be used.
        """
        folder = self.settings.scorecards
        if not folder.exists():
            raise ConfigError(f"no folder {str(folder)!r}: set EVALPIPE_SCORECARDS to where the scorecards are")
        return load_scorecards(folder, heuristics=heuristics, judges=judges)

    @cached_property
    def plans(self) -> list[ScoringPlan]:
        """The scorecards, ready to score."""
        return [ScoringPlan(card, self.has_judge) for card in self.scorecards]

    @cached_property
    def channels(self) -> Mapping[str, Channel]:
        """Where notifications go, by name."""
        if not self.settings.webhook_url:
            return {}
        from evalpipe.channels.webhook import Webhook, WebhookConfig

        if not self.settings.webhook_secrets:
            raise ConfigError(
                "EVALPIPE_WEBHOOK_URL is set without EVALPIPE_WEBHOOK_SECRET: run 'evalpipe webhook secret'"
            )
        config = WebhookConfig(url=self.settings.webhook_url, secrets=self.settings.webhook_secrets)
        return {"webhook": Webhook(config)}

    def has_judge(self, spec: JudgeSpec) -> bool:
        """Whether the judge that a criterion names is configured."""
        return spec.model != "default" or bool(self.settings.judge)

    def judge_for(self, spec: JudgeSpec) -> Judge | None:
        """The judge that a criterion names, opened once per process; None where none is configured."""
        if not self.has_judge(spec):
            return None
        if spec.model not in self._judges:
            # The work's own attempts are the only retries: they are kept in the database, and counted once.
            self._judges[spec.model] = open_judge(replace(judge_config(self.settings, spec.model), attempts=1))
        return self._judges[spec.model]

    async def close_judges(self) -> None:
        """Close the judges' connections, on the loop that they were used on."""
        for judge in self._judges.values():
            await judge.aclose()
        self._judges.clear()

    @cached_property
    def ingest(self) -> Ingest:
        """Queue → store."""
        return Ingest(self.store, self.plans, max_record_bytes=self.settings.max_record_bytes)

    @cached_property
    def measure(self) -> Measure:
        """Meter → store."""
        return Measure(self.store)

    @cached_property
    def feedback(self) -> FeedbackStage:
        """Feedback → store."""
        return FeedbackStage(self.store)

    @cached_property
    def judge(self) -> JudgeStage:
        """Store → judges → store."""
        return JudgeStage(
            self.store,
            self.judge_for,
            concurrency=self.settings.judge_concurrency,
            lease=self.settings.lease,
            attempts=self.settings.attempts,
            clock=now,
        )

    @cached_property
    def evaluate(self) -> Evaluate:
        """Store → decisions → outbox."""
        return Evaluate(
            self.store, self.scorecards, self.channels, source=self.settings.source, publish=self.publish.soon
        )

    @cached_property
    def deliver(self) -> Deliver:
        """Outbox → world."""
        return Deliver(self.store, self.channels, now)

    @cached_property
    def maintain(self) -> Maintain:
        """Upkeep."""
        return Maintain(self.store, self.queue, self.settings.retention)

    @cached_property
    def publish(self) -> Publish:
        """Store → hooks."""
        return Publish(self.store, self.queue, lambda at: price_table(at, self.settings.prices))

    def close(self) -> None:
        """Close what was opened, judges aside."""
        for name in ("store", "queue"):
            if name in self.__dict__:
                self.__dict__[name].close()
