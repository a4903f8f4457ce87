"""A calibration report for the terminal: one screen for each criterion, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from evalpipe.scorers.calibration import Report, meaning
from evalpipe.scorers.compared import Counts
from evalpipe.stats.agreement import Estimate
from evalpipe.stats.bias import Bias, Group
from evalpipe.stats.mean_interval import MeanInterval

METHODS = {"rogan-gladen": "Rogan-Gladen", "ppi": "prediction-powered"}
"""Names of the corrections for people."""
WIDTH = 80
WEIGHTS = (
    "Sentences, sensitivity, specificity, difference and means weigh each record by 1 / its chance of being captured; "
    "agreement, kappa, alpha, the matrix and the biases count records."
)
"""Why a share need not be that of the counts, where records weigh differently."""
_CORNER = "people \\ judge"


def text(report: Report) -> str:
    """The report."""
    return "\n".join(_lines(report))


def counts_in_words(counts: Counts) -> str:
    """What became of the labelled records."""
    left = {
        "the judge could not tell": counts.abstained,
        "the judge failed": counts.error,
        "not graded": counts.skipped,
        "people are split or cannot tell": counts.undecided,
        "labelled because the judge was unsure": counts.chosen,
        "captured for feedback": counts.weightless,
        "given from outside, and taken as a random sample": counts.given,
    }
    told = "; ".join(f"{n} {why}" for why, n in left.items() if n)
    return f"{counts.labelled} labelled, {counts.compared} compared" + (f" ({told})" if told else "")


def raw_and_corrected(report: Report) -> list[tuple[str, str]]:
    """The means of the epoch, each with what it is."""
    if report.raw is None:
        return [("corrected", f"none: {report.corrected.reason}")]
    fixed = report.corrected
    after = f"none: {fixed.reason}"
    if fixed.mean is not None and fixed.method is not None:
        after = f"{fixed.mean:.3f} [{fixed.low:.3f} to {fixed.high:.3f}]   {METHODS[fixed.method]}"
    return [("raw mean", f"{interval(report.raw)}   as the judge says"), ("corrected", after)]


def numbers(report: Report) -> list[tuple[str, str, str]]:
    """Name, value with interval, and what it says."""
    binary = report.is_binary
    found = [
        ("agreement", percent(report.agreement), "of grades are the same"),
        ("kappa", plain(report.kappa), "Cohen: beyond chance; 1 is perfect"),
        ("weighted kappa", plain(report.weighted), "quadratic: near misses count in part"),
        ("alpha", plain(report.alpha), "Krippendorff: judge and people"),
        ("people's alpha", plain(report.people_alpha), f"people alone, {report.people_n} records"),
        ("sensitivity", percent(report.sensitivity) if binary else "", "of what people pass, it passes"),
        ("specificity", percent(report.specificity) if binary else "", "of what people fail, it fails"),
        ("difference", *_difference(report)),
    ]
    if report.cost_per_agreed_usd is not None:
        found.append(("cost", f"${report.cost_per_agreed_usd:.6f}", "for each agreed grade"))
    if report.escalated:
        found.append(("escalated", f"{100 * report.escalated:.1f} %", "went to the stronger judge"))
    if report.disagreement is not None:
        found.append(("disagreement", f"{report.disagreement:.3f}", "mean distance of two votes"))
    return [row for row in found if row[1]]


def _difference(report: Report) -> tuple[str, str]:
    s = report.labelled
    if report.difference is None:
        return "", ""
    return f"{report.difference:+.3f}", f"judge {s.wj / s.w:.3f} minus people {s.wh / s.w:.3f}"


def plain(estimate: Estimate) -> str:
    """A number with its interval; "" if there is none."""
    if estimate.value is None:
        return ""
    ends = "" if estimate.low is None else f" [{estimate.low:.2f} to {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{ends}"


def percent(estimate: Estimate) -> str:
    """A share with its interval; "" if there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.0f} to {100 * estimate.high:.0f}]"


def interval(found: MeanInterval) -> str:
    """A mean with its interval."""
    return f"{found.mean:.3f} [{found.low:.3f} to {found.high:.3f}]"


def bias_in_words(bias: Bias) -> str:
    """The test of a bias."""
    parts = [] if bias.correlation is None else [f"rank correlation with the judge's grade {bias.correlation:+.2f}"]
    if bias.p is not None:
        parts.append(f"{p_value(bias.p)} if it erred alike on all")
    return ", ".join(parts)


def p_value(p: float) -> str:
    """A p-value, of which no more is told than permutations can tell."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def position_in_words(report: Report) -> str:
    """How the order of a pair matters; "" for other kinds."""
    position = report.position
    if position is None:
        return ""
    told = f"{position.n} pairs in both orders: {percent(position.flipped)} come out otherwise when swapped"
    if position.p is not None and position.first.value is not None:
        told += f"; of those the first shown wins {percent(position.first)}, {p_value(position.p)}"
    return told


def _lines(report: Report) -> Iterator[str]:
    yield f"{report.scorecard} / {report.criterion}   epoch {report.epoch}"
    yield f"judge {report.judge_version}"
    people = "1 person" if report.annotators == 1 else f"{report.annotators} people"
    yield from _folded(f"{counts_in_words(report.counts)}; labels of {people}")
    yield ""
    for sentence in meaning(report):
        yield from _folded(sentence)
    yield ""
    for name, value, says in numbers(report):
        yield f"  {name:<15} {value:<24} {says}"
    for name, value in raw_and_corrected(report):
        yield from _folded(f"{name:<15} {value}", "  ", " " * 18)
    if report.is_weighted:
        yield from _folded(WEIGHTS, "  ", "  ")
    if report.counts.compared:
        yield ""
        yield from _matrix(report)
        yield from _bias("output length (characters)", report.length)
        yield from _bias("language", report.language)
        if told := position_in_words(report):
            yield from _folded(f"position: {told}")


def _matrix(report: Report) -> Iterator[str]:
    labels, rows = report.confusion.labels, report.confusion.counts
    width = max(6, *(min(len(label), 12) for label in labels)) + 2
    yield f"  {_CORNER:<16}" + "".join(f"{label[:12]:>{width}}" for label in labels)
    for label, row in zip(labels, rows, strict=True):
        yield f"  {label[:16]:<16}" + "".join(f"{n:>{width}}" for n in row)


def _bias(what: str, bias: Bias) -> Iterator[str]:
    if not bias.groups:
        return
    yield ""
    yield f"  {what:<28} {'n':>6}  {'differs from people':<24} {'judge - people':>14}"
    for group in bias.groups:
        yield f"  {_name(group):<28} {group.n:>6}  {percent(group.wrong):<24} {group.difference:>+14.3f}"
    if told := bias_in_words(bias):
        yield from _folded(told, "  ", "  ")


def _name(group: Group) -> str:
    return group.name[:28]


def _folded(line: str, first: str = "", rest: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(line, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False)
