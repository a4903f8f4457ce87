"""Scorecards from files: every problem in every file, each with its place, its value and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel, ValidationError

from evalpipe.errors import ConfigError, ScorecardError
from evalpipe.record import Record
from evalpipe.score import Score
from evalpipe.scorecard.alert_checks import card_detector_problems
from evalpipe.scorecard.checks import CROSS_CHECK, Found, Loc, Names
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.default_gates import policy_of
from evalpipe.scorecard.document import Document, Problem, parse
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.scorecard.rollout_checks import card_problems, notices
from evalpipe.scorecard.values import JUDGE
from evalpipe.scorecard.wording import worded

SUFFIXES: Final = frozenset({".yaml", ".yml"})


class Scorer(Protocol):
    """A heuristic with its parameters, ready to score."""

    def score(self, record: Record) -> Score:
        """The score of ``record``."""
        ...


Usable = Callable[[str], object]
"""Raises ``ConfigError`` if no such ``provider:model`` can be asked."""


@dataclass(slots=True)
class Reading:
    """What was found in some files.

    Attributes:
        scorecards: those without a problem.
        problems: of the others.
        notices: of the good ones: what is no mistake and should be known.
    """

    scorecards: list[Scorecard] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)


def load_scorecards(
    path: Path | str, heuristics: Names, judges: Names | None = None, detectors: Names | None = None
) -> list[Scorecard]:
    """The scorecards in a file, or in a folder's ``*.yaml`` and ``*.yml``, sorted by file name.

    Args:
        path: a file or a folder; an empty folder has no scorecards.
        heuristics: the registry of heuristics, whose parameters are checked too.
        judges: the registry of judge providers; without it their names are not checked.
        detectors: the registry of alert rules' detectors; without it they and their parameters are not checked.

    Raises:
        ScorecardError: one line for each problem in any of the files.
        ConfigError: there is no such file or folder.
    """
    reading = read_scorecards([Path(path)], heuristics, judges, detectors=detectors)
    if reading.problems:
        raise ScorecardError("\n".join(str(problem) for problem in reading.problems))
    return reading.scorecards


def load_scorecard(
    path: Path | str, heuristics: Names, judges: Names | None = None, detectors: Names | None = None
) -> Scorecard:
    """The scorecard in one file.

    Raises:
        ScorecardError: one line for each problem in the file.
        ConfigError: there is no such file.
    """
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder; name one scorecard file in it")
    return load_scorecards(path, heuristics, judges, detectors)[0]


def read_scorecards(
    paths: Iterable[Path],
    heuristics: Names,
    judges: Names | None = None,
    usable: Usable | None = None,
    detectors: Names | None = None,
) -> Reading:
    """What can be read in ``paths``, good and bad, for callers that go on with the good ones.

    Args:
        paths: files and folders.
        heuristics: as for ``load_scorecards``.
        judges: as for ``load_scorecards``.
        usable: also asked about each ``provider:model`` that they name.
        detectors: as for ``load_scorecards``.

    Raises:
        ConfigError: there is no such file or folder.
    """
    reading, first = Reading(), dict[str, str]()
    for file in dict.fromkeys(file for path in paths for file in scorecard_files(path)):
        document = _read(file)
        scorecard, problems = check(document, heuristics, judges, usable, detectors)
        name = document.value.get("name") if isinstance(document.value, Mapping) else None
        if isinstance(name, str) and first.setdefault(name, document.file) != document.file:
            message = f"{first[name]} has a scorecard named {name!r} too; rename one of them"
            problems.append(document.problem(("name",), message))
            scorecard = None
        reading.problems += problems
        if scorecard is not None:
            scorecard._path = file  # noqa: SLF001 - the loader is where a path comes from
            reading.scorecards.append(scorecard)
            if scorecard.rollout is not None:
                reading.notices += told(document, policy_of(scorecard), ("rollout",))
    return reading


def scorecard_files(path: Path, what: str = "scorecard", variable: str = "EVALPIPE_SCORECARDS") -> list[Path]:
    """The file itself, or the scorecard files of a folder by name.

    Args:
        path: of the file or folder.
        what: is in such files; for the message.
        variable: of the environment that names them; for the message.

    Raises:
        ConfigError: there is neither.
    """
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file() and not p.name.startswith("."))
    if not path.is_file():
        raise ConfigError(f"there is no {what} file or folder {str(path)!r}; name it, or set {variable}")
    return [path]


def check(
    document: Document,
    heuristics: Names,
    judges: Names | None = None,
    usable: Usable | None = None,
    detectors: Names | None = None,
) -> tuple[Scorecard | None, list[Problem]]:
    """The scorecard of a document, or None with its problems, in the order of their places."""
    scorecard, found = None, list[Found]()
    if document.value is not None or not document.problems:
        try:
            scorecard = Scorecard.model_validate(document.value)
        except ValidationError as error:
            found += worded(error, Scorecard, ignore={CROSS_CHECK})
        found += card_problems(document.value)
        found += _scorer_problems(document.value, heuristics, judges, usable)
        if detectors is not None:
            found += card_detector_problems(document.value, detectors)
    problems = document.placed(found)
    return (None if problems else scorecard), problems


def told(document: Document, policy: RolloutPolicy, loc: Loc) -> list[Problem]:
    """What is no mistake in a policy and should be known before the start, with its place in the file."""
    plain = policy.model_dump(mode="json", exclude_defaults=True)
    return [document.problem(found.loc, found.message) for found in notices(plain, loc)]


def scorer_of(criterion: Criterion, heuristics: Names) -> Scorer:
    """The heuristic of a criterion, built with its parameters.

    Raises:
        ConfigError: there is no such heuristic, or its parameters cannot work.
        pydantic.ValidationError: a parameter is missing, unknown or of the wrong type.
    """
    if criterion.heuristic is None:
        raise ConfigError(f"criterion {criterion.name!r} is graded by a judge, not scored by a heuristic")
    return _build(heuristics.get(criterion.heuristic), criterion.params)


def _build(heuristic: Any, params: Mapping[str, Any]) -> Scorer:
    model: type[BaseModel] = heuristic.Params
    scorer: Scorer = heuristic(model.model_validate(dict(params)))
    return scorer


def _read(file: Path) -> Document:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    return parse(str(file), raw)


def _scorer_problems(data: Any, heuristics: Names, judges: Names | None, usable: Usable | None) -> Iterator[Found]:
    criteria = data.get("criteria") if isinstance(data, Mapping) else None
    for place, criterion in enumerate(criteria) if isinstance(criteria, list) else ():
        if not isinstance(criterion, Mapping):
            continue
        loc: Loc = ("criteria", place)
        name, judge = criterion.get("heuristic"), criterion.get("judge")
        if isinstance(name, str):
            yield from _heuristic_problems(name, criterion.get("params") or {}, loc, heuristics)
        for where, model in _models(judge) if isinstance(judge, Mapping) else ():
            if problem := _judge_problem(model, judges, usable):
                yield Found((*loc, "judge", *where), problem)


def _models(judge: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Each ``provider:model`` that a criterion names, with its place."""
    escalate = judge.get("escalate")
    named: list[tuple[Loc, Any]] = [(("model",), judge.get("model"))]
    for field_ in ("panel", "fallback"):
        listed = judge.get(field_)
        named += [((field_, place), one) for place, one in enumerate(listed if isinstance(listed, list) else ())]
    named.append((("escalate", "to"), escalate.get("to") if isinstance(escalate, Mapping) else None))
    for where, model in named:
        if isinstance(model, str) and ":" in model and re.search(JUDGE, model):
            yield where, model


def _judge_problem(model: str, judges: Names | None, usable: Usable | None) -> str:
    try:
        if judges is not None:
            judges.get(model.partition(":")[0])
    except ConfigError as error:
        return f"{error} (in {model!r})"
    try:
        if usable is not None:
            usable(model)
    except ConfigError as error:
        return str(error)
    return ""


def _heuristic_problems(name: str, params: Any, loc: Loc, heuristics: Names) -> Iterator[Found]:
    try:
        heuristic = heuristics.get(name)
    except ConfigError as error:
        yield Found((*loc, "heuristic"), str(error))
        return
    if not isinstance(params, Mapping):
        return
    at = (*loc, "params")
    try:
        _build(heuristic, params)
    except ValidationError as error:
        yield from worded(error, heuristic.Params, prefix=at)
    except ConfigError as error:
        yield Found(at, str(error))


__all__: Sequence[str] = (
    "Names",
    "Reading",
    "Scorer",
    "load_scorecard",
    "load_scorecards",
    "read_scorecards",
    "scorer_of",
)
