"""The composition root: settings in, the stages of the pipeline out. Each is made once, when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

from evalpipe.alerts.routing import routing_of
from evalpipe.alerts.rules import rule_of
from evalpipe.channels.base import Channel
from evalpipe.detectors.base import detectors
from evalpipe.errors import ConfigError
from evalpipe.judges.base import Judge, Prompt, judges
from evalpipe.judges.config import common_options, judge_config, open_judge
from evalpipe.judges.desk import Desk
from evalpipe.judges.prices import Price, require_price, worst_case_usd
from evalpipe.pipeline.anchors import Anchors
from evalpipe.pipeline.auto_baseline import AutoBaseline
from evalpipe.pipeline.batch import BatchStage
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.deliver import Deliver
from evalpipe.pipeline.embed import Embed
from evalpipe.pipeline.evaluate import Evaluate
from evalpipe.pipeline.export import Export
from evalpipe.pipeline.feedback import FeedbackStage
from evalpipe.pipeline.fingerprint import FingerprintStage
from evalpipe.pipeline.ingest import Ingest
from evalpipe.pipeline.judge import JudgeStage
from evalpipe.pipeline.maintain import Maintain
from evalpipe.pipeline.measure import Measure
from evalpipe.pipeline.notify import Notify
from evalpipe.pipeline.oversee import Oversee
from evalpipe.pipeline.publish import Publish
from evalpipe.pipeline.undelivered import Undelivered
from evalpipe.prices import price_table
from evalpipe.profiling.embedders.base import Embedder, open_embedder
from evalpipe.profiling.profiler import Profiler
from evalpipe.scorecard.alert_file import Alerting, load_alerts
from evalpipe.scorecard.fingerprint import FingerprintSet, load_fingerprints
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorecard.model import JudgeSpec, Scorecard
from evalpipe.scorecard.notify_rules import NotifyRules
from evalpipe.scorecard.policy import RolloutEntry, load_rollouts
from evalpipe.scorers.base import heuristics
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.settings import Settings
from evalpipe.store import purse
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
        self._versions: dict[str, str] = {}
        self._prices: dict[str, tuple[Price, int | None]] = {}

    @cached_property
    def store(self) -> Store:
        """The database."""
        return Store(self.settings.database_url, exports=bool(self.settings.otlp_endpoint))

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
        return load_scorecards(folder, heuristics=heuristics, judges=judges, detectors=detectors)

    @cached_property
    def plans(self) -> list[ScoringPlan]:
        """The scorecards, ready to score."""
        return [ScoringPlan(card, self.has_judge) for card in self.scorecards]

    @cached_property
    def rollouts(self) -> list[tuple[Scorecard, RolloutEntry]]:
        """What files of ``rollouts:`` declare, each with the scorecard whose scores it compares.

        Raises:
            ConfigError: there is no such file, or an entry names no scorecard.
            ScorecardError: an entry cannot be used.
        """
        path = self.settings.rollouts
        entries = load_rollouts(path, self.scorecards) if path is not None else []
        if nameless := [entry.name for entry in entries if not entry.scorecard]:
            raise ConfigError(f"{path}: rollout {nameless[0]!r} names no scorecard: write 'scorecard:' with its name")
        cards = {card.name: card for card in self.scorecards}
        return [(cards[entry.scorecard], entry) for entry in entries]

    @cached_property
    def channels(self) -> Mapping[str, Channel]:
        """Where notifications go, by name.

        Raises:
            ConfigError: a channel cannot work as it is configured.
        """
        from evalpipe.channels.file import load_channels

        found = load_channels(self.settings.channels, os.environ) if self.settings.channels else {}
        if not self.settings.webhook_url:
            return found
        from evalpipe.channels.webhook import Webhook, WebhookConfig

        if not self.settings.webhook_secrets:
            raise ConfigError(
                "EVALPIPE_WEBHOOK_URL is set without EVALPIPE_WEBHOOK_SECRET: run 'evalpipe webhook secret'"
            )
        if "webhook" in found:
            raise ConfigError(
                f"{self.settings.channels} names a channel 'webhook', which EVALPIPE_WEBHOOK_URL is: rename it"
            )
        config = WebhookConfig(url=self.settings.webhook_url, secrets=self.settings.webhook_secrets)
        return {"webhook": Webhook(config), **found}

    def has_judge(self, spec: JudgeSpec) -> bool:
        """Whether the judges that a criterion names first are configured."""
        return "default" not in spec.ladder[0] or bool(self.settings.judge)

    def open_judge(self, model: str) -> Judge | None:
        """The judge that a scorecard's word means; None where none is configured."""
        if model == "default" and not self.settings.judge:
            return None
        # The work's own attempts are the only retries: they are kept in the database, and counted once.
        return open_judge(replace(judge_config(self.settings, model), attempts=1))

    @cached_property
    def models(self) -> list[str]:
        """Every judge that a scorecard may ask and that is configured, as scorecards write them."""
        specs = [c.judge for card in self.scorecards for c in card.criteria if c.judge is not None]
        named = {model for spec in specs for model in spec.models}
        return sorted(named if self.settings.judge else named - {"default"})

    def check_judges(self) -> list[str]:
        """The versions of the judges that scorecards may ask.

        Raises:
            ConfigError: one of them cannot be opened, or has no known price: without one no cap could be kept.
        """
        versions = [self.judge_version(model) for model in self.models]
        for model in self.models:
            require_price(judge_config(self.settings, model))
        return versions

    def judge_version(self, model: str) -> str:
        """The version of the judge that a scorecard's word means; nothing is connected.

        Raises:
            ConfigError: none is configured, or it cannot be opened.
        """
        if model not in self._versions:
            judge = self.open_judge(model)
            if judge is None:
                raise ConfigError(f"no judge is configured for model {model!r}: set EVALPIPE_JUDGE")
            self._versions[model] = judge.version
        return self._versions[model]

    @cached_property
    def desk(self) -> Desk:
        """Asks judges; its connections belong to the loop that they are first used on."""
        settings = self.settings
        return Desk(
            self.open_judge,
            clock=now,
            concurrency=settings.judge_concurrency,
            redis_url=settings.redis_url,
            options_of=lambda model: common_options(judge_config(settings, model)),
        )

    def worst_case_usd(self, model: str, prompt: Prompt) -> float:
        """What one call can cost at the most.

        Raises:
            ConfigError: nobody knows the judge's price.
        """
        if model not in self._prices:
            config = judge_config(self.settings, model)
            self._prices[model] = require_price(config), config.options.get("max_tokens")
        price, max_tokens = self._prices[model]
        return worst_case_usd(prompt, price, max_tokens)

    async def close_judges(self) -> None:
        """Close the judges' connections, on the loop that they were used on."""
        if "desk" in self.__dict__:
            await self.desk.aclose()

    @cached_property
    def ingest(self) -> Ingest:
        """Queue → store."""
        return Ingest(
            self.store,
            self.plans,
            max_record_bytes=self.settings.max_record_bytes,
            profiler=Profiler(self.embedder),
        )

    @cached_property
    def embedder(self) -> Embedder:
        """Makes embeddings of inputs and outputs.

        Raises:
            ConfigError: EVALPIPE_EMBEDDINGS names none, or it cannot work.
        """
        settings = self.settings
        return open_embedder(
            settings.embeddings, base_url=settings.embeddings_base_url, api_key=settings.embeddings_api_key
        )

    @cached_property
    def embed(self) -> Embed:
        """Store → embedder → store."""
        return Embed(self.store, self.embedder)

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
        """Store → judges → store.

        Raises:
            ConfigError: as ``check_judges``.
        """
        self.check_judges()
        return JudgeStage(
            self.store,
            self.desk,
            concurrency=self.settings.judge_concurrency,
            lease=self.settings.lease,
            attempts=self.settings.attempts,
            clock=now,
            budget=Budget(self.caps, self.worst_case_usd),
        )

    @cached_property
    def batch(self) -> BatchStage:
        """Store → batches of providers → store."""
        return BatchStage(
            self.store,
            self.desk,
            attempts=self.settings.attempts,
            clock=now,
            budget=Budget(self.caps, self.worst_case_usd),
        )

    @cached_property
    def anchors(self) -> Anchors:
        """Anchors → judges → store."""
        every = timedelta(seconds=self.settings.anchors_every_s)
        return Anchors(
            self.store,
            self.scorecards,
            self.desk,
            every=every,
            clock=now,
            caps=self.caps,
            worst_case=self.worst_case_usd,
        )

    @cached_property
    def fingerprints(self) -> list[FingerprintSet]:
        """What files of ``fingerprints:`` declare.

        Raises:
            ConfigError: there is no such file.
            ScorecardError: a set cannot be used.
        """
        return load_fingerprints(self.settings.fingerprints) if self.settings.fingerprints is not None else []

    @cached_property
    def fingerprint(self) -> FingerprintStage:
        """Fixed prompts → the application's model → store."""
        return FingerprintStage(self.store, self.fingerprints, clock=now, embedder=self.embedder)

    @cached_property
    def evaluate(self) -> Evaluate:
        """Store → decisions → outbox."""
        return Evaluate(
            self.store,
            self.scorecards,
            self.channels,
            source=self.settings.source,
            publish=self.publish.soon,
            version_of=self.judge_version,
            rules=[rule_of(entry, card, entry.fits(card)) for card, entry in self.alerting.entries],
        )

    @cached_property
    def caps(self) -> dict[str, float]:
        """US dollars that judges may cost in a UTC day, by scope of the purse; a scope that is not in it has no bound.

        Raises:
            ConfigError: an option of a judge has a wrong value, or one judge has two caps.
        """
        named: dict[str, str] = {}
        caps = {} if self.settings.judge_usd_per_day is None else {purse.ALL: self.settings.judge_usd_per_day}
        for card in self.scorecards:
            if card.judging.usd_per_day is not None:
                caps[f"scorecard:{card.name}"] = card.judging.usd_per_day
        for model in self.models:
            usd = common_options(judge_config(self.settings, model)).usd_per_day
            if usd is None:
                continue
            scope = f"judge:{self.judge_version(model)}"
            if caps.setdefault(scope, usd) != usd:
                message = (
                    f"{named[scope]!r} and {model!r} are one judge, with two caps (usd_per_day): write the same one"
                )
                raise ConfigError(message)
            named[scope] = model
        return caps

    @cached_property
    def oversee(self) -> Oversee:
        """Store → alerts about judges."""
        return Oversee(
            self.store,
            self.scorecards,
            self.channels,
            source=self.settings.source,
            config_of=lambda model: judge_config(self.settings, model),
            caps=self.caps,
        )

    @cached_property
    def alerting(self) -> Alerting:
        """What the files of ``alerts:`` declare: rules, and who hears of alerts.

        Raises:
            ConfigError: there is no such file, or a channel cannot work as it is configured.
            ScorecardError: one of them cannot be used; it names a channel that is not configured, for example.
        """
        path = self.settings.alerts
        return load_alerts(path, self.scorecards, detectors, self.channels) if path is not None else Alerting()

    @cached_property
    def notify(self) -> Notify:
        """Alerts → outbox."""
        return Notify(
            self.store,
            self.channels,
            source=self.settings.source,
            routing=routing_of(self.alerting.notify or NotifyRules()),
            url=self.settings.url,
        )

    @cached_property
    def deliver(self) -> Deliver:
        """Outbox → world."""
        return Deliver(self.store, self.channels, now)

    @cached_property
    def export(self) -> Export:
        """Scores → OpenTelemetry.

        Raises:
            ConfigError: the endpoint is no URL.
        """
        return Export(self.store, self.settings.otlp_endpoint, self.settings.otlp_headers)

    @cached_property
    def undelivered(self) -> Undelivered:
        """Outbox → alerts about what does not get out."""
        return Undelivered(self.store, self.channels, source=self.settings.source)

    @cached_property
    def maintain(self) -> Maintain:
        """Upkeep."""
        return Maintain(self.store, self.queue, self.settings.retention, self.caps, rollups=self.settings.rollups)

    @cached_property
    def auto_baseline(self) -> AutoBaseline:
        """Releases that stayed healthy → baselines."""
        return AutoBaseline(self.store)

    @cached_property
    def publish(self) -> Publish:
        """Store → hooks."""
        return Publish(self.store, self.queue, lambda at: price_table(at, self.settings.prices))

    def close(self) -> None:
        """Close what was opened, judges aside."""
        for name in ("store", "queue"):
            if name in self.__dict__:
                self.__dict__[name].close()
