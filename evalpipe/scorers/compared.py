"""Labelled records beside the judge's scores of them: which can be compared, and what people say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from evalpipe.record import Record
from evalpipe.scorers.language import detect
from evalpipe.stats.agreement import majority
from evalpipe.store.calibrations import Both

PAIR: Final = {"worse": 0.0, "tie": 0.5, "better": 1.0}
"""The grades of kind ``pairwise``, whoever was shown first."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One record with a grade of the judge and one of people."""

    people: float
    judge: float
    said: str
    graded: str
    weight: float
    cost_usd: float | None
    length: int | None
    language: str

    @property
    def wrong(self) -> bool:
        """The judge gave another grade than people."""
        return self.said != self.graded


@dataclass(slots=True)
class Counts:
    """What became of the labelled records; only ``compared`` are in the numbers.

    Attributes:
        labelled: all of them.
        abstained, error, skipped: the judge has no grade.
        undecided: people are split, or could not tell.
        chosen: labelled because the judge was unsure.
        weightless: captured for a reason that has to do with quality, such as feedback.
        given: of those compared, labels that came in without a word of how the records were chosen: taken as random.
    """

    labelled: int = 0
    compared: int = 0
    abstained: int = 0
    error: int = 0
    skipped: int = 0
    undecided: int = 0
    chosen: int = 0
    weightless: int = 0
    given: int = 0


def compare(both: Sequence[Both], grades: Mapping[str, float], kind: str) -> tuple[Counts, list[Compared]]:
    """The records with a grade of both, and what became of the others."""
    counts, found = Counts(labelled=len(both)), []
    for b in both:
        said = _people(b, grades, kind)
        if b.chosen == "uncertain":
            counts.chosen += 1
        elif b.status != "scored" or b.value is None:
            name = b.status if b.status in {"abstained", "skipped"} else "error"
            setattr(counts, name, getattr(counts, name) + 1)
        elif said is None:
            counts.undecided += 1
        elif b.weight <= 0.0:
            counts.weightless += 1
        else:
            label, value = said
            counts.given += b.chosen == "given"
            length = None if b.record is None else len(b.record.output)
            graded = b.label if b.label in grades else _nearest(grades, b.value)
            language = "" if b.record is None else _language(b.record)
            found.append(Compared(value, b.value, label, graded, b.weight, b.cost_usd, length, language))
    counts.compared = len(found)
    return counts, found


def _people(both: Both, grades: Mapping[str, float], kind: str) -> tuple[str, float] | None:
    """What people say together: on a scale their mean, else what most of them say; None where they are split."""
    values = [v for v in (value_of(grades, *said) for said in both.people.values()) if v is not None]
    if not values:
        return None
    if kind == "scale":
        mean = sum(values) / len(values)
        return _nearest(grades, mean), mean
    label = majority(_word(grades, *said) for said in both.people.values() if value_of(grades, *said) is not None)
    return None if label is None else (str(label), grades[str(label)])


def _word(grades: Mapping[str, float], label: str, value: float | None) -> str:
    return label if label in grades or value is None else _nearest(grades, value)


def value_of(grades: Mapping[str, float], label: str, value: float | None) -> float | None:
    """What somebody's label is worth; None where they could not tell."""
    return None if value is None else grades.get(label, value)


def _nearest(grades: Mapping[str, float], value: float) -> str:
    return min(grades, key=lambda label: (abs(grades[label] - value), grades[label], label))


def grades_said(both: Sequence[Both]) -> dict[str, float]:
    """Value by label, from what was said."""
    people = {label: value for b in both for label, value in b.people.values() if value is not None}
    judge = {b.label: b.value for b in both if b.value is not None and b.label not in people}
    return people | judge or {"fail": 0.0, "pass": 1.0}


def _language(record: Record) -> str:
    """As the application says it in the attribute ``language``, else as detected; "unclear" where it cannot be told."""
    said = record.attributes.get("language")
    if isinstance(said, str) and said:
        return said
    if sum(map(str.isalpha, record.output)) < 20:
        return "unclear"
    code, confidence = detect(record.output)
    return code if confidence >= 0.5 else "unclear"
