"""A calibration report as one HTML page: nothing is fetched, the pictures are SVG inside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from evalpipe.cli.calibration_text import (
    METHODS,
    WEIGHTS,
    bias_in_words,
    counts_in_words,
    numbers,
    percent,
    position_in_words,
)
from evalpipe.scorers.calibration import Report, meaning
from evalpipe.stats.agreement import Confusion
from evalpipe.stats.bias import Bias

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b2733; --soft: #5a6b7b; --line: #d7dee5; --back: #fff; --panel: #f6f8fa;
  --good: #1f7a4d; --mark: #2b6cb0; --warn: #b4541a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4eaf0; --soft: #9db0c0; --line: #33414e; --back: #11181f;
  --panel: #18222b; --good: #5cc78f; --mark: #74b3f0; --warn: #f0a070; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.2rem; margin: 0 }
h3 { font-size: .95rem; margin: 0 0 .4rem }
.soft { color: var(--soft); font-size: .87rem; overflow-wrap: anywhere }
section { border: 1px solid var(--line); border-radius: 8px; padding: 1.2rem; margin: 1.2rem 0 }
ul.meaning { padding: 0; list-style: none; font-size: 1.05rem; margin: .8rem 0 1.2rem }
.grid { display: grid; align-items: start; grid-template-columns: repeat(auto-fit, minmax(25rem, 1fr)); gap: 1.2rem }
.panel { background: var(--panel); border-radius: 6px; padding: .9rem; min-width: 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { padding: .22rem .5rem .22rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
tr:last-child td { border-bottom: 0 } td.n { white-space: nowrap }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--ink); font: 13px system-ui, sans-serif }
svg .soft { fill: var(--soft); font-size: 12px }
@media (max-width: 30rem) { .grid { grid-template-columns: 1fr } body { padding: .7rem } }
"""
_WIDE: Final = 460
"""Units of a picture's width."""
_LEFT: Final = 140
_RIGHT: Final = 60


def page(reports: Sequence[Report]) -> str:
    """The page."""
    body = "\n".join("\n".join(_section(report)) for report in reports)
    at = max(report.at for report in reports)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Judge calibration</title><style>{_STYLE}</style></head><body>\n<h1>Judge calibration</h1>"
        f'<p class="soft">{at:%Y-%m-%d %H:%M} UTC. How far the judge agrees with people. Bars and brackets are 95 % '
        f"intervals.</p>\n{body}\n</body></html>\n"
    )


def _section(report: Report) -> Iterator[str]:
    yield f"<section><h2>{escape(report.scorecard)} / {escape(report.criterion)}</h2>"
    people = "1 person" if report.annotators == 1 else f"{report.annotators} people"
    told = f"judge {report.judge_version}, epoch {report.epoch}. {counts_in_words(report.counts)}; labels of {people}."
    yield f'<p class="soft">{escape(told)}</p><ul class="meaning">'
    yield from (f"<li>{escape(sentence)}</li>" for sentence in meaning(report))
    yield '</ul><div class="grid">'
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{escape(value)}</td><td class="soft">{escape(says)}</td></tr>'
        for name, value, says in numbers(report)
    )
    weights = f'<p class="soft">{escape(WEIGHTS)}</p>' if report.is_weighted else ""
    yield f'<div class="panel"><h3>Agreement</h3><table>{rows}</table>{weights}</div><div class="grid">'
    if report.counts.compared:
        yield f'<div class="panel"><h3>People (rows) and judge (columns)</h3>{_matrix(report.confusion)}</div>'
    yield f'<div class="panel"><h3>What is reported</h3>{_means(report)}</div></div>'
    if report.counts.compared:
        yield _bias("By length of the output, in characters", report.length)
        yield _bias("By language", report.language)
    if position := position_in_words(report):
        yield f'<div class="panel"><h3>By position</h3><p>{escape(position)}</p></div>'
    yield "</div></section>"


def _means(report: Report) -> str:
    raw, fixed = report.raw, report.corrected
    rows = []
    if raw is not None:
        rows.append(("raw: as the judge says", "var(--soft)", raw.mean, raw.low, raw.high))
    if fixed.mean is not None and fixed.low is not None and fixed.high is not None and fixed.method is not None:
        rows.append((f"corrected: {METHODS[fixed.method]}", "var(--mark)", fixed.mean, fixed.low, fixed.high))
    note = f'<p class="soft">Not corrected: {escape(fixed.reason)}.</p>' if fixed.reason else ""
    if not rows:
        return note
    parts = [_axis(30 + 52 * len(rows))]
    for index, (name, colour, mean, low, high) in enumerate(rows):
        y = 22 + 52 * index
        label = f"{name}: {mean:.3f} [{low:.3f} to {high:.3f}]"
        parts.append(f'<text x="6" y="{y}">{escape(label)}</text>{_whisker(y + 16, mean, low, high, colour, 6)}')
    return _svg(50 + 52 * len(rows), parts, "Raw and corrected mean with intervals") + note


def _bias(title: str, bias: Bias) -> str:
    if not bias.groups:
        return ""
    parts = ['<text class="soft" x="6" y="14">differs from people</text>']
    parts.append(f'<text class="soft" x="{_WIDE - 4}" y="14" text-anchor="end">judge - people</text>')
    for index, group in enumerate(bias.groups):
        y = 46 + 46 * index
        wrong = group.wrong
        if wrong.value is None or wrong.low is None or wrong.high is None:
            continue
        width = max(1.0, _x(wrong.value) - _x(0.0))
        parts += [
            f'<text x="6" y="{y - 2}">{escape(group.name)}</text>',
            f'<text class="soft" x="6" y="{y + 13}">n = {group.n}</text>',
            f'<rect x="{_x(0.0):.1f}" y="{y - 14}" width="{width:.1f}" height="14" fill="var(--warn)" opacity=".75" />',
            _whisker(y - 7, wrong.value, wrong.low, wrong.high, "var(--ink)", 0),
            f'<text class="soft" x="{_x(0.0):.1f}" y="{y + 13}">{percent(wrong)}</text>',
            f'<text x="{_WIDE - 4}" y="{y - 2}" text-anchor="end">{group.difference:+.3f}</text>',
        ]
    told = bias_in_words(bias)
    note = f'<p class="soft">{escape(told)}</p>' if told else ""
    return f'<div class="panel"><h3>{escape(title)}</h3>{_svg(34 + 46 * len(bias.groups), parts, title)}{note}</div>'


def _matrix(confusion: Confusion) -> str:
    k, most = len(confusion.labels), max((max(row) for row in confusion.counts), default=0)
    cell = min(110.0, (_WIDE - 100.0) / k)
    height = min(cell, 54.0)
    parts = []
    for index, label in enumerate(confusion.labels):
        at = 100 + cell * (index + 0.5)
        parts.append(f'<text class="soft" x="{at:.1f}" y="16" text-anchor="middle">{escape(label[:14])}</text>')
        parts.append(f'<text class="soft" x="92" y="{28 + height * (index + 0.6):.1f}" text-anchor="end">'
                     f"{escape(label[:14])}</text>")  # fmt: skip
    for row, counts in enumerate(confusion.counts):
        for column, n in enumerate(counts):
            x, y = 100 + cell * column, 24 + height * row
            colour = "var(--good)" if row == column else "var(--warn)"
            strength = 0.08 + 0.72 * (n / most if most else 0.0)
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" height="{height - 2:.1f}" rx="3" '
                f'fill="{colour}" opacity="{strength:.2f}" /><text x="{x + cell / 2:.1f}" y="{y + height * 0.6:.1f}" '
                f'text-anchor="middle">{n}</text>'
            )
    return _svg(30 + height * k, parts, "Confusion matrix")


def _x(value: float) -> float:
    return _LEFT + value * (_WIDE - _LEFT - _RIGHT)


def _axis(y: float) -> str:
    ticks = "".join(
        f'<line x1="{_wide(t):.1f}" y1="26" x2="{_wide(t):.1f}" y2="{y}" stroke="var(--line)" />'
        f'<text class="soft" x="{_wide(t):.1f}" y="{y + 15}" text-anchor="middle">{t:g}</text>'
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    return f"<g>{ticks}</g>"


def _wide(value: float) -> float:
    return 12 + value * (_WIDE - 24)


def _whisker(y: float, mean: float, low: float, high: float, colour: str, dot: int) -> str:
    """An interval with its mean as a dot over the whole width, or, without a dot, beside the names."""
    at = _wide if dot else _x
    line = f'<line x1="{at(low):.1f}" y1="{y}" x2="{at(high):.1f}" y2="{y}" stroke="{colour}" stroke-width="2" />'
    ends = "".join(
        f'<line x1="{at(end):.1f}" y1="{y - 4}" x2="{at(end):.1f}" y2="{y + 4}" stroke="{colour}" stroke-width="2" />'
        for end in (low, high)
    )
    return line + ends + (f'<circle cx="{at(mean):.1f}" cy="{y}" r="{dot}" fill="{colour}" />' if dot else "")


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDE} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
