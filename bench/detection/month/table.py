"""The table of the month: by kind of incident, and by seed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from detection.month.play import FALSE_ALARM_EVERY, Page, play
from detection.month.world import DAYS, START, Incident


@dataclass
class Seed:
    """One month, as it is told.

    Attributes:
        incidents: those that began: kind, expected severity, pages as minutes after it began and severity.
        unprovoked: pages without an incident.
        errors: rules that could not be evaluated, with how often.
        cpu_s: what it took.
    """

    seed: int
    incidents: list[dict[str, Any]]
    unprovoked: list[dict[str, Any]]
    errors: dict[str, int]
    cpu_s: float

    @property
    def right(self) -> int:
        """Incidents that were paged once, at the right severity."""
        return sum(right(one) for one in self.incidents)


@dataclass
class Kind:
    """All incidents of a kind."""

    name: str
    severity: str
    n: int = 0
    paged: int = 0
    once: int = 0
    right: int = 0
    minutes: list[float] = field(default_factory=list)


def right(told: dict[str, Any]) -> bool:
    """Whether it was paged once, at the right severity."""
    return len(told["pages"]) == 1 and told["pages"][0]["severity"] == told["severity"]


def one_month(seed: int, days: float = DAYS, false_alarm_every: str = FALSE_ALARM_EVERY) -> Seed:
    """Play it."""
    began = time.process_time()
    month = play(seed, days, false_alarm_every)
    return Seed(
        seed,
        [_told(incident, pages) for incident, pages in month.matched() if incident.end <= START + timedelta(days=days)],
        [_page(page, 0.0) for page in month.unprovoked],
        dict(month.errors),
        time.process_time() - began,
    )


def months(seeds: Sequence[int], jobs: int, days: float, false_alarm_every: str) -> Iterator[Seed]:
    """In order; so many at once."""
    if jobs == 1:
        yield from (one_month(seed, days, false_alarm_every) for seed in seeds)
        return
    n = len(seeds)
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(one_month, seeds, [days] * n, [false_alarm_every] * n)


def by_kind(played: Sequence[Seed]) -> list[Kind]:
    """The rows, in order of their names."""
    found: dict[str, Kind] = {}
    for told in (one for seed in played for one in seed.incidents):
        kind = found.setdefault(told["name"], Kind(told["name"], told["severity"]))
        kind.n += 1
        kind.paged += bool(told["pages"])
        kind.once += len(told["pages"]) == 1
        kind.right += right(told)
        kind.minutes += [told["pages"][0]["minutes"]] if told["pages"] else []
    return [found[name] for name in sorted(found)]


def show(played: Sequence[Seed]) -> None:
    """For people."""
    print(
        f"\n{'incident':<46}{'must be':<9}{'n':>4}{'paged':>7}{'once':>6}{'right':>7}{'median':>9}{'p90':>7}  minutes"
    )
    for kind in by_kind(played):
        middle = f"{statistics.median(kind.minutes):>9.0f}{_p90(kind.minutes):>7.0f}" if kind.minutes else ""
        print(f"{kind.name:<46}{kind.severity:<9}{kind.n:>4}{kind.paged:>7}{kind.once:>6}{kind.right:>7}{middle}")
    print(f"\n{'seed':<6}{'incidents':>10}{'right':>7}{'pages without one':>19}{'CPU s':>8}")
    for seed in played:
        print(f"{seed.seed:<6}{len(seed.incidents):>10}{seed.right:>7}{len(seed.unprovoked):>19}{seed.cpu_s:>8.0f}")
        for told in (one for one in seed.incidents if not right(one)):
            pages = "; ".join(_words(page) for page in told["pages"]) or "nobody was paged"
            print(f"    {told['start']} {told['name']} ({told['severity']}): {pages}")
        for page in seed.unprovoked:
            print(f"    {page['at']} without an incident: {_words(page)}")
        for error, n in seed.errors.items():
            print(f"    {n} x {error}")
    n, good = sum(len(seed.incidents) for seed in played), sum(seed.right for seed in played)
    print(f"\n{good} of {n} incidents paged once at the right severity, "
          f"{sum(len(seed.unprovoked) for seed in played)} pages without one")  # fmt: skip


def met(played: Sequence[Seed]) -> bool:
    """Every incident paged once at the right severity, and no page without one."""
    return all(seed.right == len(seed.incidents) and not seed.unprovoked for seed in played)


def plain(played: Sequence[Seed]) -> dict[str, Any]:
    """For machines."""
    return {"met": met(played), "seeds": [asdict(seed) for seed in played]}


def _told(incident: Incident, pages: Sequence[Page]) -> dict[str, Any]:
    minutes = [(page.at - incident.start).total_seconds() / 60 for page in pages]
    return {
        "name": incident.name,
        "severity": incident.severity,
        "start": f"{incident.start:%d %H:%M}",
        "pages": [_page(page, after) for page, after in zip(pages, minutes, strict=True)],
    }


def _page(page: Page, minutes: float) -> dict[str, Any]:
    rules = [alert.split("/", 4)[-1] for alert in page.alerts]
    return {"at": f"{page.at:%d %H:%M}", "until": f"{page.end:%d %H:%M}" if page.end else "", "minutes": minutes,
            "severity": page.severity, "rules": rules, "reasons": page.reasons}  # fmt: skip


def _words(page: dict[str, Any]) -> str:
    return f"{page['severity']} {page['at']} to {page['until'] or 'the end'} by {', '.join(page['rules'])}"


def _p90(values: Sequence[float]) -> float:
    return sorted(values)[max(0, round(0.9 * len(values)) - 1)]


__all__ = ("Seed", "by_kind", "met", "months", "one_month", "plain", "show")
