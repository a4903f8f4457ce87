"""What a judge said, read as grades. What does not fit the criterion's list is an error, never a score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from evalpipe.errors import GradeInvalid
from evalpipe.judges.base import Answer, Grade, Token
from evalpipe.judges.fence import neutral
from evalpipe.score import Status
from evalpipe.scorecard.model import JudgeSpec
from evalpipe.scorers.judged import CANNOT_TELL, Specs, label_of, values

EXPLANATION_CHARS: Final = 2_000
"""Characters kept of an explanation."""
QUOTATION_CHARS: Final = 500
"""Characters kept of a quotation."""
LEAST_COVERAGE: Final = 0.5
"""Where the likeliest tokens have less than this probability of being any grade, the grade as said counts."""
MOST_UNCLEAR: Final = 0.05
"""And where more than this may be the beginning of one grade as well as of another."""

_REPLY: Final = frozenset({"explanation", "quotation", "grade"})
_JSON: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}:,]|[^\s{}:,"]+', re.DOTALL)


def parse(spec: JudgeSpec, answer: Answer, output: str) -> Grade:
    """The grade in ``answer``; of status ``error``, with the raw text kept, where there is none. Raises nothing.

    Args:
        spec: the criterion.
        answer: what the judge said.
        output: the record's, in which a quotation must occur.
    """
    return parse_all({"": spec}, answer, output)[""]


def parse_all(specs: Specs, answer: Answer, output: str) -> dict[str, Grade]:
    """The grade of each criterion in one answer; what the call took is shared out between them. Raises nothing."""
    shares = [share_of(answer, len(specs), place) for place in range(len(specs))]
    try:
        said = _said(answer, specs)
    except GradeInvalid as error:
        return {name: _invalid(error, share) for name, share in zip(specs, shares, strict=True)}
    grades = {}
    for (name, spec), share in zip(specs.items(), shares, strict=True):
        try:
            several = len(specs) > 1
            grades[name] = _grade(name if several else "", spec, said[name] if several else said, share, output)
        except GradeInvalid as error:
            grades[name] = _invalid(error, share)
    return grades


def share_of(answer: Answer, n: int, place: int) -> Answer:
    """One of ``n`` criteria's share of what a call took; the shares add up to the whole."""
    if n == 1:
        return answer

    def part(whole: int) -> int:
        return whole // n + (place < whole % n)

    return replace(
        answer,
        input_tokens=part(answer.input_tokens),
        cached_tokens=part(answer.cached_tokens),
        output_tokens=part(answer.output_tokens),
        cost_usd=None if answer.cost_usd is None else answer.cost_usd / n,
    )


def _invalid(error: GradeInvalid, answer: Answer) -> Grade:
    return Grade(
        Status.ERROR,
        explanation=neutral(str(error))[:EXPLANATION_CHARS],
        raw=storable_text(answer.text),
        answer=replace(answer, tokens=()),
        cause=error.cause,
    )


def _grade(name: str, spec: JudgeSpec, said: Any, answer: Answer, output: str) -> Grade:
    if not isinstance(said, dict) or "grade" not in said or said.keys() - _REPLY:
        raise GradeInvalid("the judge's answer is not an object of explanation, quotation and grade")
    said = {"explanation": "", "quotation": "", **said}
    if not isinstance(said["explanation"], str) or not isinstance(said["quotation"], str):
        raise GradeInvalid("the judge's explanation or quotation is not text")
    label = _checked(spec, said["grade"])
    explanation = neutral(said["explanation"]).strip()[:EXPLANATION_CHARS]
    likely = likelihoods(spec, name, answer.tokens) if spec.logprobs else {}
    answer = replace(answer, tokens=()) if answer.tokens else answer
    if label == CANNOT_TELL:
        return Grade(Status.ABSTAINED, label=label, explanation=explanation, answer=answer)
    value = values(spec)[label]
    confidence = max((p for word, p in likely.items() if word != CANNOT_TELL), default=None)
    likely.pop(CANNOT_TELL, None)
    if likely:
        value = min(1.0, sum(p * values(spec)[word] for word, p in likely.items()) / sum(likely.values()))
    quotation = neutral(said["quotation"]).strip()[:QUOTATION_CHARS]
    if value == 1.0 or not (spec.kind == "pairwise" or _occurs(quotation, output)):
        quotation = ""
    return Grade(
        Status.SCORED,
        value,
        label,
        explanation,
        quotation,
        answer=answer,
        reading="expected" if likely else "word",
        confidence=confidence,
    )


def likelihoods(spec: JudgeSpec, name: str, tokens: Sequence[Token]) -> dict[str, float]:
    """The probability of each grade where the judge said its own, by the log-probabilities; {} where they do not tell.

    Abstaining is one of them.

    Args:
        spec: the criterion.
        name: of it, where several are graded in one call; else "".
        tokens: the answer's, if the provider gave them.
    """
    token = _token_of_grade(tokens, name)
    if token is None:
        return {}
    words = [*values(spec), CANNOT_TELL]
    found, unclear = dict.fromkeys(words, 0.0), 0.0
    begun = {text: text.strip().strip('"').strip() for text in token.alternatives}
    for text, logprob in token.alternatives.items():
        p = math.exp(min(logprob, 0.0))
        fits = [word for word in words if begun[text] and word.startswith(begun[text])]
        # A token 1 is not the beginning of 10 where 10 is a token too.
        if begun[text] in fits and not set(fits).isdisjoint(set(begun.values()) - {begun[text]}):
            fits = [begun[text]]
        if len(fits) == 1:
            found[fits[0]] += p
        elif fits:
            unclear += p
    total = sum(found.values())
    if unclear > MOST_UNCLEAR or total - found[CANNOT_TELL] < LEAST_COVERAGE:
        return {}
    return {word: p / total for word, p in found.items()}


def _token_of_grade(tokens: Sequence[Token], name: str) -> Token | None:
    """The token with which the grade's word begins."""
    start = _place_of_grade("".join(token.text for token in tokens), name)
    place = 0
    for token in tokens if start >= 0 else ():
        place += len(token.text)
        if place > start:
            return token
    return None


def _place_of_grade(text: str, name: str) -> int:
    """Where the grade's word begins; -1 for nowhere.

    By its place in the object: an explanation may hold whatever a record says.
    """
    wanted = ["", name] if name else [""]
    path: list[str] = []
    key = before = ""
    for found in _JSON.finditer(text, max(0, text.find("{"))):
        part = found[0]
        if part == "{":
            path.append(key)
        elif part == "}":
            del path[-1:]
        elif before == ":" and key == "grade" and path == wanted:
            return found.start() + part.startswith('"')
        elif before in {"{", ","}:
            key = part[1:-1]
        before = part
    return -1


def _checked(spec: JudgeSpec, said: Any) -> str:
    """The grade as a word of the criterion's list.

    Raises:
        GradeInvalid: it is something else.
    """
    label = label_of(spec, said)
    if label == CANNOT_TELL or label in values(spec):
        return label
    wrong = repr(label[:100]) if label else f"of type {type(said).__name__}"
    raise GradeInvalid(f"the judge's grade is none of the criterion's, but {wrong}")


def _said(answer: Answer, specs: Specs) -> Mapping[str, Any]:
    """The one JSON object that the answer is, perhaps in a code fence; of several criteria, with a key for each.

    Raises:
        GradeInvalid: it is something else.
    """
    if answer.finish == "refused":
        raise GradeInvalid("the judge refused to grade", cause="refused")
    if answer.finish == "truncated":
        raise GradeInvalid(f"the judge's answer was cut after {answer.output_tokens} tokens", cause="truncated")
    text = answer.text.strip()
    if not text:
        raise GradeInvalid("the judge said nothing")
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json")
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise GradeInvalid(f"the judge's answer is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise GradeInvalid("the judge's answer is not an object of explanation, quotation and grade")
    if len(specs) > 1 and value.keys() != specs.keys():
        raise GradeInvalid(f"the judge's answer is not an object of {', '.join(specs)}")
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object that has each key once: with two grades in it, nobody knows which one is meant."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _occurs(quotation: str, output: str) -> bool:
    wanted = "".join(neutral(quotation).split())
    return bool(wanted) and wanted in "".join(neutral(output).split())


def storable_text(text: str) -> str:
    """``text`` without what no database takes: NUL and half characters."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
