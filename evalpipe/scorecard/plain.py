"""A scorecard in plain words: for the terminal, and for whoever must agree to it without reading YAML."""

from __future__ import annotations

from typing import Final

from evalpipe.scorecard.criterion import Criterion, JudgeSpec
from evalpipe.scorecard.model import AlertRule, Judging, Match, Sampling
from evalpipe.scorecard.rollout import ESTIMATE_SHARE, Gate, RolloutPolicy
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
        f"only about what {judge.confirms} flagged" if judge.confirms else "",
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
    severity: str = rule.severity or ("table" if rule.detect else "SEV3")
    severity = "by the table of severities" if severity == "table" else severity
    held = f" for {format_duration(rule.for_)}" if rule.for_ else ""
    kept = f"; keeps firing {format_duration(rule.keep_firing_for)} after that" if rule.keep_firing_for else ""
    more = kept + ("; stops the calls" if rule.kill_switch else "") + ("; dry run: nobody is told" * rule.dry_run)
    if rule.detect is not None:
        given = ", ".join(f"{name} {value}" for name, value in rule.params.items())
        return f"{severity} when {rule.detect} finds something{f' ({given})' if given else ''}{held}{more}"
    side, line = ("below", rule.line.below) if rule.line.below is not None else ("above", rule.line.above)
    what, of = (f"the mean of {rule.criterion}", "scores") if rule.meter is None else (rule.meter, "calls")
    return (
        f"{severity} when {what} over {format_duration(rule.window)} "
        f"is {side} {line:g}{held}; needs {rule.min_sample} {of}, {_NO_DATA[rule.no_data]}{more}"
    )


def rollout_in_words(policy: RolloutPolicy) -> str:
    """Who is compared, and how the traffic moves."""
    parts = [f"{policy.canary} against {policy.baseline}"]
    if policy.shadow is not None:
        least = format_duration(policy.shadow.min_duration)
        parts.append(f"first in the shadow for {least} and {policy.shadow.min_pairs} pairs at least")
    if policy.steps:
        steps = ", ".join(f"{step.percent:g}%" for step in policy.climb)
        parts.append(f"the canary gets {steps}, then all")
    if policy.segments is not None:
        parts.append(f"each {policy.segments.by} is looked at too")
    parts.append(f"false rollbacks by all gates together: {_percent(policy.alpha)} at the most")
    return "; ".join(parts)


def gate_in_words(gate: Gate, alpha: float, advance_alpha: float) -> str:
    """What it does on harm, and what lets advance.

    Args:
        gate: as written, or by default.
        alpha: of the gate.
        advance_alpha: of the gate.
    """
    does = "rolls back" if gate.role == "guardrail" else "holds"
    dry = " (dry run: acts on nothing)" if gate.dry_run else ""
    error = f"chance of error {_percent(alpha)}"
    if gate.resolved == "ratio":
        return f"sample ratio: {does} on proof that the arms do not get the units that they should ({error}){dry}"
    if gate.resolved == "safety":
        how = f"that {gate.confirm} confirms" if gate.confirm else "of it"
        return f"{gate.called}: {does} on a flag {how}, or on proof that flags are more frequent ({error}){dry}"
    margin, relative = gate.tolerance
    what = {"latency": f"the {_percent(gate.quantile or 0.99)} quantile of {gate.criterion}"}.get(
        gate.resolved, gate.called
    )
    harm = " or ".join(f"a {direction}" for direction in gate.directions)
    at_least, beyond = (_percent(m) if relative else f"{m:.4g} points" for m in (margin * ESTIMATE_SHARE, margin))
    text = f"{what}: {does} on proof of {harm} ({error}) that is estimated at {at_least} or more"
    if gate.role != "signal":
        the = f"the {' or the '.join(gate.directions)}"
        text += f"; lets advance on proof that {the} is less than {beyond} (chance of error {_percent(advance_alpha)})"
    return f"{text}; from {gate.min_canary} canary values on{dry}"


def _short_line(text: str) -> str:
    """The first line, not longer than a line is."""
    line = text.strip().partition("\n")[0].strip()
    return line if len(line) <= 100 else f"{line[:97]}..."


def _percent(share: float) -> str:
    return f"{share * 100:.4g}%"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
