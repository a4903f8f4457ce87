"""The doctor: looks at every part and says what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from evalpipe.cli import doctor_alerts
from evalpipe.cli.doctor_finding import Finding
from evalpipe.cli.trouble import no_database, redis_advice
from evalpipe.errors import EvalpipeError
from evalpipe.settings import Settings, masked
from evalpipe.store import endpoints, ledgers, migrate, outbox, progress, rollouts
from evalpipe.wiring import Wiring, now

LAG = timedelta(minutes=5)
"""Work that has been due for longer than this is late."""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; one broken part hides no other."""
    wiring = Wiring(settings)
    checks: tuple[tuple[str, Callable[[Wiring], list[Finding]]], ...] = (
        ("redis", _redis),
        ("database", _database),
        ("scorecards", _scorecards),
        ("judge", _judge),
        ("embeddings", _embeddings),
        ("otlp", _otlp),
        ("webhook", _webhook),
        ("progress", _progress),
        ("alerts", doctor_alerts.look),
        ("rollouts", _rollouts),
        ("ledger", _ledger),
    )
    found: list[Finding] = []
    broken: set[str] = set()
    for name, check in checks:
        if cause := next((part for part in _NEEDS.get(name, ()) if part in broken), ""):
            found.append(Finding(name, "warn", f"not checked: see {cause} above"))
            continue
        try:
            new = check(wiring)
        except (EvalpipeError, RedisError, SQLAlchemyError, OSError) as error:
            detail = masked(str(error).splitlines()[0]) if str(error) else type(error).__name__
            advice = redis_advice(settings) if name == "redis" else _ADVICE.get(name, "")
            new = [Finding(name, "bad", detail, advice)]
            broken.add(name)
        if name == "database" and any(finding.state == "bad" for finding in new):
            broken.add(name)
        found += new
    wiring.close()
    return found


_ADVICE = {
    "database": "start it, or set EVALPIPE_DATABASE_URL",
    "scorecards": "run 'evalpipe scorecard check'",
    "judge": "set EVALPIPE_JUDGE to provider:model",
    "embeddings": "set EVALPIPE_EMBEDDINGS to static, sentence-transformers:MODEL or openai:MODEL",
    "otlp": "set EVALPIPE_OTLP_ENDPOINT to the base URL of an OpenTelemetry endpoint",
    "alerts": "run 'evalpipe alerts check'",
}
_NEEDS = {
    "judge": ("scorecards",),
    "otlp": ("database",),
    "webhook": ("database",),
    "progress": ("database",),
    "alerts": ("database", "scorecards", "webhook"),
    "rollouts": ("database",),
    "ledger": ("database", "redis"),
}
"""What a part cannot be looked at without: its own failure would only lead astray."""


def _redis(wiring: Wiring) -> list[Finding]:
    seconds = wiring.queue.ping()
    info = wiring.queue.info()
    found = [Finding("redis", "ok", f"answers in {seconds * 1000:.1f} ms, version {info.get('redis_version')}")]
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        advice = "set maxmemory-policy to noeviction: evicting a queue loses records"
        found.append(Finding("redis", "bad", f"maxmemory-policy is {policy}", advice))
    if not info.get("aof_enabled") and not info.get("rdb_last_save_time"):
        found.append(Finding("redis", "warn", "keeps nothing over a restart", "enable appendonly"))
    for stage, n in wiring.queue.lengths().items():
        if n > 1000:
            advice = f"start more workers: evalpipe worker --queues {stage}"
            found.append(Finding("redis", "warn", f"{n} messages wait for {stage}", advice))
    return found


def _database(wiring: Wiring) -> list[Finding]:
    if nothing := no_database(wiring.settings):
        return [Finding("database", "bad", *nothing.split(": ", 1))]
    at, wanted = migrate.current(wiring.store), migrate.head()
    if at != wanted:
        detail = f"{wiring.store.url} is at revision {at or 'none'}, this code wants {wanted}"
        return [Finding("database", "bad", detail, "run 'evalpipe migrate'")]
    return [Finding("database", "ok", f"{wiring.store.url}, revision {at}")]


def _scorecards(wiring: Wiring) -> list[Finding]:
    cards = wiring.scorecards
    if not cards:
        return [Finding("scorecards", "warn", f"none in {wiring.settings.scorecards}", "write one: docs/scorecards.md")]
    return [Finding("scorecards", "ok", ", ".join(f"{card.name}@{card.version}" for card in cards))]


def judged_and_skipped(wiring: Wiring) -> tuple[list[str], list[str]]:
    """The judged criteria that have a judge, and those that mean the default one where none is set."""
    has: dict[bool, list[str]] = {True: [], False: []}
    for card in wiring.scorecards:
        for criterion in card.criteria:
            if criterion.judge is not None:
                has[wiring.has_judge(criterion.judge)].append(f"{card.name}/{criterion.name}")
    return has[True], has[False]


def _judge(wiring: Wiring) -> list[Finding]:
    judged, skipped = judged_and_skipped(wiring)
    versions = wiring.check_judges()
    detail = f"{', '.join(versions) or 'none is asked'}, for {len(judged)} criteria"
    if not skipped:
        return [Finding("judge", "ok", detail)]
    lost = f"no default judge: {len(skipped)} judged criteria are skipped ({', '.join(skipped)})"
    return [Finding("judge", "warn", f"{detail}; {lost}" if judged else lost, "set EVALPIPE_JUDGE")]


def _embeddings(wiring: Wiring) -> list[Finding]:
    return [Finding("embeddings", "ok", wiring.embedder.version)]


def _otlp(wiring: Wiring) -> list[Finding]:
    endpoint = wiring.settings.otlp_endpoint
    _ = wiring.export  # it says what is wrong with the endpoint
    return [Finding("otlp", "ok", f"scores go to {masked(endpoint)}")] if endpoint else []


def _webhook(wiring: Wiring) -> list[Finding]:
    if not wiring.channels:
        advice = (
            "set EVALPIPE_CHANNELS, or EVALPIPE_WEBHOOK_URL and EVALPIPE_WEBHOOK_SECRET, or nobody is told of an alert "
            "or a rollback"
        )
        return [Finding("webhook", "warn", "no channel is configured", advice)]
    with wiring.store.read() as tx:
        bad = [row for row in outbox.listing(tx, 500) if row["state"] == "dead" or row["attempts"] > 3]
        disabled = [
            row for row in endpoints.listing(tx) if row["disabled_at"] is not None and row["channel"] in wiring.channels
        ]
    if disabled:
        name, why = disabled[0]["channel"], disabled[0]["reason"]
        advice = f"mend it, then 'evalpipe deliveries enable {name}'"
        return [Finding("webhook", "bad", f"nothing is sent to channel {name}: {why}", advice)]
    if bad:
        detail = f"{len(bad)} notifications have trouble, the newest: {bad[0]['reason']}"
        return [Finding("webhook", "bad", detail, "see 'evalpipe deliveries'; then 'evalpipe deliveries redeliver ID'")]
    return [Finding("webhook", "ok", ", ".join(wiring.channels))]


def _progress(wiring: Wiring) -> list[Finding]:
    with wiring.store.read() as tx:
        seen = progress.read(tx, now())
    if seen.oldest_unscored_s > LAG.total_seconds():
        detail = (
            f"the oldest unscored record is {seen.oldest_unscored_s / 60:.0f} minutes old, {seen.owed} calls are owed"
        )
        advice = "are judge workers running? 'evalpipe worker --queues judge'; and is the judge up?"
        return [Finding("progress", "bad", detail, advice)]
    found = [Finding("progress", "ok", f"{seen.owed} judge calls owed, the oldest {seen.oldest_unscored_s:.0f} s old")]
    if seen.dead_work or seen.dead_letters:
        detail = f"{seen.dead_letters} dead letters, {seen.dead_work} judge calls given up"
        advice = "see 'evalpipe dead-letters list'; mend the cause, then 'evalpipe dead-letters redrive'"
        found.append(Finding("progress", "warn", detail, advice))
    return found


def _rollouts(wiring: Wiring) -> list[Finding]:
    with wiring.store.read() as tx:
        left, live = rollouts.unattended(tx, now()), len(rollouts.listing(tx, live=True))
    if left:
        advice = "'evalpipe worker --queues evaluate' and 'evalpipe beat' decide"
        return [Finding("rollouts", "bad", rollouts.unattended_words(left), advice)]
    return [Finding("rollouts", "ok", f"{live} under way")]


def _ledger(wiring: Wiring) -> list[Finding]:
    with wiring.store.read() as tx:
        since = ledgers.hour_of(now() - timedelta(hours=24))
        lines = ledgers.read(tx, wiring.queue.queued(), now(), since=since)
    whole = [line for line in lines if not line.scorecard]
    off = sum(abs(line.difference) for line in whole)
    gone = sum(line.shed + line.lost + line.dead for line in whole)
    sampled = sum(line.sampled for line in whole)
    detail = f"{sampled} sampled in 24 h; {gone} shed, lost or dead; out of balance by {off}"
    if sampled and gone / sampled > 0.01:
        return [Finding("ledger", "warn", detail, "'evalpipe ledger' says where; the queue may be too small")]
    return [Finding("ledger", "ok", detail)]
