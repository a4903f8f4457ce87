"""``evalpipe gate``: a job that ends with 0 where a canary may go on, for Argo's ``job`` provider and pipelines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Annotated, Any, Final

import typer
from sqlalchemy.exc import SQLAlchemyError

from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json
from evalpipe.cli.trouble import in_words, opened
from evalpipe.errors import ConfigError
from evalpipe.pipeline.canary_answer import Question, UnknownCanaryError, answer
from evalpipe.scorecard.values import parse_duration
from evalpipe.wiring import now

CODES: Final = {"advance": 0, "rollback": 1, "hold": 3, "unknown": 4}
"""Exit codes; 2 is that of a command that is written wrongly."""
TIMEOUT_S: Final = 10.0

Look = Callable[[], dict[str, Any]]


def gate(
    canary: Annotated[str, typer.Option(help="The canary's variant, or a rollout's id.", show_default=False)],
    service: Annotated[str, typer.Option(help="Of the canary, where several have one of that name.")] = "",
    environment: Annotated[str, typer.Option(help="Of the canary, likewise.")] = "",
    deployment: Annotated[
        str, typer.Option(help="Names this attempt, where releases take turns under one variant's name.")
    ] = "",
    step: Annotated[
        float | None,
        typer.Option(
            help="Percent that the canary has and is to leave; without it all of the traffic is asked for.",
            min=0,
            max=100,
        ),
    ] = None,
    wait: Annotated[str, typer.Option(help="How long to wait while it holds, for example 30m; 0s asks once.")] = "0s",
    every: Annotated[str, typer.Option(help="How often to ask meanwhile.")] = "5s",
    url: Annotated[
        str, typer.Option(envvar="EVALPIPE_GATE_URL", help="Ask this API; without it the database is asked.")
    ] = "",
    key: Annotated[
        str, typer.Option(envvar="EVALPIPE_GATE_KEY", help="A key of EVALPIPE_API_GATE_KEYS.", show_default=False)
    ] = "",
    machine: Json = False,
) -> None:
    """Whether a canary may go on, as an exit code, with the reason on stdout.

    0: it may. 1: roll it back (also aborted, expired). 2: the command is wrong. 3: still on hold when the wait was
    over. 4: nobody knows: no such canary, or no answer.

    Example: `evalpipe gate --canary v7 --service support-bot --step 5 --wait 30m`
    """
    question = Question(canary, service, environment, deployment, step)
    wait_s, every_s = _seconds("--wait", wait), max(0.1, _seconds("--every", every))
    end = time.monotonic() + wait_s
    look = _api(url, key, question) if url else _database(question)
    while True:
        found = look()
        left_s = end - time.monotonic()
        if found["decision"] in {"advance", "rollback"} or left_s <= 0:
            break
        time.sleep(min(every_s, left_s))
    typer.echo(as_json(found) if machine else f"{found['decision']}: {found['reason']}")
    raise typer.Exit(CODES[found["decision"]])


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(gate)


def _database(question: Question) -> Look:
    """Asks the database of the settings."""

    def look() -> dict[str, Any]:
        try:
            with closing(opened()) as wiring, wiring.store.begin() as tx:
                return answer(tx, question, now()).to_dict()
        except UnknownCanaryError as error:
            return _unknown(str(error))
        except ConfigError as error:
            if "no evalpipe data" in str(error):
                return _unknown(str(error))
            raise
        except SQLAlchemyError as error:
            return _unknown(in_words(error) or str(error))

    return look


def _api(url: str, key: str, question: Question) -> Look:
    """Asks an API.

    Raises:
        ConfigError: it refuses the key or the question.
    """
    from urllib.parse import quote

    import httpx2

    parts = {name: getattr(question, name) for name in ("service", "environment", "deployment", "step")}
    params = {name: value for name, value in parts.items() if value not in {"", None}}
    path = f"{url.rstrip('/')}/v1/canaries/{quote(question.name, safe='')}/verdict"

    def look() -> dict[str, Any]:
        try:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            said = httpx2.get(path, params=params, headers=headers, timeout=TIMEOUT_S)
            body: Mapping[str, Any] = said.json()
        except (httpx2.HTTPError, ValueError) as error:
            return _unknown(f"{url} does not answer ({type(error).__name__}: {error})")
        if said.status_code == 200:
            return dict(body["data"])
        told = body.get("error", {})
        words = f"{told.get('what', f'HTTP {said.status_code}')} ({told.get('advice', url)})"
        if said.status_code in {401, 403, 422}:
            raise ConfigError(f"{url}: {words}")
        return _unknown(words)

    return look


def _unknown(reason: str) -> dict[str, Any]:
    return {"decision": "unknown", "reason": reason}


def _seconds(option: str, written: str) -> float:
    try:
        return parse_duration(written).total_seconds()
    except ValueError as error:
        raise ConfigError(f"{option} {written!r} {error}") from None
