"""What ``evalpipe up`` says when everything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evalpipe.cli.doctor import judged_and_skipped
from evalpipe.settings import PREFIX, Settings, masked
from evalpipe.wiring import Wiring

if TYPE_CHECKING:
    from evalpipe.cli.up import Stack


def tell(stack: Stack, port: int, log: Path) -> None:
    """Say what runs, and where."""
    settings = stack.settings
    wiring = Wiring(settings)
    cards = wiring.scorecards
    if stack.redis_moved_from:
        typer.echo(
            f"evalpipe: ATTENTION: EVALPIPE_REDIS_URL HAS CHANGED, because another program took port "
            f"{stack.redis_moved_from}. Start your applications again with the URL below: until then they are cut off.",
            err=True,
        )
    typer.echo(f"evalpipe is up. Log: {log}   Stop: Ctrl-C")
    own_keys = Settings.from_env().api_keys
    key = f"one of {PREFIX}API_KEYS" if own_keys else f"key in {settings.home / 'api-key'}"
    typer.echo(f"  API         http://127.0.0.1:{port}   ({key})")
    typer.echo(f"  labelling   http://127.0.0.1:{port}/label")
    typer.echo(f"  alerts      http://127.0.0.1:{port}/alerts")
    typer.echo(f"  rollouts    http://127.0.0.1:{port}/rollouts")
    typer.echo(f"  hooks       EVALPIPE_REDIS_URL={settings.redis_url}")
    typer.echo(f"  database    {masked(settings.database_url)}")
    typer.echo(f"  scorecards  {', '.join(card.name for card in cards) or 'none yet'}")
    typer.echo(f"  judge       {_judges_in_words(wiring)}")


def _judges_in_words(wiring: Wiring) -> str:
    """The judges that are asked, the default one first, and how many criteria have none."""
    default = [wiring.settings.judge] if wiring.settings.judge else []
    named = ", ".join([*default, *(model for model in wiring.models if model != "default")])
    _, skipped = judged_and_skipped(wiring)
    if not skipped:
        return named or "none is needed"
    lost = f"set {PREFIX}JUDGE: without it {len(skipped)} judged criteria are skipped"
    return f"{named}; no default ({lost})" if named else f"none ({lost})"
