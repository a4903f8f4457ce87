"""``evalpipe rollout test``: the tests that a policy carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json
from evalpipe.errors import ConfigError
from evalpipe.rollout.policy_check import PolicyResult, run_policy_test
from evalpipe.scorecard.document import Document
from evalpipe.scorecard.policy import load_policies
from evalpipe.scorecard.policy_test import PolicyTest
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.scorers.base import heuristics


@dataclass(frozen=True, slots=True)
class _Carried:
    """A test with its policy and its place."""

    file: str
    line: int
    policy: RolloutPolicy
    test: PolicyTest


def run_tests(
    files: Annotated[
        list[Path], typer.Argument(help="Policy files, scorecards, or files of rollouts.", show_default=False)
    ],
    only: Annotated[str, typer.Option("--only", help="Only tests with this in their name.")] = "",
    repeat: Annotated[int, typer.Option(min=0, help="Runs of each test; as it says itself if 0.")] = 0,
    machine: Json = False,
) -> None:
    """Run the tests that policies carry: streams of scores, and what must be decided by when.

    The streams are random numbers with a seed, so a run can be repeated, and the decisions are made by the code that
    decides in production. A failure is one line on stderr with file and line, and the exit code 1.

        evalpipe rollout test scorecards/policies/default.yaml
        evalpipe rollout test scorecards/*.yaml --only 'drop of 10'
    """
    carried = [found for file in files for found in _carried(file) if only in found.test.name]
    if not carried:
        raise ConfigError(f"no tests in {', '.join(map(str, files))}{f' with {only!r} in the name' if only else ''}: "
                          "write some under 'tests:' of the policy (docs/rollouts.md)")  # fmt: skip
    if repeat:
        carried = [_Carried(c.file, c.line, c.policy, c.test.model_copy(update={"repeat": repeat})) for c in carried]
    results: list[tuple[_Carried, PolicyResult]] = []
    with _progress(sum(found.test.repeat for found in carried), quiet=machine) as step:
        for found in carried:
            results.append((found, _run(found, step)))
            if not machine:
                _tell(*results[-1])
    failed = sum(not result.passed for _, result in results)
    if machine:
        typer.echo(as_json([{"file": f.file, "line": f.line, **result.to_json()} for f, result in results]))
    else:
        typer.echo(f"{len(results) - failed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add this module's command to those of ``evalpipe rollout``."""
    app.command(name="test")(run_tests)


def _carried(file: Path) -> Iterator[_Carried]:
    for found in load_policies(file, heuristics):
        for place, test in enumerate(found.policy.tests):
            yield _Carried(str(file), _line(found.document, (*found.loc, "tests", place, "name")), found.policy, test)


def _line(document: Document, loc: tuple[str | int, ...]) -> int:
    return document.values.get(loc, (1, 1))[0]


def _run(found: _Carried, step: Callable[[], None]) -> PolicyResult:
    result = PolicyResult(found.test)
    for after in run_policy_test(found.policy, found.test):
        result = after
        step()
    return result


def _tell(found: _Carried, result: PolicyResult) -> None:
    if result.passed:
        typer.echo(f"passed  {found.test.name}: {result.met:,} of {result.runs:,} runs{_median(result.to_json())}")
    else:
        typer.echo(f"{found.file}:{found.line}: test {found.test.name!r}: {result.told()}", err=True)


def _median(told: dict[str, Any]) -> str:
    return "" if told["median_canary"] is None else f", after {told['median_canary']:,.0f} canary values (median)"


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    if quiet or total < 20 or not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("runs", total=total)
        yield lambda: progress.advance(task)
