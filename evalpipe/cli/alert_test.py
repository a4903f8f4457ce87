"""``evalpipe alerts check`` and ``evalpipe alerts test``: for those who write alert rules."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from evalpipe.alerts.rule_test import RuleTestResult, run_rule_test
from evalpipe.cli.alert_files import alert_rules, is_scorecard
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, finite
from evalpipe.errors import ConfigError
from evalpipe.scorecard.alert_test import read_tests
from evalpipe.scorecard.document import Document
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorers.base import heuristics
from evalpipe.settings import Settings

Files = Annotated[list[Path], typer.Argument(help="Files, or folders of them.", show_default=False)]


def check(
    files: Files,
    folder: Annotated[
        Path, typer.Option("--scorecards", envvar="EVALPIPE_SCORECARDS", help="Whose criteria rules may read.")
    ] = Path("scorecards"),
    machine: Json = False,
) -> None:
    """Find every mistake in files of `alerts:` (and in scorecards). Each is one line, file:line:column.

    Channels that routes name are looked for where EVALPIPE_CHANNELS is set.

        evalpipe alerts check alerts.yaml
    """
    others = [file for file in files if file.is_dir() or not file.is_file() or not is_scorecard(file)]
    cards = load_scorecards(folder, heuristics) if others and folder.exists() else []
    found = alert_rules(files, cards, _channels())
    if machine:
        typer.echo(as_json([{"rule": r.name, "scorecard": r.scorecard, "kind": r.kind, "severity": r.severity,
                             "dry_run": r.dry_run, "kill_switch": r.kill_switch} for r in found.rules]))  # fmt: skip
        return
    for rule in found.rules:
        does = [word for word, says in (("dry run", rule.dry_run), ("kill switch", rule.kill_switch)) if says]
        of = f"{rule.scorecard}/{rule.name}" if rule.scorecard else rule.name
        typer.echo(f"{of}: {rule.kind}, {', '.join([_severity(rule.severity), *does])}")
    if not found.rules:
        typer.echo("no alert rule in these files")


def run_tests(
    files: Files,
    only: Annotated[str, typer.Option("--only", help="Only tests with this in their name.")] = "",
    log: Annotated[bool, typer.Option("--log", help="Say what happened in each test, too.")] = False,
    machine: Json = False,
) -> None:
    """Test alert rules: series written by hand, and what must fire when. Nothing is sent and nothing kept.

    The clock is played, and the rules run by the code that evaluates and tells in production. A failure is one line
    on stderr, file:line:column, with what was expected and what was; then the exit code is 1.

        evalpipe alerts test examples/alerts/tests/*.yaml
        evalpipe alerts test my-tests.yaml --only 'provider is slow' --log
    """
    told: list[dict[str, Any]] = []
    failed = ran = 0
    for file in files:
        read, document = read_tests(file)
        cards = [card for name in read.scorecards for card in load_scorecards(file.parent / name, heuristics)]
        rules = alert_rules((file.parent / name for name in read.rules), cards)
        for place, test in enumerate(read.tests):
            if only not in test.name:
                continue
            result = run_rule_test(test, rules.rules, rules.routing)
            ran, failed = ran + 1, failed + (not result.passed)
            lines = _lines(result, document, place)
            line = document.values.get(("tests", place, "name"), (1, 1))[0]
            told.append({"file": str(file), "line": line, **result.to_json(), "failures": lines})
            if not machine:
                _tell(told[-1], log=log)
    if not ran:
        raise ConfigError(f"no test{f' with {only!r} in its name' if only else ''} in {', '.join(map(str, files))}")
    typer.echo(as_json(finite(told)) if machine else f"{ran - failed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to those of ``evalpipe alerts``."""
    app.command()(check)
    app.command(name="test")(run_tests)


def _lines(result: RuleTestResult, document: Document, place: int) -> list[str]:
    name = result.test.name
    return [
        str(document.problem(("tests", place, *(failure.loc or ("name",))), f"test {name!r}: {failure.message}"))
        for failure in result.failures
    ]


def _tell(told: dict[str, Any], *, log: bool) -> None:
    if told["passed"]:
        typer.echo(f"passed  {told['test']}")
    for line in told["failures"]:
        typer.echo(line, err=True)
    if log:
        for change in told["alerts"]:
            typer.echo(f"  {change['after']:>8}  {change['alert_id']} is {change['state']} {change['severity']}: "
                       f"{change['reason']}")  # fmt: skip
        for notice in told["notices"]:
            to = ", ".join(notice["channels"]) if notice["channels"] is not None else "every channel"
            typer.echo(f"  {notice['after']:>8}  told {notice['cause']} {notice['severity']} "
                       f"{', '.join(notice['rules'])} to {to}")  # fmt: skip


def _severity(written: str) -> str:
    return "severity by the table" if written == "table" else written


def _channels() -> list[str] | None:
    settings = Settings.from_env()
    if settings.channels is None:
        return None
    from evalpipe.wiring import Wiring

    with closing(Wiring(settings)) as wiring:
        return list(wiring.channels)
