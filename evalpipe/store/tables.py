"""The tables: the only schema. Alembic's migrations are compared with it in the tests."""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime: ``timestamptz`` on PostgreSQL, naive UTC text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive datetimes, which would mean another instant on each machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive datetime cannot be stored: {value!r}")
        return value.astimezone(UTC).replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back aware UTC from either database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Packed(TypeDecorator[dict[str, Any]]):
    """A large document that nobody queries: deflated JSON, quicker to write than the database's own kind."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> bytes | None:
        """Deflate."""
        del dialect
        return None if value is None else zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> dict[str, Any] | None:
        """Inflate."""
        del dialect
        return None if value is None else dict(json.loads(zlib.decompress(value)))


metadata = MetaData()
MOSTLY_NEW = {"mostly_new": True}
"""Of tables whose inserts meet a row that is there only after a redelivery."""
Document = JSON().with_variant(JSONB(), "postgresql")
Told = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""A document that may be missing."""
Big = BigInteger().with_variant(Integer(), "sqlite")


def _text(name: str, default: str | None = "", **options: Any) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default, **options)


def _count(name: str, kind: Any = Big, **options: Any) -> Column[int]:
    return Column(name, kind, nullable=False, server_default="0", **options)


releases = Table(
    "releases",
    metadata,
    Column("release_id", Text, primary_key=True),
    _text("service"),
    _text("variant"),
    _text("environment"),
    _text("model"),
    _text("prompt"),
    _text("retrieval"),
    _text("index"),
    _text("tool_schema"),
    _text("data_pipeline"),
    Column("first_seen_at", Instant, nullable=False),
    comment="Every exact release seen in traffic.",
)

scorecards = Table(
    "scorecards",
    metadata,
    Column("version", Text, primary_key=True),
    _text("name"),
    Column("body", Document, nullable=False),
    Column("first_seen_at", Instant, nullable=False),
    comment="Every scorecard version that scored something: work is judged by the version that owed it.",
)

records = Table(
    "records",
    metadata,
    Column("record_id", Text, primary_key=True),
    _text("trace_id"),
    _text("service"),
    _text("feature"),
    _text("environment"),
    _text("variant"),
    _text("release_id"),
    _text("session_id"),
    _text("user_id"),
    _text("unit"),
    Column("captured_at", Instant, nullable=False),
    Column("ingested_at", Instant, nullable=False),
    Column("probability", Float, nullable=False),
    _text("stratum"),
    _text("reason"),
    Column("latency_ms", Float),
    Column("cost_usd", Float),
    _text("outcome", "in_flight"),
    Column("payload", LargeBinary, comment="The wire form as JSON; empty after erasure or retention."),
    Index("records_by_trace", "trace_id"),
    Index("records_by_time", "captured_at"),
    Index("records_by_user", "user_id"),
    Index("records_by_arrival", "ingested_at"),
    Index(
        "records_in_flight",
        "service",
        "captured_at",
        postgresql_where=text("outcome = 'in_flight'"),
        sqlite_where=text("outcome = 'in_flight'"),
    ),
    comment="Every sampled record that reached the store.",
    info=MOSTLY_NEW,
)

profiles = Table(
    "profiles",
    metadata,
    Column("record_id", Text, primary_key=True),
    Column("captured_at", Instant, nullable=False),
    _text("service"),
    _text("environment"),
    _text("variant"),
    _text("feature"),
    _text("release_id"),
    Column("words", Document, nullable=False),
    Column("sizes", Document, nullable=False),
    _text("embedder", comment="Name and version; '' while the embeddings wait to be made."),
    Column("input_embedding", LargeBinary),
    Column("output_embedding", LargeBinary),
    _text("input_key"),
    _text("unit", comment="The conversation, hashed."),
    Column("weight", Float, nullable=False),
    _count("pick", comment="Of the record's id, hashed: an even choice takes the smallest."),
    Index("profiles_by_place", "service", "captured_at"),
    Index("profiles_by_time", "captured_at"),
    Index(
        "profiles_to_embed",
        "captured_at",
        postgresql_where=text("embedder = ''"),
        sqlite_where=text("embedder = ''"),
    ),
    comment="What inputs and outputs look like, for drift: one row for each record that stands for traffic.",
    info=MOSTLY_NEW,
)

profile_places = Table(
    "profile_places",
    metadata,
    Column("service", Text, primary_key=True),
    Column("environment", Text, primary_key=True),
    Column("variant", Text, primary_key=True),
    Column("feature", Text, primary_key=True),
    Column("release_id", Text, primary_key=True),
    Column("last_at", Instant, nullable=False, comment="When a profile of it was last seen, to ten minutes."),
    comment="Where profiles are of: rules find their places without reading profiles.",
)

scores = Table(
    "scores",
    metadata,
    Column("record_id", Text, primary_key=True),
    Column("criterion", Text, primary_key=True),
    Column("scorecard_version", Text, primary_key=True),
    Column("epoch", Text, primary_key=True),
    _text("scorecard"),
    _text("service"),
    _text("feature"),
    _text("environment"),
    _text("variant"),
    _text("release_id"),
    Column("captured_at", Instant, nullable=False),
    Column("scored_at", Instant, nullable=False),
    _text("status", None),
    Column("value", Float),
    _text("label"),
    _text("explanation"),
    Column("weight", Float, nullable=False),
    _text("scorer"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    _count("step", Integer, comment="Of the judges' ladder: 0 is the judge that the scorecard names first."),
    _count("escalated", Integer, comment="1 where the stronger judge of a cascade was asked."),
    Column("disagreement", Float, comment="Mean distance of two votes, 0 to 1; empty with one vote."),
    _text("arm", "served", comment="served, or shadow: an answer that nobody saw"),
    Index("scores_by_criterion", "criterion", "captured_at"),
    Index("scores_by_time", "captured_at"),
    comment="One row for each record, criterion, scorecard version and epoch.",
    info=MOSTLY_NEW,
)

grades = Table(
    "grades",
    metadata,
    Column("work_id", Text, primary_key=True),
    Column("judge_version", Text, primary_key=True),
    Column("vote", Integer, primary_key=True),
    _text("record_id"),
    _text("criterion"),
    _text("status", None),
    Column("value", Float),
    _text("label"),
    _text("explanation"),
    _text("quotation"),
    _text("raw"),
    _text("cause", comment="Of an error: refused, truncated, malformed or request."),
    _text("reading", "word", comment="word, or expected: the mean over the grades' log-probabilities"),
    Column("confidence", Float),
    _text("role", "first", comment="first, escalated, or swapped (the second order of a pair)"),
    _text("content_key", comment="Judge, prompt, record and vote: an equal question is not asked, nor paid, twice."),
    _count("reused", Integer, comment="1 where the grade was known already, and cost nothing."),
    _text("model"),
    _text("fingerprint"),
    _text("request_id"),
    _count("input_tokens"),
    _count("cached_tokens"),
    _count("output_tokens"),
    Column("cost_usd", Float),
    Column("latency_ms", Float),
    _count("attempts", Integer),
    Column("graded_at", Instant, nullable=False),
    Index("grades_by_record", "record_id"),
    Index(
        "grades_by_content",
        "content_key",
        postgresql_where=text("content_key <> ''"),
        sqlite_where=text("content_key <> ''"),
    ),
    comment="What a judge said, with what it took.",
    info=MOSTLY_NEW,
)

work = Table(
    "work",
    metadata,
    Column("work_id", Text, primary_key=True),
    _text("record_id"),
    _text("scorecard"),
    _text("scorecard_version"),
    _text("criterion"),
    _text("service"),
    Column("captured_at", Instant, nullable=False),
    Column("weight", Float, nullable=False),
    Column("priority", Integer, nullable=False),
    _text("origin", "ingest", comment="ingest or rescore"),
    _text("lane", "now", comment="now, or batch"),
    _text("state", "pending", comment="pending, batched, done, shed or dead"),
    _text("batch_id", comment="Of the batch that it waits for."),
    Column("keep", Float, nullable=False, server_default="1", comment="Share by which it was kept; the weight has it."),
    _text("held", comment="Held of the caps for its calls, as JSON: {day: {scope: usd}}."),
    Column("due_at", Instant, nullable=False),
    Column("lease_until", Instant),
    _count("fence"),
    _count("attempts", Integer),
    _text("reason"),
    Column("created_at", Instant, nullable=False),
    Index(
        "work_to_claim",
        "priority",
        "due_at",
        postgresql_where=text("state = 'pending'"),
        sqlite_where=text("state = 'pending'"),
    ),
    Index("work_by_record", "record_id"),
    Index(
        "work_by_batch",
        "batch_id",
        postgresql_where=text("batch_id <> ''"),
        sqlite_where=text("batch_id <> ''"),
    ),
    Index(
        "work_given_up",
        "created_at",
        postgresql_where=text("state = 'dead'"),
        sqlite_where=text("state = 'dead'"),
    ),
    comment="Judge calls that are owed, done, or dead with the reason.",
    info=MOSTLY_NEW,
)


def _sums() -> list[Column[Any]]:
    """What a ``Rollup`` adds up, and its histogram: a count for each bin, of as many bytes as the largest needs."""
    counts = [_count(name) for name in ("n_scored", "n_skipped", "n_abstained", "n_error")]
    names = ("sum_w", "sum_w2", "sum_wx", "sum_wx2", "sum_w2x", "sum_w2x2", "cost_usd")
    floats = [Column(name, Float, nullable=False) for name in names]
    return [*counts, *floats, Column("bins", LargeBinary, nullable=False)]


def _rollups(name: str, comment: str) -> Table:
    return Table(
        name,
        metadata,
        Column("bucket_at", Instant, primary_key=True),
        Column("series_id", Text, primary_key=True),
        *_sums(),
        Index(f"{name}_by_series", "series_id", "bucket_at"),
        comment=comment,
        info=MOSTLY_NEW,
    )


rollups = _rollups("rollups", "Minute buckets of every series.")
rollup_hours = _rollups("rollup_hours", "The same by the hour.")
rollup_days = _rollups("rollup_days", "The same by the UTC day.")

growths = Table(
    "growths",
    metadata,
    Column("growth_id", Text, primary_key=True),
    _text("series_id", None),
    Column("since_at", Instant, nullable=False, comment="When the first of its scores was captured."),
    Column("until_at", Instant, nullable=False, comment="And the last."),
    Column("at", Instant, nullable=False),
    *_sums(),
    Index("growths_by_time", "at"),
    comment="A queue: what each commit of scores added to each series, until alert rules are evaluated.",
)

series = Table(
    "series",
    metadata,
    Column("series_id", Text, primary_key=True),
    _text("service"),
    _text("feature"),
    _text("environment"),
    _text("variant"),
    _text("release_id"),
    _text("scorecard"),
    _text("criterion"),
    _text("epoch"),
    _text("arm", "served", comment="served, or shadow: answers that nobody saw"),
    Column("first_seen_at", Instant, nullable=False),
    Index("series_by_criterion", "service", "scorecard", "criterion"),
    comment="What a rollup's numbers are about.",
)

ledger = Table(
    "ledger",
    metadata,
    Column("hour_at", Instant, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("scorecard", Text, primary_key=True, comment="'' counts records, a name counts record x scorecard."),
    Column("term", Text, primary_key=True),
    _count("n"),
    comment="What became of records, counted in the transaction that did it.",
)

receipts = Table(
    "receipts",
    metadata,
    Column("process_id", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("hour_at", Instant, primary_key=True),
    _count("n"),
    comment="Records that arrived, by the hook process that sent them.",
)

meters = Table(
    "meters",
    metadata,
    Column("process_id", Text, primary_key=True),
    Column("release_id", Text, primary_key=True),
    Column("feature", Text, primary_key=True),
    Column("hour_at", Instant, primary_key=True),
    _text("service"),
    _count("sequence"),
    Column("sent_at", Instant, nullable=False),
    _count("calls"),
    _count("errors"),
    _count("sampled"),
    _count("not_sampled"),
    _count("enqueued"),
    _count("shed"),
    Column("shed_by_reason", Document, nullable=False),
    _count("input_tokens"),
    _count("output_tokens"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Column("cost_squares", Float, nullable=False, server_default="0", comment="Sum of the squares of the costs."),
    _count("unpriced", comment="Calls of a model that has no price: their cost is unknown, and not in cost_usd."),
    _count("cached_tokens"),
    _count("screened", comment="Answers that the refusal screen looked at."),
    _count("refusals", comment="Refusals among those."),
    Column("blocked", Document, nullable=False, comment="Calls refused before they were made, by reason."),
    Column("finish_reasons", Document, nullable=False),
    Column("latency", Document, comment="Sketch in ms, as are the next two."),
    Column("ttft", Document),
    Column("tpot", Document),
    Column("users", Told, comment="The heaviest users as last told, as long as they may grow; see meter_users."),
    Index("meters_by_hour", "hour_at"),
    comment="What each hook process counted, cumulative over the hour: 100 % of the calls.",
)

meter_minutes = Table(
    "meter_minutes",
    metadata,
    Column(
        "minute_at",
        Instant,
        primary_key=True,
        comment="When it happened: growth is spread over the time that its message tells of.",
    ),
    Column("process_id", Text, primary_key=True),
    Column("release_id", Text, primary_key=True),
    Column("feature", Text, primary_key=True),
    _count("calls"),
    _count("errors"),
    _count("tokens"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Column("cost_squares", Float, nullable=False, server_default="0"),
    _count("screened"),
    _count("refusals"),
    _count("blocked"),
    _count("unpriced"),
    Column("latency", Document, nullable=False),
    Column("ttft", Document, nullable=False),
    Column("tpot", Document, nullable=False),
    comment="What each process's meter grew by in a minute; kept for two days, for alert rules.",
)

meter_slots = Table(
    "meter_slots",
    metadata,
    Column("slot_at", Instant, primary_key=True, comment="Five seconds begin here."),
    Column("release_id", Text, primary_key=True),
    Column("feature", Text, primary_key=True),
    _count("calls"),
    _count("errors"),
    _count("tokens"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Column("cost_squares", Float, nullable=False, server_default="0"),
    _count("screened"),
    _count("refusals"),
    _count("blocked"),
    _count("unpriced"),
    comment="What the meters of all processes grew by in five seconds; kept for two hours, to see money run away.",
)

meter_hours = Table(
    "meter_hours",
    metadata,
    Column("hour_at", Instant, primary_key=True),
    Column("release_id", Text, primary_key=True),
    Column("feature", Text, primary_key=True),
    _count("calls"),
    _count("errors"),
    _count("tokens"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Column("cost_squares", Float, nullable=False, server_default="0"),
    _count("screened"),
    _count("refusals"),
    _count("blocked"),
    _count("unpriced"),
    Column("latency", Document, nullable=False),
    Column("ttft", Document, nullable=False),
    Column("tpot", Document, nullable=False),
    comment="The meters of all processes by the hour, made of the minutes once it is over: so months are cheap.",
)

meter_users = Table(
    "meter_users",
    metadata,
    Column("minute_at", Instant, primary_key=True, comment="In which the message came that told of it."),
    Column("process_id", Text, primary_key=True),
    Column("release_id", Text, primary_key=True),
    Column("feature", Text, primary_key=True),
    Column("user_id", Text, primary_key=True, comment="As records carry it."),
    _count("calls"),
    _count("tokens"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Index("meter_users_by_user", "user_id"),
    comment="What the heaviest users of each process grew by in a minute; kept for two days.",
)

processes = Table(
    "processes",
    metadata,
    Column("process_id", Text, primary_key=True),
    _text("service"),
    _text("hook_version"),
    Column("started_at", Instant, nullable=False),
    Column("sent_at", Instant, nullable=False),
    _count("sequence", comment="Of its latest meter message."),
    _count("messages", comment="Meter messages that arrived, each after all that were numbered lower."),
    Column("ended_at", Instant, comment="When it said goodbye; a silent process that did not has crashed."),
    Column("feedback", Document, nullable=False, comment="Feedback given, enqueued and shed, cumulative."),
    Index("processes_by_time", "sent_at"),
    comment="Every process that a hook ran in.",
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("dead_letter_id", Text, primary_key=True),
    _text("kind", None, comment="envelope, message, record, meter or feedback"),
    _text("process_id"),
    _text("service"),
    Column("hour_at", Instant),
    _count("n_records", Integer),
    _text("reason"),
    Column("payload", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("redriven_at", Instant),
    Index("dead_letters_by_time", "created_at"),
    comment="What could not be read, byte for byte, with the reason.",
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    _text("service"),
    _text("environment"),
    _text("scorecard"),
    _text("scorecard_version"),
    _text("baseline"),
    _text("canary"),
    _text("canary_release_id", comment="Empty until the first record of the canary arrives."),
    _text("phase", "running", comment="As of the state; or superseded, by the rollout of a newer release."),
    Column("scope", Document, nullable=False, server_default="{}", comment="The traffic that is compared."),
    _count("step", Integer, comment="Of the ramp, from 0."),
    Column("percent", Float, comment="Of the units that should get the canary; empty where others split the traffic."),
    Column("plan", Document, nullable=False),
    Column("state", Packed),
    _count("evidence_seq", comment="Records that entered."),
    Column("folded", Document, nullable=False, server_default="{}", comment="By criterion: the newest seq folded."),
    _count("folded_seq", comment="All criteria are folded up to here."),
    _count("inputs_n", comment="Batches in its log."),
    _count("decision_seq"),
    _text("actor", "evalpipe", comment="Who started it."),
    _text("reason"),
    Column("started_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False, comment="Looked at then, also without anything new."),
    Column("rolled_back_at", Instant),
    _text("verified", comment="Of a rollback: waiting, verified, ineffective or unknown."),
    Column("verified_at", Instant, comment="When the meters showed that the canary's calls had ended."),
    Column("canary_seen_at", Instant, comment="After a rollback: the end of the newest calls of the canary."),
    Column("canary_late_at", Instant, comment="Of its newest calls that began after they had to have ended."),
    Index("rollouts_by_service", "service", "environment", "phase"),
    Index("rollouts_by_phase", "phase"),
    Index(
        "rollouts_to_verify",
        "verified",
        postgresql_where=text("verified IN ('waiting', 'ineffective')"),
        sqlite_where=text("verified IN ('waiting', 'ineffective')"),
    ),
    comment="Baseline and canary compared, with the state of the decision engine.",
)

evidence = Table(
    "evidence",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("seq", Big, primary_key=True, autoincrement=False),
    _text("record_id"),
    _text("arm"),
    _text("unit"),
    _text("pair", comment="While shadowing: the trace, which both arms' answers to one input share."),
    _text("segment"),
    Column("at", Instant, nullable=False),
    Column("captured_at", Instant, nullable=False),
    Column("weight", Float, nullable=False, server_default="1", comment="The record's own, for what nobody scores."),
    Column("factor", Float, nullable=False, server_default="1", comment="Times a score's weight: its weight here."),
    Column("cost_usd", Float),
    Column("latency_ms", Float),
    Column("ttft_ms", Float),
    _count("unpriced", Integer, comment="1 for a record with tokens and without a cost."),
    Index("evidence_by_record", "record_id", "rollout_id", unique=True),
    comment="The order in which records entered a rollout: decisions are a fold over it.",
)

rollout_inputs = Table(
    "rollout_inputs",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("n", Big, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="JSON, deflated where it begins with the byte 0x78."),
    comment="All that was folded into a rollout, batch by batch: its decisions can be made again from it.",
)

rollout_orders = Table(
    "rollout_orders",
    metadata,
    Column("order_id", Text, primary_key=True),
    _text("rollout_id"),
    _text("action", None),
    _text("actor", None),
    _text("reason"),
    Column("at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("folded_at", Instant, comment="Empty while it waits."),
    Index("rollout_orders_in_order", "rollout_id", "at"),
    Index(
        "rollout_orders_waiting",
        "rollout_id",
        postgresql_where=text("folded_at IS NULL"),
        sqlite_where=text("folded_at IS NULL"),
    ),
    comment="What people ordered of a rollout.",
)

rollout_readings = Table(
    "rollout_readings",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("process_id", Text, primary_key=True),
    Column("sequence", Big, primary_key=True, autoincrement=False),
    Column("arm", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    _count("calls"),
    Column("latency", Document, nullable=False, comment="Calls by bin of the sketch, as is the next."),
    Column("ttft", Document, nullable=False),
    comment="What meter messages counted of a rollout's arms, until it is folded.",
)

changes = Table(
    "changes",
    metadata,
    Column("change_id", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    _text("service"),
    _text("environment"),
    _text("variant"),
    _text("kind", comment="What changed: one of the versions of a release, config, or leave."),
    _text("source", comment="Who told."),
    Column("body", Document, nullable=False),
    _text("rollout_id", comment="That it started; empty for none."),
    Index("changes_by_time", "service", "at"),
    comment="Change events: when which version of a service changed.",
)

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Text, primary_key=True),
    _text("rollout_id"),
    Column("seq", Big, nullable=False),
    _text("action", None),
    _text("cause"),
    _text("gate"),
    _text("phase", comment="That the rollout is in from then on."),
    _text("reason"),
    _text("actor", "evalpipe"),
    Column("expires_at", Instant, comment="Of what a person ordered."),
    Column("evidence", Document, nullable=False),
    _text("inputs_hash"),
    Column("decided_at", Instant, nullable=False),
    Index("decisions_in_order", "rollout_id", "seq", unique=True),
    Index("decisions_by_time", "decided_at"),
    comment="Append-only: what was decided, by which evidence.",
)

alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", Text, primary_key=True),
    _text("scorecard"),
    _text("rule"),
    _text("service"),
    _text("environment"),
    _text("variant"),
    _text("feature", comment="Only where the rule tells features apart; so with release_id."),
    _text("release_id"),
    _text("kind", comment="What it is about: of its detector."),
    _text("severity"),
    _text("status", "inactive", comment="inactive, pending, firing or resolved"),
    _count("dry_run", Integer, comment="1 where nobody is told."),
    Column("labels", Document, nullable=False, server_default="{}"),
    Column("state", Document, nullable=False),
    _text("summary"),
    Column("explanation", Document, nullable=False, server_default="{}"),
    Column("fired_at", Instant, comment="Of the newest episode, as is resolved_at."),
    Column("resolved_at", Instant),
    Column("acked_at", Instant, comment="Of this episode: empty as soon as it fires anew."),
    _text("acked_by"),
    _text("ack_reason"),
    _text("acked_severity", comment="An acknowledgement is void above it."),
    _count("escalation", Integer, comment="How often it was escalated in this episode."),
    _text("muted_by", comment="The silence, or the alert, for which nobody is told of it now."),
    Column("updated_at", Instant, nullable=False),
    Index("alerts_by_status", "status"),
    comment="The state machine of each alert rule and place, so that a restart changes nothing.",
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("stage", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("seconds", Float, nullable=False, comment="How long it took, but for its commit."),
    _count("rules", Integer),
    _count("alerts", Integer, comment="How many states it looked at."),
    Column("errors", Document, nullable=False, comment="By rule, at how many places it could not be evaluated."),
    comment="The last evaluation of the alert rules: one row.",
)

incidents = Table(
    "incidents",
    metadata,
    Column("incident_id", Text, primary_key=True),
    _text("service"),
    _text("severity", None),
    _text("title"),
    _text("source"),
    Column("evidence", Document, nullable=False),
    Column("timeline", Document, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("resolved_at", Instant),
    comment="What an alert or a rollback opened.",
)

alert_groups = Table(
    "alert_groups",
    metadata,
    Column("dedup_key", Text, primary_key=True, comment="Of the episode."),
    Column("group_key", Text, nullable=False),
    Column("state", Document, nullable=False, comment="What was told of each alert, when, and to whom."),
    Column("updated_at", Instant, nullable=False),
    comment="Episodes of groups of alerts: from the first alert until all who were told heard that it is over.",
)

notices = Table(
    "notices",
    metadata,
    Column("group_key", Text, primary_key=True),
    Column("since", Instant, primary_key=True, comment="Names the episode of the group."),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    _text("cause", None, comment="first, added, raised, repeat, escalated, acknowledged or resolved"),
    _text("severity"),
    Column("channels", Document, nullable=False),
    Column("alerts", Document, nullable=False, comment="Ids of those that fire, and of those that resolved."),
    Index("notices_by_time", "at"),
    comment="What was told of alerts, to whom and why.",
)

silences = Table(
    "silences",
    metadata,
    Column("silence_id", Text, primary_key=True),
    Column("matchers", Document, nullable=False, comment="Globs by label; all must fit."),
    _text("author", None),
    _text("reason", None),
    Column("starts_at", Instant, nullable=False),
    Column("until", Instant, nullable=False),
    Column("ended_at", Instant, comment="Before its time, by a person."),
    _text("ended_by"),
    _text("end_reason"),
    Index("silences_by_end", "until"),
    comment="Alerts of which nobody is told for a while; never deleted.",
)

outbox = Table(
    "outbox",
    metadata,
    Column("event_id", Text, primary_key=True),
    _text("type", None),
    _text("subject"),
    _text("channel", None),
    Column("body", LargeBinary, nullable=False, comment="The exact bytes that every attempt sends."),
    Column("seq", Integer, comment="Of a decision: its number in the rollout."),
    _count("urgent", Integer),
    _text("state", "pending", comment="pending, delivered, overtaken or dead"),
    _count("attempts", Integer),
    _count("schedule_start", Integer),
    Column("next_attempt_at", Instant, nullable=False),
    Column("lease_until", Instant),
    _count("fence"),
    _count("by_hand", Integer),
    _text("reason"),
    Column("created_at", Instant, nullable=False),
    Column("delivered_at", Instant),
    Index("outbox_subject", "subject", "seq"),
    Index(
        "outbox_urgent",
        "subject",
        "seq",
        postgresql_where=text("urgent = 1"),
        sqlite_where=text("urgent = 1"),
    ),
    Index(
        "outbox_due",
        "next_attempt_at",
        postgresql_where=text("state = 'pending'"),
        sqlite_where=text("state = 'pending'"),
    ),
    comment="Notifications owed to the outside, committed with what they tell.",
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("status", Integer),
    Column("ok", Integer, nullable=False),
    _text("error"),
    Column("elapsed_ms", Float, nullable=False),
    comment="Every attempt to deliver.",
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("failing_since", Instant, comment="First failed attempt since the last that went well."),
    Column("disabled_at", Instant, comment="Nothing is sent to it from then on; null if it is enabled."),
    _text("reason", comment="Why it was disabled, or enabled again."),
    _text("actor", comment="Who did that; evalpipe, or a person."),
    Column("updated_at", Instant, nullable=False),
    comment="Channels that have, or had, trouble.",
)

controls = Table(
    "controls",
    metadata,
    Column("service", Text, primary_key=True),
    Column("kind", Text, primary_key=True, comment="switch, budget, weights, rate; prices, which evalpipe sets"),
    Column("name", Text, primary_key=True),
    Column("environment", Text, primary_key=True),
    Column("body", Document, nullable=False),
    Column("latched", Document, nullable=False, comment="Of weights: the variants that were rolled back, and why."),
    Column("revision", Big, nullable=False),
    _text("actor", None),
    _text("reason"),
    Column("updated_at", Instant, nullable=False),
    comment="What hooks obey: the truth behind each service's control document.",
)

control_changes = Table(
    "control_changes",
    metadata,
    Column("service", Text, primary_key=True),
    Column("revision", Big, primary_key=True, autoincrement=False),
    _text("kind", None),
    _text("name", None),
    _text("environment"),
    _text("action", None, comment="set, engage, release, resume, rollback, remove, overtake"),
    Column("before", Document),
    Column("after", Document),
    _text("actor", None),
    _text("reason"),
    Column("at", Instant, nullable=False),
    comment="Every change of a control, forever: who, when, why. Its highest revision is the document's.",
)

feedback = Table(
    "feedback",
    metadata,
    Column("feedback_id", Text, primary_key=True),
    _text("service"),
    _text("trace_id"),
    _text("record_id"),
    Column("value", Float),
    _text("label"),
    _text("comment"),
    _text("user_id"),
    Column("at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    Index("feedback_by_trace", "trace_id"),
    Index("feedback_by_record", "record_id"),
    Index("feedback_by_user", "user_id"),
    Index("feedback_by_time", "received_at"),
    comment="What users said of answers; it joins its record when it is read, whichever of the two came first.",
    info=MOSTLY_NEW,
)

judge_calls = Table(
    "judge_calls",
    metadata,
    Column("minute_at", Instant, primary_key=True),
    Column("judge", Text, primary_key=True, comment="The judge's version, without the prompt's."),
    Column("scorecard", Text, primary_key=True),
    Column("outcome", Text, primary_key=True, comment="answered, or the cause of the failure"),
    _count("n"),
    _count("input_tokens"),
    _count("cached_tokens"),
    _count("output_tokens"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Column("latency_ms", Float, nullable=False, server_default="0", comment="Sum over the calls."),
    comment="Every call of a judge, paid or not; kept for 40 days.",
)

judge_states = Table(
    "judge_states",
    metadata,
    Column("judge", Text, primary_key=True),
    _text("state", "closed", comment="Of the breaker: closed, open, half_open or stopped."),
    _text("reason"),
    _text("cause"),
    Column("since_at", Instant, nullable=False),
    Column("until_at", Instant, comment="When an open breaker tries again."),
    Column("detail", Document, nullable=False),
    comment="Whether each judge can be asked, for the whole fleet.",
)

judge_spend = Table(
    "judge_spend",
    metadata,
    Column("day", Text, primary_key=True, comment="UTC, as 2026-11-22"),
    Column("scope", Text, primary_key=True, comment="all, scorecard:NAME or judge:VERSION"),
    Column("spent_usd", Float, nullable=False, server_default="0"),
    Column("reserved_usd", Float, nullable=False, server_default="0"),
    Column("keep", Float, nullable=False, server_default="1", comment="Share of less urgent work that is judged now."),
    Column(
        "wanted_usd", Float, nullable=False, server_default="0", comment="Asked for by less urgent work, kept or not."
    ),
    Column("urgent_usd", Float, nullable=False, server_default="0", comment="Asked for by urgent work."),
    Column("granted_usd", Float, nullable=False, server_default="0", comment="All that was ever reserved."),
    Column(
        "pace", Document, nullable=False, server_default="{}", comment="How fast money is asked for, and when seen."
    ),
    comment="Money of judges by day: what was paid, and what is held for calls under way.",
)

judge_batches = Table(
    "judge_batches",
    metadata,
    Column("batch_id", Text, primary_key=True),
    _text("judge"),
    _text("model", comment="As scorecards write it."),
    _text("provider_id", comment="The provider's name for it."),
    _text("state", "submitting", comment="submitting, submitted, ended, failed or abandoned"),
    _count("n", Integer, comment="Requests; several works may share one."),
    _count("n_graded", Integer, comment="Works that it graded."),
    _count("n_returned", Integer, comment="Works that it brought no grade for."),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Column("submitted_at", Instant, nullable=False),
    Column("next_poll_at", Instant, nullable=False, comment="Until then somebody looks after it, or nobody needs to."),
    Column("ended_at", Instant),
    _text("reason"),
    Index("judge_batches_due", "state", "next_poll_at"),
    comment="Work that waits for a provider's batch API.",
)

labels = Table(
    "labels",
    metadata,
    Column("label_id", Text, primary_key=True),
    _text("record_id"),
    _text("scorecard"),
    _text("criterion"),
    _text("annotator", None),
    _text("label", None),
    Column("value", Float),
    _text("comment"),
    _text("source", comment="import, api or page"),
    _text("chosen", "given", comment="How the record came to be labelled: random, uncertain, or given."),
    Column("weight", Float, nullable=False, server_default="1", comment="1 / inclusion probability of the record."),
    Column("at", Instant, nullable=False),
    Column("superseded_at", Instant, comment="When the same person labelled the same thing anew."),
    Index("labels_by_record", "record_id", "criterion"),
    Index("labels_by_criterion", "scorecard", "criterion", "at"),
    comment="What people say of records: each person's own, kept beside the others'.",
)

calibrations = Table(
    "calibrations",
    metadata,
    Column("calibration_id", Text, primary_key=True),
    _text("scorecard"),
    _text("criterion"),
    _text("epoch"),
    _text("judge_version"),
    Column("at", Instant, nullable=False),
    _count("n", Integer),
    Column("body", Document, nullable=False),
    Index("calibrations_by_epoch", "scorecard", "criterion", "epoch", "at"),
    comment="How far a judge agrees with people, measured; the newest of an epoch corrects what is reported.",
)

anchors = Table(
    "anchors",
    metadata,
    Column("anchor_id", Text, primary_key=True),
    _text("scorecard"),
    _text("criterion"),
    _text("label"),
    Column("value", Float, nullable=False),
    Column("payload", LargeBinary, nullable=False, comment="The record in its wire form as JSON."),
    _text("record_id", comment="Of the record that it is a copy of."),
    _text("user_id", comment="Whose words they are, so that they can be erased."),
    _text("source", comment="labels, or the file it came from"),
    _text("actor", comment="Who added it."),
    Column("added_at", Instant, nullable=False),
    Column("retired_at", Instant),
    Index("anchors_by_criterion", "scorecard", "criterion"),
    Index("anchors_by_user", "user_id"),
    comment="Records with labels that people agree on, frozen: graded again and again to watch the judge.",
)

anchor_grades = Table(
    "anchor_grades",
    metadata,
    Column("anchor_id", Text, primary_key=True),
    Column("judge_version", Text, primary_key=True),
    Column("at", Instant, primary_key=True),
    _text("status", None),
    Column("value", Float),
    _text("label"),
    Column("cost_usd", Float),
    Index("anchor_grades_by_time", "at"),
    comment="What judges said of anchors.",
)

judge_health = Table(
    "judge_health",
    metadata,
    Column("scorecard", Text, primary_key=True),
    Column("criterion", Text, primary_key=True),
    Column("judge_version", Text, primary_key=True, comment="As in scores.scorer: judges and prompt."),
    _text("state", "unknown", comment="unknown, healthy or suspect"),
    _text("reason"),
    Column("test", Document, nullable=False, comment="The sequential test's state."),
    _count("n", Integer, comment="Anchors that answered in the latest run."),
    Column("since_at", Instant, nullable=False, comment="Of the state."),
    Column("tested_at", Instant, comment="Of the latest run; empty before the first."),
    Column("stale_at", Instant, comment="From here on the latest run is too old to tell anything."),
    Column("lease_until", Instant, comment="While somebody grades; also the time before which nobody tries again."),
    Column("accepted", Document, nullable=False, comment="Who accepted a new behaviour, when and why, oldest first."),
    comment="Whether a judge still grades as it did when its anchors were first graded.",
)

baselines = Table(
    "baselines",
    metadata,
    Column("name", Text, primary_key=True),
    _text("service"),
    _text("environment"),
    _text("variant"),
    _text("release_id", comment="Empty: of all releases of the variant."),
    Column("since_at", Instant, nullable=False, comment="What was captured from here on, up to until_at, is in it."),
    Column("until_at", Instant, nullable=False),
    Column("captured_at", Instant, nullable=False),
    _text("actor", None, comment="evalpipe, or a person."),
    _text("reason"),
    _count("n_scores"),
    _count("n_calls"),
    _count("n_profiles", Integer),
    Column("epochs", Document, nullable=False, comment="Scored values by scorecard/criterion and epoch."),
    Column("retired_at", Instant, comment="No rule takes it as its newest from then on; it stays."),
    _text("retired_by"),
    _text("retired_reason"),
    Column("body", Packed, nullable=False, comment="Distributions of scores and of the meter."),
    Column("profiles", Packed, nullable=False, comment="What inputs and outputs looked like."),
    Index("baselines_by_place", "service", "environment", "variant"),
    comment="Named snapshots of what is normal; never changed.",
)

print_sets = Table(
    "print_sets",
    metadata,
    Column("name", Text, primary_key=True),
    _text("service"),
    _text("environment"),
    _text("variant"),
    _text("definition", comment="Of the set: another one begins a new reference."),
    Column("reference_at", Instant, nullable=False, comment="Rounds from here on count."),
    _text("actor", comment="Who accepted the behaviour of then; empty at first."),
    _text("reason"),
    Column("round_at", Instant, comment="The newest round that was asked."),
    Column("lease_until", Instant),
    _text("error", comment="Why the newest round failed; empty if it did not."),
    comment="Fixed sets of prompts, and from when on their answers are compared.",
)

prints = Table(
    "prints",
    metadata,
    Column("name", Text, primary_key=True),
    Column("round_at", Instant, primary_key=True),
    Column("prompt", Text, primary_key=True),
    Column("repeat", Integer, primary_key=True),
    _text("definition"),
    _text("output"),
    Column("traits", Document, nullable=False),
    _text("model"),
    _text("fingerprint"),
    Column("embedding", LargeBinary, comment="Half-precision floats."),
    _text("embedder", comment="That made it; those of two are never compared."),
    Column("latency_ms", Float),
    comment="What a model answered to a fixed set of prompts, round by round.",
)

score_exports = Table(
    "score_exports",
    metadata,
    Column("record_id", Text, primary_key=True),
    Column("criterion", Text, primary_key=True),
    Column("scorecard_version", Text, primary_key=True),
    Column("epoch", Text, primary_key=True),
    Column("due_at", Instant, nullable=False, comment="Until then somebody else sends it."),
    Column("created_at", Instant, nullable=False),
    Index("score_exports_due", "due_at"),
    comment="Scores that are still owed to the OpenTelemetry endpoint.",
    info=MOSTLY_NEW,
)
