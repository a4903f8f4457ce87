"""A scorecard in plain words: for the terminal, and for whoever must agree to it without reading YAML."""

from __future__ import annotations

from typing import Final

from evalpipe.scorecard.criterion import Criterion, JudgeSpec
from evalpipe.scorecard.model import AlertRule, Gate, Judging, Match, Sampling
from evalpipe.scorecard.values import format_duration

_NO_DATA: Final = {
    "keep": "fewer leave the alert as it is",
    "ok": "fewer count as fine",
    "firing": "fewer count as crossed",
}


def match_in_words(match: Match) -> str:
    """Which records it applies to."""
    parts = [
        f"{name} {' or '.join(globs)}"
        for name, globs in (
            ("service", match.service),
            ("feature", match.feature),
            ("environment", match.environment),
            ("variant", match.variant),
        )
        if "*" not in globs
    ]
    return f"records of {', '.join(parts)}" if parts else "every record"


def sampling_in_words(sampling: Sampling) -> str:
    """What is scored of the records that match."""
    if sampling.judge == 1.0:
        return "heuristics and judges score all of them"
    return f"heuristics score all of them, judges grade {_percent(sampling.judge)} of them"


def judging_in_words(judging: Judging) -> str:
    """What its judges may cost; "" if that has no bound of its own."""
    return "" if judging.usd_per_day is None else f"its judges may cost ${judging.usd_per_day:g} a day (UTC)"


def criterion_in_words(criterion: Criterion) -> str:
    """What gives the score, and how it becomes a number."""
    if criterion.judge is None:
        params = ", ".join(f"{name}={_short(value)}" for name, value in criterion.params.items())
        return f"heuristic {criterion.heuristic}" + (f" ({params})" if params else "")
    judge = criterion.judge
    how = {
        "boolean": "judge, pass is 1 and fail is 0",
        "scale": f"judge, {min(judge.anchors, default=0)} to {max(judge.anchors, default=0)} carried to 0 to 1",
        "category": "judge, " + ", ".join(f"{label} is {c.value:g}" for label, c in judge.categories.items()),
        "pairwise": "judge, a shadow's answer against the served one: better is 1, a tie 0.5, worse 0",
    }[judge.kind]
    parts = [
        how,
        f"asks: {_short_line(judge.rubric)}",
        f"skipped without {' and '.join(judge.needs)}" if judge.needs else "",
        *_who_in_words(judge),
        f"in one call with what else is marked {judge.together!r}" if judge.together else "",
        "by the log-probabilities of the grades, where the provider gives them" if judge.logprobs else "",
        "" if judge.explain else "without explanations",
        "through the provider's batch API where it is not urgent" if judge.lane == "batch" else "",
        ""
        if judge.priority == JudgeSpec.model_fields["priority"].default
        else f"priority {judge.priority} (0 is first)",
    ]
    return "; ".join(part for part in parts if part)


def _who_in_words(judge: JudgeSpec) -> list[str]:
    """Which judges are asked, how often, and what their grades become."""
    several = {"majority": "the majority counts", "mean": "the mean of their grades counts"}[judge.combine]
    parts = []
    if judge.panel:
        parts.append(f"panel of {', '.join(judge.panel)}")
    elif judge.model != "default":
        parts.append(f"model {judge.model}")
    if judge.votes > 1:
        parts.append(f"{judge.votes} votes{' each' if judge.panel else ''}")
    if judge.panel or judge.votes > 1:
        parts.append(several)
    if judge.escalate is not None:
        when = " or ".join(
            {"unsure": "it is unsure", "fail": "it does not give the best grade"}[w] for w in judge.escalate.when
        )
        parts.append(f"where {when}, {judge.escalate.to} grades again and counts")
    if judge.fallback:
        parts.append(f"while that fails: {', then '.join(judge.fallback)}")
    return parts


def alert_in_words(rule: AlertRule) -> str:
    """When it fires and how it ends."""
    side, line = ("below", rule.line.below) if rule.line.below is not None else ("above", rule.line.above)
    what, of = (f"the mean of {rule.criterion}", "scores") if rule.meter is None else (rule.meter, "calls")
    held = f" for {format_duration(rule.for_)}" if rule.for_ else ""
    kept = f"; keeps firing {format_duration(rule.keep_firing_for)} after that" if rule.keep_firing_for else ""
    return (
        f"{rule.severity} when {what} over {format_duration(rule.window)} "
        f"is {side} {line:g}{held}; needs {rule.min_sample} {of}, {_NO_DATA[rule.no_data]}{kept}"
    )


def gate_in_words(gate: Gate) -> str:
    """What rolls back and what lets advance."""
    margin, estimate = _percent(gate.margin), _percent(gate.margin * 0.8)
    return (
        f"{gate.criterion}: rolls back on proof of a drop (chance of error {_percent(gate.alpha)}) "
        f"that is estimated at {estimate} or more; lets advance on proof that the drop is less than {margin} "
        f"(chance of error {_percent(gate.advance_alpha)}); from {gate.min_canary} canary scores on"
    )


def _short_line(text: str) -> str:
    """The first line, not longer than a line is."""
    line = text.strip().partition("\n")[0].strip()
    return line if len(line) <= 100 else f"{line[:97]}..."


def _percent(share: float) -> str:
    return f"{share * 100:.4g}%"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
