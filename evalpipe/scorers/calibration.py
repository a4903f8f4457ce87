"""How far a judge can be trusted on one criterion: what it and people say of the same records, in numbers and words.

Pure but for the language detector. Who could not tell, errors, and people who are split are counted apart: they are
neither right nor wrong. Records that somebody labelled because the judge was unsure of them are no random sample, and
in no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from evalpipe.rollup import Rollup
from evalpipe.scorers.compared import PAIR, Compared, Counts, compare, grades_said, value_of
from evalpipe.stats.agreement import UNKNOWN, Confusion, Estimate, cohen_kappa, krippendorff_alpha, share
from evalpipe.stats.bias import Bias, Position, by_name, by_position, by_size
from evalpipe.stats.correction import Corrected, Labelled, corrected, prediction_powered
from evalpipe.stats.mean_interval import MeanInterval, interval_of
from evalpipe.store.calibrations import Both, Calibration

LIKELY: Final = 0.01
"""A bias with a smaller p is told as one: several are looked for."""
GRID: Final = 20
"""Values between the grades are rounded to 1 / GRID for alpha."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is known of a judge's error on one criterion in one epoch.

    Attributes:
        source: where the labels are from: ``store``, or a file.
        kind: of the criterion: boolean, scale, category or pairwise; "" where the scorecard is not known any more.
        annotators: people who labelled.
        agreement: share of equal grades.
        kappa: Cohen's; ``weighted`` its quadratic form, for scales.
        alpha: Krippendorff's, of the judge and people.
        people_alpha: of people among themselves, over ``people_n`` records that several labelled.
        sensitivity, specificity: for pass and fail, weighted: the share of what people pass (fail) that the judge does.
        difference: mean of the judge's grade minus people's, weighted; above 0 it is too kind.
        cost_per_agreed_usd: what the judge's grades cost for each that people agree with; None where a cost is unknown.
        raw: the judge's mean over all records of the epoch; over those labelled where there are no others.
        corrected: what people would have said of them.
    """

    scorecard: str
    criterion: str
    epoch: str
    judge_version: str
    at: datetime
    source: str
    kind: str
    counts: Counts
    annotators: int
    agreement: Estimate
    kappa: Estimate
    weighted: Estimate
    alpha: Estimate
    people_alpha: Estimate
    people_n: int
    confusion: Confusion
    sensitivity: Estimate
    specificity: Estimate
    difference: float | None
    length: Bias
    language: Bias
    position: Position | None
    cost_per_agreed_usd: float | None
    labelled: Labelled
    raw: MeanInterval | None
    corrected: Corrected
    escalated: float | None = None
    disagreement: float | None = None

    @property
    def is_weighted(self) -> bool:
        """Some of the labelled records weigh more than others."""
        s = self.labelled
        return s.n * s.w2 > s.w**2 * (1.0 + 1e-9)

    @property
    def is_binary(self) -> bool:
        """Pass and fail on both sides."""
        return bool(self.labelled.binary and self.labelled.n)

    def to_json(self) -> dict[str, Any]:
        """For machines, and what is kept."""
        return {**asdict(self), "meaning": meaning(self)}

    def calibration(self) -> Calibration:
        """What the store keeps."""
        n = self.labelled.n
        return Calibration(
            self.scorecard, self.criterion, self.epoch, self.judge_version, self.at, n, self.to_json()
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class About:
    """What is calibrated.

    Attributes:
        kind: of the criterion; "" if unknown.
        grades: value by label; {} takes them from what was said.
        population: the scores that are to be corrected; None takes the labelled ones.
        sampled: the labelled records are a sample of those.
        orders: of pairs shown in both orders, the value when shown first and second.
    """

    scorecard: str
    criterion: str
    epoch: str
    judge_version: str
    source: str = "store"
    kind: str = ""
    grades: Mapping[str, float] = field(default_factory=dict)
    population: Rollup | None = None
    orders: Sequence[tuple[float, float]] = ()
    escalated: float | None = None
    disagreement: float | None = None


def assess(both: Sequence[Both], about: About, at: datetime) -> Report:
    """The report on what a judge and people said of the same records."""
    grades = dict(PAIR) if about.kind == "pairwise" else dict(about.grades) or grades_said(both)
    counts, found = compare(both, grades, about.kind)
    labels = sorted(grades, key=lambda label: (grades[label], label))
    confusion = Confusion.of(((c.said, c.graded) for c in found), labels)
    labelled = Labelled.of((c.people, c.judge, c.weight) for c in found)
    raw, fixed = _population(about, found, labelled)
    people = [list(b.people.values()) for b in both if b.chosen != "uncertain"]
    told = [[value_of(grades, *one) for one in said] for said in people]
    several = [values for values in told if sum(value is not None for value in values) > 1]
    costs = [c.cost_usd for c in found if c.cost_usd is not None]
    good, bad = labelled.sizes if labelled.binary else (0.0, 0.0)
    return Report(
        about.scorecard,
        about.criterion,
        about.epoch,
        about.judge_version,
        at,
        about.source,
        about.kind,
        counts,
        len({name for b in both for name in b.people}),
        share(confusion.agreed, confusion.n),
        cohen_kappa(confusion),
        _weighted(confusion, grades, about.kind),
        _alpha([(c.people, c.judge) for c in found], [(c.said, c.graded) for c in found], labels, about.kind),
        _alpha(several, [[word for word, _ in said] for said in people], labels, about.kind),
        len(several),
        confusion,
        share((labelled.sensitivity or 0.0) * good, good),
        share((labelled.specificity or 0.0) * bad, bad),
        (labelled.wj - labelled.wh) / labelled.w if labelled.w else None,
        _by_length(found),
        _by(found, [c.language for c in found]),
        by_position(about.orders),
        sum(costs) / confusion.agreed if confusion.agreed and len(costs) == len(found) else None,
        labelled,
        raw,
        fixed,
        about.escalated,
        about.disagreement,
    )


def meaning(report: Report) -> list[str]:
    """The report in sentences, the most important one first."""
    if not report.counts.compared:
        return ["No record was graded by both the judge and people: nothing can be said."]
    told = [*(_of_hundred(report) if report.is_binary else _of_means(report)), *_of_biases(report)]
    if report.kappa.low is not None and report.kappa.low <= 0.0:
        told.insert(0, "It may agree with people no more than chance would: do not go by its grades.")
    if report.people_n:
        alpha = report.people_alpha.value
        agree = "" if alpha is None else f" with alpha {alpha:.2f}"
        told.append(
            f"People among themselves agree{agree} on {report.people_n} records that several labelled: no judge can be "
            "measured finer than that."
        )
    return told


def _of_hundred(report: Report) -> list[str]:
    s = report.labelled
    passed, failed = s.wj**2 / s.w2j if s.w2j else 0.0, (s.w - s.wj) ** 2 / (s.w2 - s.w2j) if s.w2 > s.w2j else 0.0
    told = []
    if passed:
        told.append(f"Of 100 answers that it passes, {_about((s.wj - s.whj) / s.wj, passed)} are bad.")
    if failed:
        told.append(f"Of 100 that it fails, {_about((s.wh - s.whj) / (s.w - s.wj), failed)} are good.")
    if s.specificity is None:
        return [*told, "People fail none of them: whether it finds bad answers is unknown."]
    bad = 100 * (1.0 - s.wh / s.w)
    told.append(f"This holds where about {bad:.0f} of 100 answers are bad, as among those labelled.")
    return [*told, f"Of 100 bad answers it finds {_about(s.specificity, s.sizes[1])}, however many there are."]


def _about(rate: float, n: float) -> str:
    """A share of 100 with its interval; weights count as so many equal ones."""
    found = share(rate * n, n)
    if found.low is None or found.high is None:
        return f"about {100 * rate:.0f}"
    return f"about {100 * rate:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _of_means(report: Report) -> list[str]:
    difference = report.difference or 0.0
    kind = "as kind as people are" if abs(difference) < 0.005 else "too kind" if difference > 0 else "too strict"
    side = "above" if difference > 0 else "below"
    told = [f"Its grade is on average {abs(difference):.2f} {side} people's, on a scale from 0 to 1: it is {kind}."]
    if report.agreement.value is not None:
        told.append(f"Of 100 answers it gives about {100 * report.agreement.value:.0f} the grade that people give.")
    return told


def _of_biases(report: Report) -> list[str]:
    told = []
    length = report.length
    if length.p is not None and length.p < LIKELY and length.correlation is not None:
        how = "kinder" if length.correlation > 0 else "stricter"
        told.append(f"It is {how} than people to long outputs (rank correlation {length.correlation:+.2f}).")
    if report.language.p is not None and report.language.p < LIKELY:
        told.append("It errs otherwise in one language than in another.")
    position = report.position
    if position is not None and position.p is not None and position.p < LIKELY and position.first.value is not None:
        told.append(f"It prefers the answer shown {'first' if position.first.value > 0.5 else 'second'}.")
    return told


def _population(about: About, found: Sequence[Compared], labelled: Labelled) -> tuple[MeanInterval | None, Corrected]:
    rollup = about.population
    if rollup is None or rollup.n_scored < len(found):
        return None, Corrected(reason="no other records were graded")
    raw, fixed = interval_of(rollup), corrected(rollup, labelled)
    if raw is not None and fixed.method == "ppi":
        fixed = prediction_powered(raw, labelled, whole=rollup.sum_w, tune=True)
    return raw, fixed


def _weighted(confusion: Confusion, grades: Mapping[str, float], kind: str) -> Estimate:
    at = [grades[label] for label in confusion.labels]
    if kind != "scale" or len(set(at)) < 3:
        return UNKNOWN
    return cohen_kappa(confusion, "quadratic", values=at)


def _alpha(
    values: Sequence[Sequence[float | None]], words: Iterable[Sequence[str]], labels: Sequence[str], kind: str
) -> Estimate:
    if kind == "scale":
        return krippendorff_alpha([[None if v is None else round(v * GRID) / GRID for v in unit] for unit in values],
                                  "ordinal")  # fmt: skip
    place = {label: float(index) for index, label in enumerate(labels)}
    return krippendorff_alpha([[place.get(word) for word in unit] for unit in words])


def _by_length(found: Sequence[Compared]) -> Bias:
    known = [c for c in found if c.length is not None]
    return by_size(
        [float(c.length or 0) for c in known],
        [c.judge for c in known],
        [c.people for c in known],
        [c.wrong for c in known],
    )


def _by(found: Sequence[Compared], names: Sequence[str]) -> Bias:
    known = [(c, name) for c, name in zip(found, names, strict=True) if name]
    return by_name(
        [name for _, name in known],
        [c.judge for c, _ in known],
        [c.people for c, _ in known],
        [c.wrong for c, _ in known],
    )
