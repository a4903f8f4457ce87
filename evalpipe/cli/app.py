"""All commands, in the order in which people meet them."""

from __future__ import annotations

from typing import Annotated

import typer

from evalpipe import __version__
from evalpipe.cli import (
    alerts,
    backtest,
    baseline,
    control,
    deliveries,
    fingerprint,
    gate,
    judge,
    judge_anchors,
    judge_batches,
    judge_calibrate,
    judge_cost,
    judge_injections,
    judge_list,
    label,
    operate,
    pseudonyms,
    read,
    rollout,
    rollout_plan,
    rollout_test,
    rollup,
    scorecard,
    up,
    webhook,
)

app = typer.Typer(
    name="evalpipe",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""The production eval pipeline for LLM features: sample, score, decide, roll back.

Start here: `evalpipe up` runs everything on this machine; `evalpipe scorecard check` checks what you want of your
feature; `evalpipe ledger` says how much was really evaluated; `evalpipe doctor` says what is wrong and what to do.

Settings are EVALPIPE_* variables: see `evalpipe settings`.""",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """See the module's help."""


up.add_to(app)
app.add_typer(scorecard.app, name="scorecard")
read.add_to(app)
app.add_typer(baseline.app, name="baseline")
app.add_typer(alerts.app, name="alerts")
app.add_typer(deliveries.app, name="deliveries")
control.add_to(app)
app.add_typer(rollout.app, name="rollout")
backtest.add_to(app)
rollout_test.add_to(rollout.app)
rollout_plan.add_to(rollout.app)
gate.add_to(app)
# The commands of `evalpipe judge`, one module each: judge_x.add_to(judge.app).
judge_list.add_to(judge.app)
judge_anchors.add_to(judge.app)
judge_batches.add_to(judge.app)
judge_calibrate.add_to(judge.app)
judge_cost.add_to(judge.app)
judge_injections.add_to(judge.app)
app.add_typer(judge.app, name="judge")
app.add_typer(label.app, name="label")
app.add_typer(fingerprint.app, name="fingerprint")
operate.add_to(app)
app.add_typer(rollup.app, name="rollup")
app.add_typer(webhook.app, name="webhook")
app.add_typer(pseudonyms.app, name="pseudonyms")
