"""``evalpipe backtest --alerts``: what alert rules would have done on stored history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console

from evalpipe.alerts.backtest import NOT_KEPT, Backtest, Player
from evalpipe.alerts.history_feed import HistoryFeed
from evalpipe.alerts.rules import Rule
from evalpipe.cli.alert_files import AlertRules, alert_rules
from evalpipe.cli.tables import as_json, cell, finite, show
from evalpipe.cli.trouble import opened
from evalpipe.detectors.view import Scope
from evalpipe.errors import ConfigError
from evalpipe.scorecard.values import format_duration, parse_duration
from evalpipe.store import history
from evalpipe.store.history import Kept, PastNormals
from evalpipe.wiring import now

WARM: Final = timedelta(days=2)
"""Read beyond what rules compare with: the meter's yesterday."""
LONGEST: Final = timedelta(days=400)
PAGES: Final = frozenset({"SEV1", "SEV2"})


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asked for; times as written, "" for the default."""

    files: Sequence[Path]
    since: str = "30d"
    until: str = ""
    baselines_of_now: bool = False
    plot: Path | None = None
    machine: bool = False


def backtest_alerts(wish: Wish) -> None:
    """Play the rules over what is stored, and say what they would have done."""
    with closing(opened()) as wiring, wiring.store.read() as tx, _progress(quiet=wish.machine) as progress:
        at = now()
        until = min(_time(wish.until, at), at) if wish.until else at
        since = _time(wish.since, until)
        if not timedelta(minutes=1) <= until - since <= LONGEST:
            raise ConfigError(f"--since {wish.since}: from 1m to {LONGEST.days}d before --until can be played")
        since, until = (moment.replace(second=0, microsecond=0) for moment in (since, until))
        rules = alert_rules(wish.files, wiring.scorecards, list(wiring.channels) or None)
        played = [rule for rule in rules.rules if NOT_KEPT not in rule.scope.inputs]
        if not rules.rules:
            raise ConfigError(f"no alert rule in {', '.join(map(str, wish.files))}")
        scopes = [rule.scope for rule in played]
        begin = since - max([_back(scope) for scope in scopes], default=WARM)
        found, kept = history.read(tx, scopes, begin, until, sketches=_reads_sketches(played), tell=progress.say)
        normals = PastNormals(tx, found, of_now=wish.baselines_of_now, now=at)
        player = Player(played, rules.routing, HistoryFeed(found, normals))
        minutes = (until - since) // timedelta(minutes=1)
        for _ in progress.over(player.play(since, until), minutes):
            pass
    notes = list(_notes(rules, player.found, kept, since, wish))
    if wish.plot is not None:
        _plot(player.found, rules, since, until, wish.plot)
    if wish.machine:
        typer.echo(as_json(finite(_object(rules, player.found, since, until, notes))))
        return
    _tell(rules, player.found, since, until)
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _back(scope: Scope) -> timedelta:
    return WARM + scope.normal.span


def _reads_sketches(rules: Sequence[Rule]) -> bool:
    return any(rule.kind == "latency" or rule.watched.endswith("_p99_ms") for rule in rules)


def _time(text: str, at: datetime) -> datetime:
    """So long before ``at``, or a time of its own."""
    try:
        return at - parse_duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is neither a duration nor a time; write 30d, or 2026-01-31T12:00:00Z") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _counts(rules: AlertRules, found: Backtest, until: datetime) -> Iterator[dict[str, Any]]:
    """A row for each rule."""
    for rule in rules.rules:
        name = f"{rule.scorecard}/{rule.name}"
        mine = [episode for episode in found.episodes if episode.rule == name]
        severities = Counter(episode.severity for episode in mine)
        yield {
            "rule": rule.name,
            "scorecard": rule.scorecard,
            "dry_run": rule.dry_run,
            "times": len(mine),
            "paged": 0 if rule.dry_run else sum(episode.severity in PAGES for episode in mine),
            "severities": ", ".join(f"{n} x {severity}" for severity, n in sorted(severities.items())),
            "minutes": round(sum(episode.minutes(until) for episode in mine)),
            "longest": round(max((episode.minutes(until) for episode in mine), default=0)),
            "could_not_tell": found.untold.get(name, ""),
        }


def _object(rules: AlertRules, found: Backtest, since: datetime, until: datetime, notes: list[str]) -> dict[str, Any]:
    told = Counter(notice.cause for notice in found.notices)
    return {
        "since": since.isoformat(),
        "until": until.isoformat(),
        "rules": list(_counts(rules, found, until)),
        "alerts": [episode.to_json(until) for episode in found.episodes],
        "notices": {
            "by_cause": dict(told),
            "first_by_severity": dict(Counter(str(n.group.worst) for n in found.notices if n.cause == "first")),
        },
        "errors": found.errors,
        "notes": notes,
    }


def _tell(rules: AlertRules, found: Backtest, since: datetime, until: datetime) -> None:
    days = format_duration(until - since)
    for row in _counts(rules, found, until):
        dry_run = " (dry run: nobody would have been told)" if row["dry_run"] else ""
        times = "once" if row["times"] == 1 else f"{row['times']} times"
        what = f"would have fired {times} in {days}: {row['severities']}, {row['minutes']:,} min" if row["times"] else (
            f"would not have fired in {days}")  # fmt: skip
        typer.echo(f"{row['rule']} {what}{dry_run}")
    if found.episodes:
        rows = [episode.to_json(until) | {"fired_at": episode.fired_at, "resolved_at": episode.resolved_at}
                for episode in found.episodes]  # fmt: skip
        for row in rows:
            row["rule"] = row["rule"].rpartition("/")[2]
            row["where"] = "/".join(row[name] for name in ("service", "environment", "variant", "feature") if row[name])
        columns = ["fired_at", "resolved_at", "minutes", "severity", "rule", "where", "reason"]
        show(rows, columns, less=["resolved_at", "where"])
    told = Counter(notice.cause for notice in found.notices)
    if told:
        words = ", ".join(f"{n:,} {cause}" for cause, n in told.most_common())
        typer.echo(f"People would have had {sum(told.values()):,} notices if nobody had acknowledged any: {words}.")


def _notes(rules: AlertRules, found: Backtest, kept: Kept, since: datetime, wish: Wish) -> Iterator[str]:
    """What history does not have."""
    inputs = {name for rule in rules.rules for name in rule.scope.inputs}
    for rule in rules.rules:
        if NOT_KEPT in rule.scope.inputs:
            yield f"{rule.name} was not played: the ledger's health is not kept"
    yield from _missing("scores", kept.scores, kept.scores_by_minute, since, inputs & {"growth", "scores"})
    yield from _missing("calls", kept.calls, kept.calls_by_minute, since, inputs & {"calls"})
    if "users" in inputs and (kept.users is None or kept.users > since):
        yield f"what single users spent is kept for two days: known {_from(kept.users)}"
    if "profiles" in inputs and (kept.profiles is None or kept.profiles > since):
        yield f"profiles of records are known {_from(kept.profiles)}"
    if "growth" in inputs:
        yield "scores count in the minute of their capture, though judges may have been later"
    for name, reason in found.untold.items():
        yield f"{name.rpartition('/')[2]} could never tell: {reason}"
    if any(rule.scope.normal.kind == "baseline" for rule in rules.rules) and not wish.baselines_of_now:
        yield "baselines are those of then; --baselines-of-now compares all of it with those of now"
    for said, n in found.errors.items():
        yield f"{said} ({n:,} times)"


def _missing(what: str, first: datetime | None, fine: datetime | None, since: datetime, wanted: Any) -> Iterator[str]:
    if not wanted:
        return
    if first is None or first > since + timedelta(hours=1):
        yield f"{what} are known {_from(first)}"
    if first is not None and (fine is None or fine > max(since, first) + timedelta(hours=1)):
        yield f"{what} are kept by the hour before {cell(fine) or 'now'}: what lasted less is hardly seen there"


def _from(at: datetime | None) -> str:
    return f"from {cell(at)} UTC on" if at is not None else "of no time at all"


def _plot(found: Backtest, rules: AlertRules, since: datetime, until: datetime, file: Path) -> None:
    """When each rule would have fired, as a picture."""
    from matplotlib.figure import Figure

    names = [rule.name for rule in rules.rules][::-1]
    figure = Figure(figsize=(11, 1.2 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    colours = {"SEV1": "#b2182b", "SEV2": "#ef6548", "SEV3": "#f4a742", "SEV4": "#8da0cb"}
    for episode in found.episodes:
        row = names.index(episode.rule.rpartition("/")[2])
        length = max(episode.minutes(until) / 1440, (until - since) / timedelta(days=1) / 400)
        axes.barh(row, timedelta(days=length), left=episode.fired_at, color=colours.get(episode.severity, "#888888"))  # type: ignore[arg-type]  # matplotlib takes times
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(since, until)  # type: ignore[arg-type]  # as above
    axes.set_title(f"When alerts would have fired, {since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} UTC")
    axes.grid(axis="x", alpha=0.3)
    handles = [axes.barh(-5, 0, color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, loc="upper left", ncols=4, fontsize="small")
    figure.savefig(file)


class _Progress:
    """Says how far it is; silent where nobody looks."""

    def __init__(self, show_it: Any | None) -> None:
        self._shown = show_it

    def say(self, what: str) -> None:
        """What is being read."""
        if self._shown is not None:
            self._shown.console.print(what, style="dim", end="\r")

    def over(self, steps: Iterator[datetime], total: int) -> Iterator[datetime]:
        """The steps, counted."""
        if self._shown is None:
            yield from steps
            return
        task = self._shown.add_task("playing", total=total)
        for number, step in enumerate(steps):
            yield step
            if number % 200 == 0:
                self._shown.update(task, completed=number, description=f"playing {step:%Y-%m-%d}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[_Progress]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _Progress(None)
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as shown:
        yield _Progress(shown)
