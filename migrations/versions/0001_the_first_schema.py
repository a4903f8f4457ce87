"""The first schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Document = sa.JSON().with_variant(JSONB(), "postgresql")
Instant = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "alert_groups",
        sa.Column("dedup_key", sa.Text(), nullable=False, comment="Of the episode."),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("state", Document, nullable=False, comment="What was told of each alert, when, and to whom."),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("dedup_key"),
        comment="Episodes of groups of alerts: from the first alert until all who were told heard that it is over.",
    )
    op.create_table(
        "alerts",
        sa.Column("alert_id", sa.Text(), nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("rule", sa.Text(), server_default="", nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "feature",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Only where the rule tells features apart; so with release_id.",
        ),
        sa.Column("release_id", sa.Text(), server_default="", nullable=False),
        sa.Column("kind", sa.Text(), server_default="", nullable=False, comment="What it is about: of its detector."),
        sa.Column("severity", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "status",
            sa.Text(),
            server_default="inactive",
            nullable=False,
            comment="inactive, pending, firing or resolved",
        ),
        sa.Column("dry_run", sa.Integer(), server_default="0", nullable=False, comment="1 where nobody is told."),
        sa.Column("labels", Document, server_default="{}", nullable=False),
        sa.Column("state", Document, nullable=False),
        sa.Column("summary", sa.Text(), server_default="", nullable=False),
        sa.Column("explanation", Document, server_default="{}", nullable=False),
        sa.Column("fired_at", Instant, nullable=True, comment="Of the newest episode, as is resolved_at."),
        sa.Column("resolved_at", Instant, nullable=True),
        sa.Column("acked_at", Instant, nullable=True, comment="Of this episode: empty as soon as it fires anew."),
        sa.Column("acked_by", sa.Text(), server_default="", nullable=False),
        sa.Column("ack_reason", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "acked_severity",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="An acknowledgement is void above it.",
        ),
        sa.Column(
            "escalation",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="How often it was escalated in this episode.",
        ),
        sa.Column(
            "muted_by",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="The silence, or the alert, for which nobody is told of it now.",
        ),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("alert_id"),
        comment="The state machine of each alert rule and place, so that a restart changes nothing.",
    )
    op.create_index("alerts_by_status", "alerts", ["status"], unique=False)
    op.create_table(
        "anchor_grades",
        sa.Column("anchor_id", sa.Text(), nullable=False),
        sa.Column("judge_version", sa.Text(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("label", sa.Text(), server_default="", nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("anchor_id", "judge_version", "at"),
        comment="What judges said of anchors.",
    )
    op.create_index("anchor_grades_by_time", "anchor_grades", ["at"], unique=False)
    op.create_table(
        "anchors",
        sa.Column("anchor_id", sa.Text(), nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("criterion", sa.Text(), server_default="", nullable=False),
        sa.Column("label", sa.Text(), server_default="", nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False, comment="The record in its wire form as JSON."),
        sa.Column(
            "record_id", sa.Text(), server_default="", nullable=False, comment="Of the record that it is a copy of."
        ),
        sa.Column(
            "user_id",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Whose words they are, so that they can be erased.",
        ),
        sa.Column("source", sa.Text(), server_default="", nullable=False, comment="labels, or the file it came from"),
        sa.Column("actor", sa.Text(), server_default="", nullable=False, comment="Who added it."),
        sa.Column("added_at", Instant, nullable=False),
        sa.Column("retired_at", Instant, nullable=True),
        sa.PrimaryKeyConstraint("anchor_id"),
        comment="Records with labels that people agree on, frozen: graded again and again to watch the judge.",
    )
    op.create_index("anchors_by_criterion", "anchors", ["scorecard", "criterion"], unique=False)
    op.create_index("anchors_by_user", "anchors", ["user_id"], unique=False)
    op.create_table(
        "baselines",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "release_id", sa.Text(), server_default="", nullable=False, comment="Empty: of all releases of the variant."
        ),
        sa.Column(
            "since_at", Instant, nullable=False, comment="What was captured from here on, up to until_at, is in it."
        ),
        sa.Column("until_at", Instant, nullable=False),
        sa.Column("captured_at", Instant, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False, comment="evalpipe, or a person."),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("n_scores", Big, server_default="0", nullable=False),
        sa.Column("n_calls", Big, server_default="0", nullable=False),
        sa.Column("n_profiles", sa.Integer(), server_default="0", nullable=False),
        sa.Column("epochs", Document, nullable=False, comment="Scored values by scorecard/criterion and epoch."),
        sa.Column(
            "retired_at", Instant, nullable=True, comment="No rule takes it as its newest from then on; it stays."
        ),
        sa.Column("retired_by", sa.Text(), server_default="", nullable=False),
        sa.Column("retired_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="Distributions of scores and of the meter."),
        sa.Column("profiles", sa.LargeBinary(), nullable=False, comment="What inputs and outputs looked like."),
        sa.PrimaryKeyConstraint("name"),
        comment="Named snapshots of what is normal; never changed.",
    )
    op.create_index("baselines_by_place", "baselines", ["service", "environment", "variant"], unique=False)
    op.create_table(
        "calibrations",
        sa.Column("calibration_id", sa.Text(), nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("criterion", sa.Text(), server_default="", nullable=False),
        sa.Column("epoch", sa.Text(), server_default="", nullable=False),
        sa.Column("judge_version", sa.Text(), server_default="", nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("n", sa.Integer(), server_default="0", nullable=False),
        sa.Column("body", Document, nullable=False),
        sa.PrimaryKeyConstraint("calibration_id"),
        comment="How far a judge agrees with people, measured; the newest of an epoch corrects what is reported.",
    )
    op.create_index("calibrations_by_epoch", "calibrations", ["scorecard", "criterion", "epoch", "at"], unique=False)
    op.create_table(
        "changes",
        sa.Column("change_id", sa.Text(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "kind",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="What changed: one of the versions of a release, config, or leave.",
        ),
        sa.Column("source", sa.Text(), server_default="", nullable=False, comment="Who told."),
        sa.Column("body", Document, nullable=False),
        sa.Column(
            "rollout_id", sa.Text(), server_default="", nullable=False, comment="That it started; empty for none."
        ),
        sa.PrimaryKeyConstraint("change_id"),
        comment="Change events: when which version of a service changed.",
    )
    op.create_index("changes_by_time", "changes", ["service", "at"], unique=False)
    op.create_table(
        "control_changes",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("revision", Big, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "action", sa.Text(), nullable=False, comment="set, engage, release, resume, rollback, remove, overtake"
        ),
        sa.Column("before", Document, nullable=True),
        sa.Column("after", Document, nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("service", "revision"),
        comment="Every change of a control, forever: who, when, why. Its highest revision is the document's.",
    )
    op.create_table(
        "controls",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="switch, budget, weights, rate; prices, which evalpipe sets"
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("body", Document, nullable=False),
        sa.Column(
            "latched", Document, nullable=False, comment="Of weights: the variants that were rolled back, and why."
        ),
        sa.Column("revision", Big, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("service", "kind", "name", "environment"),
        comment="What hooks obey: the truth behind each service's control document.",
    )
    op.create_table(
        "dead_letters",
        sa.Column("dead_letter_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="envelope, message, record, meter or feedback"),
        sa.Column("process_id", sa.Text(), server_default="", nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("hour_at", Instant, nullable=True),
        sa.Column("n_records", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("redriven_at", Instant, nullable=True),
        sa.PrimaryKeyConstraint("dead_letter_id"),
        comment="What could not be read, byte for byte, with the reason.",
    )
    op.create_index("dead_letters_by_time", "dead_letters", ["created_at"], unique=False)
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Text(), server_default="", nullable=False),
        sa.Column("seq", Big, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), server_default="", nullable=False),
        sa.Column("gate", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "phase", sa.Text(), server_default="", nullable=False, comment="That the rollout is in from then on."
        ),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("actor", sa.Text(), server_default="evalpipe", nullable=False),
        sa.Column("expires_at", Instant, nullable=True, comment="Of what a person ordered."),
        sa.Column("evidence", Document, nullable=False),
        sa.Column("inputs_hash", sa.Text(), server_default="", nullable=False),
        sa.Column("decided_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("decision_id"),
        comment="Append-only: what was decided, by which evidence.",
    )
    op.create_index("decisions_by_time", "decisions", ["decided_at"], unique=False)
    op.create_index("decisions_in_order", "decisions", ["rollout_id", "seq"], unique=True)
    op.create_table(
        "deliveries",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("ok", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.Column("elapsed_ms", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "attempt"),
        comment="Every attempt to deliver.",
    )
    op.create_table(
        "endpoints",
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column(
            "failing_since", Instant, nullable=True, comment="First failed attempt since the last that went well."
        ),
        sa.Column(
            "disabled_at", Instant, nullable=True, comment="Nothing is sent to it from then on; null if it is enabled."
        ),
        sa.Column(
            "reason", sa.Text(), server_default="", nullable=False, comment="Why it was disabled, or enabled again."
        ),
        sa.Column(
            "actor", sa.Text(), server_default="", nullable=False, comment="Who did that; evalpipe, or a person."
        ),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("channel"),
        comment="Channels that have, or had, trouble.",
    )
    op.create_table(
        "evaluations",
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False, comment="How long it took, but for its commit."),
        sa.Column("rules", sa.Integer(), server_default="0", nullable=False),
        sa.Column("alerts", sa.Integer(), server_default="0", nullable=False, comment="How many states it looked at."),
        sa.Column("errors", Document, nullable=False, comment="By rule, at how many places it could not be evaluated."),
        sa.PrimaryKeyConstraint("stage"),
        comment="The last evaluation of the alert rules: one row.",
    )
    op.create_table(
        "evidence",
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("seq", Big, autoincrement=False, nullable=False),
        sa.Column("record_id", sa.Text(), server_default="", nullable=False),
        sa.Column("arm", sa.Text(), server_default="", nullable=False),
        sa.Column("unit", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "pair",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="While shadowing: the trace, which both arms' answers to one input share.",
        ),
        sa.Column("segment", sa.Text(), server_default="", nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("captured_at", Instant, nullable=False),
        sa.Column(
            "weight",
            sa.Float(),
            server_default="1",
            nullable=False,
            comment="The record's own, for what nobody scores.",
        ),
        sa.Column(
            "factor", sa.Float(), server_default="1", nullable=False, comment="Times a score's weight: its weight here."
        ),
        sa.Column("cost_usd", sa.Float(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("ttft_ms", sa.Float(), nullable=True),
        sa.Column(
            "unpriced",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="1 for a record with tokens and without a cost.",
        ),
        sa.PrimaryKeyConstraint("rollout_id", "seq"),
        comment="The order in which records entered a rollout: decisions are a fold over it.",
    )
    op.create_index("evidence_by_record", "evidence", ["record_id", "rollout_id"], unique=True)
    op.create_table(
        "feedback",
        sa.Column("feedback_id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("trace_id", sa.Text(), server_default="", nullable=False),
        sa.Column("record_id", sa.Text(), server_default="", nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("label", sa.Text(), server_default="", nullable=False),
        sa.Column("comment", sa.Text(), server_default="", nullable=False),
        sa.Column("user_id", sa.Text(), server_default="", nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("received_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("feedback_id"),
        comment="What users said of answers; it joins its record when it is read, whichever of the two came first.",
        info={"mostly_new": True},
    )
    op.create_index("feedback_by_record", "feedback", ["record_id"], unique=False)
    op.create_index("feedback_by_time", "feedback", ["received_at"], unique=False)
    op.create_index("feedback_by_trace", "feedback", ["trace_id"], unique=False)
    op.create_index("feedback_by_user", "feedback", ["user_id"], unique=False)
    op.create_table(
        "grades",
        sa.Column("work_id", sa.Text(), nullable=False),
        sa.Column("judge_version", sa.Text(), nullable=False),
        sa.Column("vote", sa.Integer(), nullable=False),
        sa.Column("record_id", sa.Text(), server_default="", nullable=False),
        sa.Column("criterion", sa.Text(), server_default="", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("label", sa.Text(), server_default="", nullable=False),
        sa.Column("explanation", sa.Text(), server_default="", nullable=False),
        sa.Column("quotation", sa.Text(), server_default="", nullable=False),
        sa.Column("raw", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "cause",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Of an error: refused, truncated, malformed or request.",
        ),
        sa.Column(
            "reading",
            sa.Text(),
            server_default="word",
            nullable=False,
            comment="word, or expected: the mean over the grades' log-probabilities",
        ),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column(
            "role",
            sa.Text(),
            server_default="first",
            nullable=False,
            comment="first, escalated, or swapped (the second order of a pair)",
        ),
        sa.Column(
            "content_key",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Judge, prompt, record and vote: an equal question is not asked, nor paid, twice.",
        ),
        sa.Column(
            "reused",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="1 where the grade was known already, and cost nothing.",
        ),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("fingerprint", sa.Text(), server_default="", nullable=False),
        sa.Column("request_id", sa.Text(), server_default="", nullable=False),
        sa.Column("input_tokens", Big, server_default="0", nullable=False),
        sa.Column("cached_tokens", Big, server_default="0", nullable=False),
        sa.Column("output_tokens", Big, server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("graded_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("work_id", "judge_version", "vote"),
        comment="What a judge said, with what it took.",
        info={"mostly_new": True},
    )
    op.create_index(
        "grades_by_content",
        "grades",
        ["content_key"],
        unique=False,
        postgresql_where=sa.text("content_key <> ''"),
        sqlite_where=sa.text("content_key <> ''"),
    )
    op.create_index("grades_by_record", "grades", ["record_id"], unique=False)
    op.create_table(
        "growths",
        sa.Column("growth_id", sa.Text(), nullable=False),
        sa.Column("series_id", sa.Text(), nullable=False),
        sa.Column("since_at", Instant, nullable=False, comment="When the first of its scores was captured."),
        sa.Column("until_at", Instant, nullable=False, comment="And the last."),
        sa.Column("at", Instant, nullable=False),
        sa.Column("n_scored", Big, server_default="0", nullable=False),
        sa.Column("n_skipped", Big, server_default="0", nullable=False),
        sa.Column("n_abstained", Big, server_default="0", nullable=False),
        sa.Column("n_error", Big, server_default="0", nullable=False),
        sa.Column("sum_w", sa.Float(), nullable=False),
        sa.Column("sum_w2", sa.Float(), nullable=False),
        sa.Column("sum_wx", sa.Float(), nullable=False),
        sa.Column("sum_wx2", sa.Float(), nullable=False),
        sa.Column("sum_w2x", sa.Float(), nullable=False),
        sa.Column("sum_w2x2", sa.Float(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("bins", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("growth_id"),
        comment="A queue: what each commit of scores added to each series, until alert rules are evaluated.",
    )
    op.create_index("growths_by_time", "growths", ["at"], unique=False)
    op.create_table(
        "incidents",
        sa.Column("incident_id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), server_default="", nullable=False),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("evidence", Document, nullable=False),
        sa.Column("timeline", Document, nullable=False),
        sa.Column("opened_at", Instant, nullable=False),
        sa.Column("resolved_at", Instant, nullable=True),
        sa.PrimaryKeyConstraint("incident_id"),
        comment="What an alert or a rollback opened.",
    )
    op.create_table(
        "judge_batches",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("judge", sa.Text(), server_default="", nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False, comment="As scorecards write it."),
        sa.Column("provider_id", sa.Text(), server_default="", nullable=False, comment="The provider's name for it."),
        sa.Column(
            "state",
            sa.Text(),
            server_default="submitting",
            nullable=False,
            comment="submitting, submitted, ended, failed or abandoned",
        ),
        sa.Column(
            "n", sa.Integer(), server_default="0", nullable=False, comment="Requests; several works may share one."
        ),
        sa.Column("n_graded", sa.Integer(), server_default="0", nullable=False, comment="Works that it graded."),
        sa.Column(
            "n_returned",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Works that it brought no grade for.",
        ),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("submitted_at", Instant, nullable=False),
        sa.Column(
            "next_poll_at", Instant, nullable=False, comment="Until then somebody looks after it, or nobody needs to."
        ),
        sa.Column("ended_at", Instant, nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("batch_id"),
        comment="Work that waits for a provider's batch API.",
    )
    op.create_index("judge_batches_due", "judge_batches", ["state", "next_poll_at"], unique=False)
    op.create_table(
        "judge_calls",
        sa.Column("minute_at", Instant, nullable=False),
        sa.Column("judge", sa.Text(), nullable=False, comment="The judge's version, without the prompt's."),
        sa.Column("scorecard", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False, comment="answered, or the cause of the failure"),
        sa.Column("n", Big, server_default="0", nullable=False),
        sa.Column("input_tokens", Big, server_default="0", nullable=False),
        sa.Column("cached_tokens", Big, server_default="0", nullable=False),
        sa.Column("output_tokens", Big, server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("latency_ms", sa.Float(), server_default="0", nullable=False, comment="Sum over the calls."),
        sa.PrimaryKeyConstraint("minute_at", "judge", "scorecard", "outcome"),
        comment="Every call of a judge, paid or not; kept for 40 days.",
    )
    op.create_table(
        "judge_health",
        sa.Column("scorecard", sa.Text(), nullable=False),
        sa.Column("criterion", sa.Text(), nullable=False),
        sa.Column("judge_version", sa.Text(), nullable=False, comment="As in scores.scorer: judges and prompt."),
        sa.Column("state", sa.Text(), server_default="unknown", nullable=False, comment="unknown, healthy or suspect"),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("test", Document, nullable=False, comment="The sequential test's state."),
        sa.Column(
            "n", sa.Integer(), server_default="0", nullable=False, comment="Anchors that answered in the latest run."
        ),
        sa.Column("since_at", Instant, nullable=False, comment="Of the state."),
        sa.Column("tested_at", Instant, nullable=True, comment="Of the latest run; empty before the first."),
        sa.Column(
            "stale_at", Instant, nullable=True, comment="From here on the latest run is too old to tell anything."
        ),
        sa.Column(
            "lease_until",
            Instant,
            nullable=True,
            comment="While somebody grades; also the time before which nobody tries again.",
        ),
        sa.Column(
            "accepted", Document, nullable=False, comment="Who accepted a new behaviour, when and why, oldest first."
        ),
        sa.PrimaryKeyConstraint("scorecard", "criterion", "judge_version"),
        comment="Whether a judge still grades as it did when its anchors were first graded.",
    )
    op.create_table(
        "judge_spend",
        sa.Column("day", sa.Text(), nullable=False, comment="UTC, as 2026-11-22"),
        sa.Column("scope", sa.Text(), nullable=False, comment="all, scorecard:NAME or judge:VERSION"),
        sa.Column("spent_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("reserved_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column(
            "keep",
            sa.Float(),
            server_default="1",
            nullable=False,
            comment="Share of less urgent work that is judged now.",
        ),
        sa.Column(
            "wanted_usd",
            sa.Float(),
            server_default="0",
            nullable=False,
            comment="Asked for by less urgent work, kept or not.",
        ),
        sa.Column("urgent_usd", sa.Float(), server_default="0", nullable=False, comment="Asked for by urgent work."),
        sa.Column("granted_usd", sa.Float(), server_default="0", nullable=False, comment="All that was ever reserved."),
        sa.Column(
            "pace", Document, server_default="{}", nullable=False, comment="How fast money is asked for, and when seen."
        ),
        sa.PrimaryKeyConstraint("day", "scope"),
        comment="Money of judges by day: what was paid, and what is held for calls under way.",
    )
    op.create_table(
        "judge_states",
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column(
            "state",
            sa.Text(),
            server_default="closed",
            nullable=False,
            comment="Of the breaker: closed, open, half_open or stopped.",
        ),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("cause", sa.Text(), server_default="", nullable=False),
        sa.Column("since_at", Instant, nullable=False),
        sa.Column("until_at", Instant, nullable=True, comment="When an open breaker tries again."),
        sa.Column("detail", Document, nullable=False),
        sa.PrimaryKeyConstraint("judge"),
        comment="Whether each judge can be asked, for the whole fleet.",
    )
    op.create_table(
        "labels",
        sa.Column("label_id", sa.Text(), nullable=False),
        sa.Column("record_id", sa.Text(), server_default="", nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("criterion", sa.Text(), server_default="", nullable=False),
        sa.Column("annotator", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("comment", sa.Text(), server_default="", nullable=False),
        sa.Column("source", sa.Text(), server_default="", nullable=False, comment="import, api or page"),
        sa.Column(
            "chosen",
            sa.Text(),
            server_default="given",
            nullable=False,
            comment="How the record came to be labelled: random, uncertain, or given.",
        ),
        sa.Column(
            "weight", sa.Float(), server_default="1", nullable=False, comment="1 / inclusion probability of the record."
        ),
        sa.Column("at", Instant, nullable=False),
        sa.Column(
            "superseded_at", Instant, nullable=True, comment="When the same person labelled the same thing anew."
        ),
        sa.PrimaryKeyConstraint("label_id"),
        comment="What people say of records: each person's own, kept beside the others'.",
    )
    op.create_index("labels_by_criterion", "labels", ["scorecard", "criterion", "at"], unique=False)
    op.create_index("labels_by_record", "labels", ["record_id", "criterion"], unique=False)
    op.create_table(
        "ledger",
        sa.Column("hour_at", Instant, nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column(
            "scorecard", sa.Text(), nullable=False, comment="'' counts records, a name counts record x scorecard."
        ),
        sa.Column("term", sa.Text(), nullable=False),
        sa.Column("n", Big, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("hour_at", "service", "scorecard", "term"),
        comment="What became of records, counted in the transaction that did it.",
    )
    op.create_table(
        "meter_hours",
        sa.Column("hour_at", Instant, nullable=False),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("calls", Big, server_default="0", nullable=False),
        sa.Column("errors", Big, server_default="0", nullable=False),
        sa.Column("tokens", Big, server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("cost_squares", sa.Float(), server_default="0", nullable=False),
        sa.Column("screened", Big, server_default="0", nullable=False),
        sa.Column("refusals", Big, server_default="0", nullable=False),
        sa.Column("blocked", Big, server_default="0", nullable=False),
        sa.Column("unpriced", Big, server_default="0", nullable=False),
        sa.Column("latency", Document, nullable=False),
        sa.Column("ttft", Document, nullable=False),
        sa.Column("tpot", Document, nullable=False),
        sa.PrimaryKeyConstraint("hour_at", "release_id", "feature"),
        comment="The meters of all processes by the hour, made of the minutes once it is over: so months are cheap.",
    )
    op.create_table(
        "meter_minutes",
        sa.Column(
            "minute_at",
            Instant,
            nullable=False,
            comment="When it happened: growth is spread over the time that its message tells of.",
        ),
        sa.Column("process_id", sa.Text(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("calls", Big, server_default="0", nullable=False),
        sa.Column("errors", Big, server_default="0", nullable=False),
        sa.Column("tokens", Big, server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("cost_squares", sa.Float(), server_default="0", nullable=False),
        sa.Column("screened", Big, server_default="0", nullable=False),
        sa.Column("refusals", Big, server_default="0", nullable=False),
        sa.Column("blocked", Big, server_default="0", nullable=False),
        sa.Column("unpriced", Big, server_default="0", nullable=False),
        sa.Column("latency", Document, nullable=False),
        sa.Column("ttft", Document, nullable=False),
        sa.Column("tpot", Document, nullable=False),
        sa.PrimaryKeyConstraint("minute_at", "process_id", "release_id", "feature"),
        comment="What each process's meter grew by in a minute; kept for two days, for alert rules.",
    )
    op.create_table(
        "meter_slots",
        sa.Column("slot_at", Instant, nullable=False, comment="Five seconds begin here."),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("calls", Big, server_default="0", nullable=False),
        sa.Column("errors", Big, server_default="0", nullable=False),
        sa.Column("tokens", Big, server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column("cost_squares", sa.Float(), server_default="0", nullable=False),
        sa.Column("screened", Big, server_default="0", nullable=False),
        sa.Column("refusals", Big, server_default="0", nullable=False),
        sa.Column("blocked", Big, server_default="0", nullable=False),
        sa.Column("unpriced", Big, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("slot_at", "release_id", "feature"),
        comment="What the meters of all processes grew by in five seconds; kept for two hours, to see money run away.",
    )
    op.create_table(
        "meter_users",
        sa.Column("minute_at", Instant, nullable=False, comment="In which the message came that told of it."),
        sa.Column("process_id", sa.Text(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False, comment="As records carry it."),
        sa.Column("calls", Big, server_default="0", nullable=False),
        sa.Column("tokens", Big, server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("minute_at", "process_id", "release_id", "feature", "user_id"),
        comment="What the heaviest users of each process grew by in a minute; kept for two days.",
    )
    op.create_index("meter_users_by_user", "meter_users", ["user_id"], unique=False)
    op.create_table(
        "meters",
        sa.Column("process_id", sa.Text(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("hour_at", Instant, nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("sequence", Big, server_default="0", nullable=False),
        sa.Column("sent_at", Instant, nullable=False),
        sa.Column("calls", Big, server_default="0", nullable=False),
        sa.Column("errors", Big, server_default="0", nullable=False),
        sa.Column("sampled", Big, server_default="0", nullable=False),
        sa.Column("not_sampled", Big, server_default="0", nullable=False),
        sa.Column("enqueued", Big, server_default="0", nullable=False),
        sa.Column("shed", Big, server_default="0", nullable=False),
        sa.Column("shed_by_reason", Document, nullable=False),
        sa.Column("input_tokens", Big, server_default="0", nullable=False),
        sa.Column("output_tokens", Big, server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column(
            "cost_squares", sa.Float(), server_default="0", nullable=False, comment="Sum of the squares of the costs."
        ),
        sa.Column(
            "unpriced",
            Big,
            server_default="0",
            nullable=False,
            comment="Calls of a model that has no price: their cost is unknown, and not in cost_usd.",
        ),
        sa.Column("cached_tokens", Big, server_default="0", nullable=False),
        sa.Column(
            "screened", Big, server_default="0", nullable=False, comment="Answers that the refusal screen looked at."
        ),
        sa.Column("refusals", Big, server_default="0", nullable=False, comment="Refusals among those."),
        sa.Column("blocked", Document, nullable=False, comment="Calls refused before they were made, by reason."),
        sa.Column("finish_reasons", Document, nullable=False),
        sa.Column("latency", Document, nullable=True, comment="Sketch in ms, as are the next two."),
        sa.Column("ttft", Document, nullable=True),
        sa.Column("tpot", Document, nullable=True),
        sa.Column(
            "users",
            Document,
            nullable=True,
            comment="The heaviest users as last told, as long as they may grow; see meter_users.",
        ),
        sa.PrimaryKeyConstraint("process_id", "release_id", "feature", "hour_at"),
        comment="What each hook process counted, cumulative over the hour: 100 % of the calls.",
    )
    op.create_index("meters_by_hour", "meters", ["hour_at"], unique=False)
    op.create_table(
        "notices",
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("since", Instant, nullable=False, comment="Names the episode of the group."),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column(
            "cause",
            sa.Text(),
            nullable=False,
            comment="first, added, raised, repeat, escalated, acknowledged or resolved",
        ),
        sa.Column("severity", sa.Text(), server_default="", nullable=False),
        sa.Column("channels", Document, nullable=False),
        sa.Column("alerts", Document, nullable=False, comment="Ids of those that fire, and of those that resolved."),
        sa.PrimaryKeyConstraint("group_key", "since", "number"),
        comment="What was told of alerts, to whom and why.",
    )
    op.create_index("notices_by_time", "notices", ["at"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), server_default="", nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="The exact bytes that every attempt sends."),
        sa.Column("seq", sa.Integer(), nullable=True, comment="Of a decision: its number in the rollout."),
        sa.Column("urgent", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "state",
            sa.Text(),
            server_default="pending",
            nullable=False,
            comment="pending, delivered, overtaken or dead",
        ),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("schedule_start", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", Instant, nullable=False),
        sa.Column("lease_until", Instant, nullable=True),
        sa.Column("fence", Big, server_default="0", nullable=False),
        sa.Column("by_hand", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("delivered_at", Instant, nullable=True),
        sa.PrimaryKeyConstraint("event_id"),
        comment="Notifications owed to the outside, committed with what they tell.",
    )
    op.create_index(
        "outbox_due",
        "outbox",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index("outbox_subject", "outbox", ["subject", "seq"], unique=False)
    op.create_index(
        "outbox_urgent",
        "outbox",
        ["subject", "seq"],
        unique=False,
        postgresql_where=sa.text("urgent = 1"),
        sqlite_where=sa.text("urgent = 1"),
    )
    op.create_table(
        "print_sets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "definition",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Of the set: another one begins a new reference.",
        ),
        sa.Column("reference_at", Instant, nullable=False, comment="Rounds from here on count."),
        sa.Column(
            "actor",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Who accepted the behaviour of then; empty at first.",
        ),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("round_at", Instant, nullable=True, comment="The newest round that was asked."),
        sa.Column("lease_until", Instant, nullable=True),
        sa.Column(
            "error",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Why the newest round failed; empty if it did not.",
        ),
        sa.PrimaryKeyConstraint("name"),
        comment="Fixed sets of prompts, and from when on their answers are compared.",
    )
    op.create_table(
        "prints",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("round_at", Instant, nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("repeat", sa.Integer(), nullable=False),
        sa.Column("definition", sa.Text(), server_default="", nullable=False),
        sa.Column("output", sa.Text(), server_default="", nullable=False),
        sa.Column("traits", Document, nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("fingerprint", sa.Text(), server_default="", nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=True, comment="Half-precision floats."),
        sa.Column(
            "embedder",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="That made it; those of two are never compared.",
        ),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", "round_at", "prompt", "repeat"),
        comment="What a model answered to a fixed set of prompts, round by round.",
    )
    op.create_table(
        "processes",
        sa.Column("process_id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("hook_version", sa.Text(), server_default="", nullable=False),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("sent_at", Instant, nullable=False),
        sa.Column("sequence", Big, server_default="0", nullable=False, comment="Of its latest meter message."),
        sa.Column(
            "messages",
            Big,
            server_default="0",
            nullable=False,
            comment="Meter messages that arrived, each after all that were numbered lower.",
        ),
        sa.Column(
            "ended_at",
            Instant,
            nullable=True,
            comment="When it said goodbye; a silent process that did not has crashed.",
        ),
        sa.Column("feedback", Document, nullable=False, comment="Feedback given, enqueued and shed, cumulative."),
        sa.PrimaryKeyConstraint("process_id"),
        comment="Every process that a hook ran in.",
    )
    op.create_index("processes_by_time", "processes", ["sent_at"], unique=False)
    op.create_table(
        "profile_places",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("last_at", Instant, nullable=False, comment="When a profile of it was last seen, to ten minutes."),
        sa.PrimaryKeyConstraint("service", "environment", "variant", "feature", "release_id"),
        comment="Where profiles are of: rules find their places without reading profiles.",
    )
    op.create_table(
        "profiles",
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("captured_at", Instant, nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column("feature", sa.Text(), server_default="", nullable=False),
        sa.Column("release_id", sa.Text(), server_default="", nullable=False),
        sa.Column("words", Document, nullable=False),
        sa.Column("sizes", Document, nullable=False),
        sa.Column(
            "embedder",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Name and version; '' while the embeddings wait to be made.",
        ),
        sa.Column("input_embedding", sa.LargeBinary(), nullable=True),
        sa.Column("output_embedding", sa.LargeBinary(), nullable=True),
        sa.Column("input_key", sa.Text(), server_default="", nullable=False),
        sa.Column("unit", sa.Text(), server_default="", nullable=False, comment="The conversation, hashed."),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column(
            "pick",
            Big,
            server_default="0",
            nullable=False,
            comment="Of the record's id, hashed: an even choice takes the smallest.",
        ),
        sa.PrimaryKeyConstraint("record_id"),
        comment="What inputs and outputs look like, for drift: one row for each record that stands for traffic.",
        info={"mostly_new": True},
    )
    op.create_index("profiles_by_place", "profiles", ["service", "captured_at"], unique=False)
    op.create_index("profiles_by_time", "profiles", ["captured_at"], unique=False)
    op.create_index(
        "profiles_to_embed",
        "profiles",
        ["captured_at"],
        unique=False,
        postgresql_where=sa.text("embedder = ''"),
        sqlite_where=sa.text("embedder = ''"),
    )
    op.create_table(
        "receipts",
        sa.Column("process_id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("hour_at", Instant, nullable=False),
        sa.Column("n", Big, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("process_id", "service", "hour_at"),
        comment="Records that arrived, by the hook process that sent them.",
    )
    op.create_table(
        "records",
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("trace_id", sa.Text(), server_default="", nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("feature", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column("release_id", sa.Text(), server_default="", nullable=False),
        sa.Column("session_id", sa.Text(), server_default="", nullable=False),
        sa.Column("user_id", sa.Text(), server_default="", nullable=False),
        sa.Column("unit", sa.Text(), server_default="", nullable=False),
        sa.Column("captured_at", Instant, nullable=False),
        sa.Column("ingested_at", Instant, nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("stratum", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("cost_usd", sa.Float(), nullable=True),
        sa.Column("outcome", sa.Text(), server_default="in_flight", nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary(),
            nullable=True,
            comment="The wire form as JSON; empty after erasure or retention.",
        ),
        sa.PrimaryKeyConstraint("record_id"),
        comment="Every sampled record that reached the store.",
        info={"mostly_new": True},
    )
    op.create_index("records_by_arrival", "records", ["ingested_at"], unique=False)
    op.create_index("records_by_time", "records", ["captured_at"], unique=False)
    op.create_index("records_by_trace", "records", ["trace_id"], unique=False)
    op.create_index("records_by_user", "records", ["user_id"], unique=False)
    op.create_index(
        "records_in_flight",
        "records",
        ["service", "captured_at"],
        unique=False,
        postgresql_where=sa.text("outcome = 'in_flight'"),
        sqlite_where=sa.text("outcome = 'in_flight'"),
    )
    op.create_table(
        "releases",
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("prompt", sa.Text(), server_default="", nullable=False),
        sa.Column("retrieval", sa.Text(), server_default="", nullable=False),
        sa.Column("index", sa.Text(), server_default="", nullable=False),
        sa.Column("tool_schema", sa.Text(), server_default="", nullable=False),
        sa.Column("data_pipeline", sa.Text(), server_default="", nullable=False),
        sa.Column("first_seen_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("release_id"),
        comment="Every exact release seen in traffic.",
    )
    op.create_table(
        "rollout_inputs",
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("n", Big, autoincrement=False, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column(
            "body", sa.LargeBinary(), nullable=False, comment="JSON, deflated where it begins with the byte 0x78."
        ),
        sa.PrimaryKeyConstraint("rollout_id", "n"),
        comment="All that was folded into a rollout, batch by batch: its decisions can be made again from it.",
    )
    op.create_table(
        "rollout_orders",
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Text(), server_default="", nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("expires_at", Instant, nullable=False),
        sa.Column("folded_at", Instant, nullable=True, comment="Empty while it waits."),
        sa.PrimaryKeyConstraint("order_id"),
        comment="What people ordered of a rollout.",
    )
    op.create_index("rollout_orders_in_order", "rollout_orders", ["rollout_id", "at"], unique=False)
    op.create_index(
        "rollout_orders_waiting",
        "rollout_orders",
        ["rollout_id"],
        unique=False,
        postgresql_where=sa.text("folded_at IS NULL"),
        sqlite_where=sa.text("folded_at IS NULL"),
    )
    op.create_table(
        "rollout_readings",
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("process_id", sa.Text(), nullable=False),
        sa.Column("sequence", Big, autoincrement=False, nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("calls", Big, server_default="0", nullable=False),
        sa.Column("latency", Document, nullable=False, comment="Calls by bin of the sketch, as is the next."),
        sa.Column("ttft", Document, nullable=False),
        sa.PrimaryKeyConstraint("rollout_id", "process_id", "sequence", "arm"),
        comment="What meter messages counted of a rollout's arms, until it is folded.",
    )
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("scorecard_version", sa.Text(), server_default="", nullable=False),
        sa.Column("baseline", sa.Text(), server_default="", nullable=False),
        sa.Column("canary", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "canary_release_id",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Empty until the first record of the canary arrives.",
        ),
        sa.Column(
            "phase",
            sa.Text(),
            server_default="running",
            nullable=False,
            comment="As of the state; or superseded, by the rollout of a newer release.",
        ),
        sa.Column("scope", Document, server_default="{}", nullable=False, comment="The traffic that is compared."),
        sa.Column("step", sa.Integer(), server_default="0", nullable=False, comment="Of the ramp, from 0."),
        sa.Column(
            "percent",
            sa.Float(),
            nullable=True,
            comment="Of the units that should get the canary; empty where others split the traffic.",
        ),
        sa.Column("plan", Document, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=True),
        sa.Column("evidence_seq", Big, server_default="0", nullable=False, comment="Records that entered."),
        sa.Column(
            "folded", Document, server_default="{}", nullable=False, comment="By criterion: the newest seq folded."
        ),
        sa.Column("folded_seq", Big, server_default="0", nullable=False, comment="All criteria are folded up to here."),
        sa.Column("inputs_n", Big, server_default="0", nullable=False, comment="Batches in its log."),
        sa.Column("decision_seq", Big, server_default="0", nullable=False),
        sa.Column("actor", sa.Text(), server_default="evalpipe", nullable=False, comment="Who started it."),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.Column("due_at", Instant, nullable=False, comment="Looked at then, also without anything new."),
        sa.Column("rolled_back_at", Instant, nullable=True),
        sa.Column(
            "verified",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Of a rollback: waiting, verified, ineffective or unknown.",
        ),
        sa.Column(
            "verified_at", Instant, nullable=True, comment="When the meters showed that the canary's calls had ended."
        ),
        sa.Column(
            "canary_seen_at",
            Instant,
            nullable=True,
            comment="After a rollback: the end of the newest calls of the canary.",
        ),
        sa.Column(
            "canary_late_at",
            Instant,
            nullable=True,
            comment="Of its newest calls that began after they had to have ended.",
        ),
        sa.PrimaryKeyConstraint("rollout_id"),
        comment="Baseline and canary compared, with the state of the decision engine.",
    )
    op.create_index("rollouts_by_phase", "rollouts", ["phase"], unique=False)
    op.create_index("rollouts_by_service", "rollouts", ["service", "environment", "phase"], unique=False)
    op.create_index(
        "rollouts_to_verify",
        "rollouts",
        ["verified"],
        unique=False,
        postgresql_where=sa.text("verified IN ('waiting', 'ineffective')"),
        sqlite_where=sa.text("verified IN ('waiting', 'ineffective')"),
    )
    op.create_table(
        "rollup_days",
        sa.Column("bucket_at", Instant, nullable=False),
        sa.Column("series_id", sa.Text(), nullable=False),
        sa.Column("n_scored", Big, server_default="0", nullable=False),
        sa.Column("n_skipped", Big, server_default="0", nullable=False),
        sa.Column("n_abstained", Big, server_default="0", nullable=False),
        sa.Column("n_error", Big, server_default="0", nullable=False),
        sa.Column("sum_w", sa.Float(), nullable=False),
        sa.Column("sum_w2", sa.Float(), nullable=False),
        sa.Column("sum_wx", sa.Float(), nullable=False),
        sa.Column("sum_wx2", sa.Float(), nullable=False),
        sa.Column("sum_w2x", sa.Float(), nullable=False),
        sa.Column("sum_w2x2", sa.Float(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("bins", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("bucket_at", "series_id"),
        comment="The same by the UTC day.",
        info={"mostly_new": True},
    )
    op.create_index("rollup_days_by_series", "rollup_days", ["series_id", "bucket_at"], unique=False)
    op.create_table(
        "rollup_hours",
        sa.Column("bucket_at", Instant, nullable=False),
        sa.Column("series_id", sa.Text(), nullable=False),
        sa.Column("n_scored", Big, server_default="0", nullable=False),
        sa.Column("n_skipped", Big, server_default="0", nullable=False),
        sa.Column("n_abstained", Big, server_default="0", nullable=False),
        sa.Column("n_error", Big, server_default="0", nullable=False),
        sa.Column("sum_w", sa.Float(), nullable=False),
        sa.Column("sum_w2", sa.Float(), nullable=False),
        sa.Column("sum_wx", sa.Float(), nullable=False),
        sa.Column("sum_wx2", sa.Float(), nullable=False),
        sa.Column("sum_w2x", sa.Float(), nullable=False),
        sa.Column("sum_w2x2", sa.Float(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("bins", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("bucket_at", "series_id"),
        comment="The same by the hour.",
        info={"mostly_new": True},
    )
    op.create_index("rollup_hours_by_series", "rollup_hours", ["series_id", "bucket_at"], unique=False)
    op.create_table(
        "rollups",
        sa.Column("bucket_at", Instant, nullable=False),
        sa.Column("series_id", sa.Text(), nullable=False),
        sa.Column("n_scored", Big, server_default="0", nullable=False),
        sa.Column("n_skipped", Big, server_default="0", nullable=False),
        sa.Column("n_abstained", Big, server_default="0", nullable=False),
        sa.Column("n_error", Big, server_default="0", nullable=False),
        sa.Column("sum_w", sa.Float(), nullable=False),
        sa.Column("sum_w2", sa.Float(), nullable=False),
        sa.Column("sum_wx", sa.Float(), nullable=False),
        sa.Column("sum_wx2", sa.Float(), nullable=False),
        sa.Column("sum_w2x", sa.Float(), nullable=False),
        sa.Column("sum_w2x2", sa.Float(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("bins", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("bucket_at", "series_id"),
        comment="Minute buckets of every series.",
        info={"mostly_new": True},
    )
    op.create_index("rollups_by_series", "rollups", ["series_id", "bucket_at"], unique=False)
    op.create_table(
        "score_exports",
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("criterion", sa.Text(), nullable=False),
        sa.Column("scorecard_version", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("due_at", Instant, nullable=False, comment="Until then somebody else sends it."),
        sa.Column("created_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("record_id", "criterion", "scorecard_version", "epoch"),
        comment="Scores that are still owed to the OpenTelemetry endpoint.",
        info={"mostly_new": True},
    )
    op.create_index("score_exports_due", "score_exports", ["due_at"], unique=False)
    op.create_table(
        "scorecards",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("body", Document, nullable=False),
        sa.Column("first_seen_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("version"),
        comment="Every scorecard version that scored something: work is judged by the version that owed it.",
    )
    op.create_table(
        "scores",
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("criterion", sa.Text(), nullable=False),
        sa.Column("scorecard_version", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("feature", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column("release_id", sa.Text(), server_default="", nullable=False),
        sa.Column("captured_at", Instant, nullable=False),
        sa.Column("scored_at", Instant, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("label", sa.Text(), server_default="", nullable=False),
        sa.Column("explanation", sa.Text(), server_default="", nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("scorer", sa.Text(), server_default="", nullable=False),
        sa.Column("cost_usd", sa.Float(), server_default="0", nullable=False),
        sa.Column(
            "step",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Of the judges' ladder: 0 is the judge that the scorecard names first.",
        ),
        sa.Column(
            "escalated",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="1 where the stronger judge of a cascade was asked.",
        ),
        sa.Column(
            "disagreement",
            sa.Float(),
            nullable=True,
            comment="Mean distance of two votes, 0 to 1; empty with one vote.",
        ),
        sa.Column(
            "arm",
            sa.Text(),
            server_default="served",
            nullable=False,
            comment="served, or shadow: an answer that nobody saw",
        ),
        sa.PrimaryKeyConstraint("record_id", "criterion", "scorecard_version", "epoch"),
        comment="One row for each record, criterion, scorecard version and epoch.",
        info={"mostly_new": True},
    )
    op.create_index("scores_by_criterion", "scores", ["criterion", "captured_at"], unique=False)
    op.create_index("scores_by_time", "scores", ["captured_at"], unique=False)
    op.create_table(
        "series",
        sa.Column("series_id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("feature", sa.Text(), server_default="", nullable=False),
        sa.Column("environment", sa.Text(), server_default="", nullable=False),
        sa.Column("variant", sa.Text(), server_default="", nullable=False),
        sa.Column("release_id", sa.Text(), server_default="", nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("criterion", sa.Text(), server_default="", nullable=False),
        sa.Column("epoch", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "arm",
            sa.Text(),
            server_default="served",
            nullable=False,
            comment="served, or shadow: answers that nobody saw",
        ),
        sa.Column("first_seen_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("series_id"),
        comment="What a rollup's numbers are about.",
    )
    op.create_index("series_by_criterion", "series", ["service", "scorecard", "criterion"], unique=False)
    op.create_table(
        "silences",
        sa.Column("silence_id", sa.Text(), nullable=False),
        sa.Column("matchers", Document, nullable=False, comment="Globs by label; all must fit."),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("starts_at", Instant, nullable=False),
        sa.Column("until", Instant, nullable=False),
        sa.Column("ended_at", Instant, nullable=True, comment="Before its time, by a person."),
        sa.Column("ended_by", sa.Text(), server_default="", nullable=False),
        sa.Column("end_reason", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("silence_id"),
        comment="Alerts of which nobody is told for a while; never deleted.",
    )
    op.create_index("silences_by_end", "silences", ["until"], unique=False)
    op.create_table(
        "work",
        sa.Column("work_id", sa.Text(), nullable=False),
        sa.Column("record_id", sa.Text(), server_default="", nullable=False),
        sa.Column("scorecard", sa.Text(), server_default="", nullable=False),
        sa.Column("scorecard_version", sa.Text(), server_default="", nullable=False),
        sa.Column("criterion", sa.Text(), server_default="", nullable=False),
        sa.Column("service", sa.Text(), server_default="", nullable=False),
        sa.Column("captured_at", Instant, nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("origin", sa.Text(), server_default="ingest", nullable=False, comment="ingest or rescore"),
        sa.Column("lane", sa.Text(), server_default="now", nullable=False, comment="now, or batch"),
        sa.Column(
            "state", sa.Text(), server_default="pending", nullable=False, comment="pending, batched, done, shed or dead"
        ),
        sa.Column("batch_id", sa.Text(), server_default="", nullable=False, comment="Of the batch that it waits for."),
        sa.Column(
            "keep",
            sa.Float(),
            server_default="1",
            nullable=False,
            comment="Share by which it was kept; the weight has it.",
        ),
        sa.Column(
            "held",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="Held of the caps for its calls, as JSON: {day: {scope: usd}}.",
        ),
        sa.Column("due_at", Instant, nullable=False),
        sa.Column("lease_until", Instant, nullable=True),
        sa.Column("fence", Big, server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("work_id"),
        comment="Judge calls that are owed, done, or dead with the reason.",
        info={"mostly_new": True},
    )
    op.create_index(
        "work_by_batch",
        "work",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("batch_id <> ''"),
        sqlite_where=sa.text("batch_id <> ''"),
    )
    op.create_index("work_by_record", "work", ["record_id"], unique=False)
    op.create_index(
        "work_given_up",
        "work",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("state = 'dead'"),
        sqlite_where=sa.text("state = 'dead'"),
    )
    op.create_index(
        "work_to_claim",
        "work",
        ["priority", "due_at"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )


def downgrade() -> None:
    op.drop_index(
        "work_to_claim",
        table_name="work",
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.drop_index(
        "work_given_up",
        table_name="work",
        postgresql_where=sa.text("state = 'dead'"),
        sqlite_where=sa.text("state = 'dead'"),
    )
    op.drop_index("work_by_record", table_name="work")
    op.drop_index(
        "work_by_batch",
        table_name="work",
        postgresql_where=sa.text("batch_id <> ''"),
        sqlite_where=sa.text("batch_id <> ''"),
    )
    op.drop_table("work")
    op.drop_index("silences_by_end", table_name="silences")
    op.drop_table("silences")
    op.drop_index("series_by_criterion", table_name="series")
    op.drop_table("series")
    op.drop_index("scores_by_time", table_name="scores")
    op.drop_index("scores_by_criterion", table_name="scores")
    op.drop_table("scores")
    op.drop_table("scorecards")
    op.drop_index("score_exports_due", table_name="score_exports")
    op.drop_table("score_exports")
    op.drop_index("rollups_by_series", table_name="rollups")
    op.drop_table("rollups")
    op.drop_index("rollup_hours_by_series", table_name="rollup_hours")
    op.drop_table("rollup_hours")
    op.drop_index("rollup_days_by_series", table_name="rollup_days")
    op.drop_table("rollup_days")
    op.drop_index(
        "rollouts_to_verify",
        table_name="rollouts",
        postgresql_where=sa.text("verified IN ('waiting', 'ineffective')"),
        sqlite_where=sa.text("verified IN ('waiting', 'ineffective')"),
    )
    op.drop_index("rollouts_by_service", table_name="rollouts")
    op.drop_index("rollouts_by_phase", table_name="rollouts")
    op.drop_table("rollouts")
    op.drop_table("rollout_readings")
    op.drop_index(
        "rollout_orders_waiting",
        table_name="rollout_orders",
        postgresql_where=sa.text("folded_at IS NULL"),
        sqlite_where=sa.text("folded_at IS NULL"),
    )
    op.drop_index("rollout_orders_in_order", table_name="rollout_orders")
    op.drop_table("rollout_orders")
    op.drop_table("rollout_inputs")
    op.drop_table("releases")
    op.drop_index(
        "records_in_flight",
        table_name="records",
        postgresql_where=sa.text("outcome = 'in_flight'"),
        sqlite_where=sa.text("outcome = 'in_flight'"),
    )
    op.drop_index("records_by_user", table_name="records")
    op.drop_index("records_by_trace", table_name="records")
    op.drop_index("records_by_time", table_name="records")
    op.drop_index("records_by_arrival", table_name="records")
    op.drop_table("records")
    op.drop_table("receipts")
    op.drop_index(
        "profiles_to_embed",
        table_name="profiles",
        postgresql_where=sa.text("embedder = ''"),
        sqlite_where=sa.text("embedder = ''"),
    )
    op.drop_index("profiles_by_time", table_name="profiles")
    op.drop_index("profiles_by_place", table_name="profiles")
    op.drop_table("profiles")
    op.drop_table("profile_places")
    op.drop_index("processes_by_time", table_name="processes")
    op.drop_table("processes")
    op.drop_table("prints")
    op.drop_table("print_sets")
    op.drop_index(
        "outbox_urgent", table_name="outbox", postgresql_where=sa.text("urgent = 1"), sqlite_where=sa.text("urgent = 1")
    )
    op.drop_index("outbox_subject", table_name="outbox")
    op.drop_index(
        "outbox_due",
        table_name="outbox",
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.drop_table("outbox")
    op.drop_index("notices_by_time", table_name="notices")
    op.drop_table("notices")
    op.drop_index("meters_by_hour", table_name="meters")
    op.drop_table("meters")
    op.drop_index("meter_users_by_user", table_name="meter_users")
    op.drop_table("meter_users")
    op.drop_table("meter_slots")
    op.drop_table("meter_minutes")
    op.drop_table("meter_hours")
    op.drop_table("ledger")
    op.drop_index("labels_by_record", table_name="labels")
    op.drop_index("labels_by_criterion", table_name="labels")
    op.drop_table("labels")
    op.drop_table("judge_states")
    op.drop_table("judge_spend")
    op.drop_table("judge_health")
    op.drop_table("judge_calls")
    op.drop_index("judge_batches_due", table_name="judge_batches")
    op.drop_table("judge_batches")
    op.drop_table("incidents")
    op.drop_index("growths_by_time", table_name="growths")
    op.drop_table("growths")
    op.drop_index("grades_by_record", table_name="grades")
    op.drop_index(
        "grades_by_content",
        table_name="grades",
        postgresql_where=sa.text("content_key <> ''"),
        sqlite_where=sa.text("content_key <> ''"),
    )
    op.drop_table("grades")
    op.drop_index("feedback_by_user", table_name="feedback")
    op.drop_index("feedback_by_trace", table_name="feedback")
    op.drop_index("feedback_by_time", table_name="feedback")
    op.drop_index("feedback_by_record", table_name="feedback")
    op.drop_table("feedback")
    op.drop_index("evidence_by_record", table_name="evidence")
    op.drop_table("evidence")
    op.drop_table("evaluations")
    op.drop_table("endpoints")
    op.drop_table("deliveries")
    op.drop_index("decisions_in_order", table_name="decisions")
    op.drop_index("decisions_by_time", table_name="decisions")
    op.drop_table("decisions")
    op.drop_index("dead_letters_by_time", table_name="dead_letters")
    op.drop_table("dead_letters")
    op.drop_table("controls")
    op.drop_table("control_changes")
    op.drop_index("changes_by_time", table_name="changes")
    op.drop_table("changes")
    op.drop_index("calibrations_by_epoch", table_name="calibrations")
    op.drop_table("calibrations")
    op.drop_index("baselines_by_place", table_name="baselines")
    op.drop_table("baselines")
    op.drop_index("anchors_by_user", table_name="anchors")
    op.drop_index("anchors_by_criterion", table_name="anchors")
    op.drop_table("anchors")
    op.drop_index("anchor_grades_by_time", table_name="anchor_grades")
    op.drop_table("anchor_grades")
    op.drop_index("alerts_by_status", table_name="alerts")
    op.drop_table("alerts")
    op.drop_table("alert_groups")
