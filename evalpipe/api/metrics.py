"""``GET /metrics`` for Prometheus: what the store and the queue say, read once for each scrape.

Gauges are the state now; counters start again at midnight UTC (see ``totals``). Several API processes tell the same, so
take ``max`` over them, not ``sum``; only the spans are what each process counted itself since its start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from anyio import to_thread
from fastapi import APIRouter, Request, Response, Security
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from evalpipe import __version__
from evalpipe.api import alert_metrics, totals
from evalpipe.api.access import bearer
from evalpipe.api.health import Probes
from evalpipe.api.metric_families import counter, gauge, one
from evalpipe.api.probe import Probe
from evalpipe.api.problems import refuse
from evalpipe.api.scrape import Seen, see
from evalpipe.api.taps import Taps
from evalpipe.hook.meter import LEFT
from evalpipe.hook.row import SHED
from evalpipe.judges.breaker import JudgeState, State
from evalpipe.stats.mean_interval import interval_of
from evalpipe.store import ledgers
from evalpipe.store.latencies import Latencies
from evalpipe.store.rollouts import LIVE
from evalpipe.wiring import now

TIMEOUT_S = 9.0
"""Less than Prometheus's usual scrape timeout of 10 s."""
FRESH_S = 5.0
TERMS = ("observed", "not_sampled", "sampled", "unmetered", *ledgers.OUTCOMES, "shed", "lost", "in_flight")
PHASES = (*LIVE, "complete", "rolled_back", "aborted", "expired", "superseded")
QUANTILES = (0.5, 0.95, 0.99)
LATENCIES = {
    "latency": "how long calls took",
    "ttft": "the time to the first token",
    "tpot": "the time per output token",
}
TOKENS = ("input", "cached", "output")


class _Fixed(Collector):
    """Metrics that were made already."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


router = APIRouter(tags=["health"], dependencies=[Security(bearer)])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(request: Request) -> Response:
    """Metrics in Prometheus's text format, or OpenMetrics if the scraper asks for it; docs/operating.md has a table."""
    probe: Probe[Seen] = request.app.state.metrics
    try:
        seen = await probe.ask()
    except TimeoutError as error:
        advice = "scrape less often, or run 'evalpipe doctor' where the API runs"
        raise refuse(503, f"the metrics gave {error}", where="/metrics", advice=advice) from None
    taps: Taps = request.app.state.taps
    spans = [([outcome], n) for outcome, n in taps.spans.items()]
    encode, content_type = choose_encoder(request.headers.get("accept", ""))

    def text() -> bytes:
        told = counter("otlp_spans", "Spans that came to this API process.", ["outcome"], spans)
        registry = CollectorRegistry()
        registry.register(_Fixed([*families(seen), told]))
        return encode(registry)

    # In a thread: of a thousand alerts it takes a tenth of a second, in which other requests would wait.
    return Response(await to_thread.run_sync(text), media_type=content_type)


def make_probe(probes: Probes) -> Probe[Seen]:
    """What one process asks for its metrics: however many scrapers there are, one reading."""
    latencies = Latencies(totals.WINDOW)
    return Probe(lambda: see(probes, latencies, now()), timeout_s=TIMEOUT_S, fresh_s=FRESH_S)


def families(seen: Seen) -> list[Metric]:
    """The metrics of one scrape."""
    return [
        gauge("build_info", "The version that answers; always 1.", ["version"], [([__version__], 1)]),
        gauge("database_up", "1 if the database answered this scrape.", [], [([], seen.database)]),
        gauge("redis_up", "1 if Redis answered this scrape.", [], [([], seen.redis)]),
        *_of_progress(seen),
        *_of_ledger(seen),
        *_of_calls(seen),
        *_of_scores(seen),
        *_of_judges(seen),
        *_of_decisions(seen),
        *(alert_metrics.families(seen.around, seen.at) if seen.around is not None else ()),
    ]


def _of_progress(seen: Seen) -> list[Metric]:
    found: list[Metric] = []
    if seen.waiting is not None:
        lengths = [([stage], n) for stage, n in seen.waiting.lengths.items()]
        found += [
            gauge("queue_messages", "Messages that wait in Redis.", ["stage"], lengths),
            one("oldest_queued_seconds", "Age of the oldest message with records.", seen.waiting.oldest_queued_s),
        ]
    if seen.stored is None or seen.stored.progress is None:
        return found
    p = seen.stored.progress
    found += [
        one("oldest_unscored_seconds", "Age of the oldest stored record that owes a score.", p.oldest_unscored_s),
        one("oldest_undecided_seconds", "Age of the oldest evidence undecided on.", seen.stored.oldest_undecided_s),
        one("work_owed", "Judge calls owed.", p.owed),
        one("work_dead", "Judge calls given up.", p.dead_work),
        one("dead_letters", "Messages and records that could not be read, not re-driven.", p.dead_letters),
        one("outbox_pending", "Notifications that wait.", p.undelivered),
        one("outbox_oldest_seconds", "Age of the oldest notification that waits.", p.oldest_undelivered_s),
        one("outbox_dead", "Notifications given up.", seen.undeliverable or 0),
    ]
    if p.newest_record_s is not None:
        found.append(one("newest_record_seconds", "How long ago a record was stored.", p.newest_record_s))
    return found


def _of_ledger(seen: Seen) -> list[Metric]:
    """Two hours at a time: a gauge, because terms such as in_flight also fall."""
    sums: dict[tuple[str, str, str], int] = {}
    for line in seen.lines:
        for term in (*TERMS, "difference"):
            key = line.service, line.scorecard, term
            sums[key] = sums.get(key, 0) + getattr(line, term)
    terms = [(list(key), n) for key, n in sums.items() if key[2] != "difference"]
    differences = [([service, scorecard], n) for (service, scorecard, term), n in sums.items() if term == "difference"]
    return [
        gauge(
            "ledger_records",
            "Records captured in this and the previous hour (UTC) by what became of them; scorecard '' counts records.",
            ["service", "scorecard", "term"],
            terms,
        ),
        gauge(
            "ledger_difference",
            "Sampled minus all that became of it, this and the previous hour: 0 at rest.",
            ["service", "scorecard"],
            differences,
        ),
    ]


def _of_calls(seen: Seen) -> list[Metric]:
    def sums(name: str) -> list[tuple[list[str], float]]:
        return [(_labels(row, totals.PLACE), getattr(row, name)) for row in seen.calls]

    place = list(totals.PLACE)
    shed = [([*_labels(r, totals.PLACE), why], getattr(r, f"shed_{why}")) for r in seen.calls for why in (*SHED, LEFT)]
    blocked = [
        ([*_labels(r, totals.PLACE), why], getattr(r, f"blocked_{why}")) for r in seen.calls for why in totals.BLOCKED
    ]
    return [
        counter("calls", "Calls that hooks saw.", place, sums("calls")),
        counter("call_errors", "Calls that failed in the application.", place, sums("errors")),
        counter("calls_sampled", "Calls that hooks captured.", place, sums("sampled")),
        counter("records_shed", "Captured and dropped by hooks.", [*place, "reason"], shed),
        counter("input_tokens", "Tokens in.", place, sums("input_tokens")),
        counter("output_tokens", "Tokens out.", place, sums("output_tokens")),
        counter("cached_tokens", "Tokens in that the provider had cached.", place, sums("cached_tokens")),
        counter("calls_screened", "Answers screened for refusals.", place, sums("screened")),
        counter("calls_refused", "Answers that refuse, of those screened.", place, sums("refusals")),
        counter("calls_blocked", "Calls refused before they were made.", [*place, "reason"], blocked),
        counter("call_cost_usd", "What the calls cost, as hooks know it.", place, [
            (labels, nano / totals.NANO) for labels, nano in sums("nano_usd")
        ]),
        *_of_latency(seen),
    ]  # fmt: skip


def _of_latency(seen: Seen) -> list[Metric]:
    found: list[Metric] = []
    for name, text in LATENCIES.items():
        values = [
            ([*place, f"{q:g}"], ms / 1000.0)
            for place, sketches in seen.latencies.items()
            for q in QUANTILES
            if (ms := sketches[name].quantile(q)) is not None
        ]
        what = f"Quantiles of {text}, of the calls of the last 10 minutes; absent where there were none."
        found.append(gauge(f"{name}_seconds", what, [*totals.PLACE, "quantile"], values))
    return found


def _of_scores(seen: Seen) -> list[Metric]:
    labels = list(totals.CRITERION)
    by_status: list[tuple[list[str], float]] = []
    cost: list[tuple[list[str], float]] = []
    for row in seen.scores:
        values = _labels(row, totals.CRITERION)
        by_status += [([*values, s], getattr(row, f"n_{s}")) for s in ("scored", "skipped", "abstained", "error")]
        cost.append((values, row.nano_usd / totals.NANO))
    mean, low, high, n, began = _gauges_of_means(labels)
    for found in seen.means:
        r = found.rollup
        began.add_metric(found.labels, found.epoch_at.timestamp())
        interval = interval_of(r)
        if interval is not None:
            mean.add_metric(found.labels, interval.mean)
            low.add_metric(found.labels, interval.low)
            high.add_metric(found.labels, interval.high)
            n.add_metric(found.labels, r.n_scored)
    return [
        counter("scores", "Scores of records captured today, by status.", [*labels, "status"], by_status),
        counter("judge_cost_usd", "What the grades behind today's scores cost.", labels, cost),
        mean,
        low,
        high,
        n,
        began,
    ]


def _gauges_of_means(labels: list[str]) -> list[GaugeMetricFamily]:
    what = "of the scores of the last 10 minutes, newest epoch"
    return [
        gauge(
            "score_mean", f"Raw (as the judge says) weighted mean {what}; absent where nothing was scored.", labels, []
        ),
        gauge("score_mean_low", f"Lower end of the 95 % interval of the mean {what}.", labels, []),
        gauge("score_mean_high", f"Upper end of the 95 % interval of the mean {what}.", labels, []),
        gauge("score_mean_records", "Scored records behind the mean.", labels, []),
        gauge("score_epoch_start_seconds", "When the epoch of the mean began, in Unix time.", labels, []),
    ]


def _of_judges(seen: Seen) -> list[Metric]:
    """What judges were asked today, and whether they can be asked now."""
    calls: Counter[tuple[str, ...]] = Counter()
    latency_ms: Counter[tuple[str, ...]] = Counter()
    tokens: Counter[tuple[str, ...]] = Counter()
    nano_usd: Counter[tuple[str, ...]] = Counter()
    for row in seen.judge_calls:
        calls[row.judge, row.outcome] += row.n
        latency_ms[row.judge, row.outcome] += row.latency_ms
        nano_usd[row.judge, row.scorecard] += row.nano_usd
        for kind in TOKENS:
            tokens[row.judge, kind] += getattr(row, f"{kind}_tokens")
    # One that nothing was ever wrong with has no state of its own.
    judges = dict.fromkeys((row.judge for row in seen.judge_calls), JudgeState()) | dict(seen.judges)
    states = [([judge, name], state.state == name) for judge, state in judges.items() for name in get_args(State)]
    ended = ["judge", "outcome"]
    return [
        counter("judge_calls", "Calls of judges by what came of them.", ended, calls.items()),
        counter("judge_latency_seconds", "How long these calls took, added up.", ended, [
            (labels, ms / 1000.0) for labels, ms in latency_ms.items()
        ]),
        counter("judge_tokens", "Tokens of judges' calls; cached ones are part of the input.", ["judge", "kind"],
                 tokens.items()),
        counter("judge_call_cost_usd", "What judges' calls cost.", ["judge", "scorecard"], [
            (labels, nano / totals.NANO) for labels, nano in nano_usd.items()
        ]),
        gauge("judge_state", "1 for the state that a judge's breaker is in.", ["judge", "state"], states),
    ]  # fmt: skip


def _of_decisions(seen: Seen) -> list[Metric]:
    phases = [
        ([row.rollout_id, row.service, row.environment, phase], row.phase == phase)
        for row in seen.phases
        for phase in dict.fromkeys([*PHASES, row.phase])
    ]
    made = [([row.service, row.action], row.n) for row in seen.decisions]
    return [
        gauge("rollout_phase", "1 for the phase that a rollout is in.", ["rollout", "service", "environment", "phase"],
               phases),
        counter("decisions", "Decisions made, ever.", ["service", "action"], made),
    ]  # fmt: skip


def _labels(row: Any, names: Sequence[str]) -> list[str]:
    return [str(getattr(row, name)) for name in names]
