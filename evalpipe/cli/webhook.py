"""``evalpipe webhook``: the tools of someone who consumes decisions."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from evalpipe.notification import Notification
from evalpipe.receiver import Receiver
from evalpipe.signing import new_secret

app = typer.Typer(no_args_is_help=True, help="Receive, check and send signed webhooks.")

TEST: Final = "io.evalpipe.test.v1"

Secrets = Annotated[
    str,
    typer.Option(
        "--secret", envvar="EVALPIPE_WEBHOOK_SECRET", help="whsec_... secret; several with spaces between them."
    ),
]


@app.command()
def secret() -> None:
    """Make a secret for one receiver."""
    print(new_secret())


@app.command()
def listen(
    secret: Secrets = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any free one.")] = 8787,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
    count: Annotated[int, typer.Option(help="End after so many events; 0 is never.")] = 0,
) -> None:
    """Print every webhook that is truly evalpipe's, once."""
    write = _print_json if as_json else _print_event
    receiver = Receiver(host, port, secrets=secret.split(), on_event=write, on_refusal=_print_refusal)
    with receiver:
        typer.echo(f"listening on {receiver.url} (Ctrl-C ends)", err=True)
        try:
            while not receiver.wait_for(lambda events: 0 < count <= len(events), timeout_s=threading.TIMEOUT_MAX):
                pass
        except KeyboardInterrupt:
            typer.echo(f"{len(receiver.events)} events", err=True)


@app.command(name="send-test")
def send_test(
    url: Annotated[str, typer.Argument(help="The receiver's URL.")],
    secret: Secrets = "",
    event_type: Annotated[str, typer.Option("--type", help="The event's type, for example that of a rollback.")] = TEST,
    subject: Annotated[str, typer.Option(help="What the event says that it is about.")] = "evalpipe-test",
) -> None:
    """Send one signed event that is marked as a test, and say what became of it.

    Unless --type says so it is no rollback: a receiver that overlooks the mark would act on one.
    """
    from evalpipe.channels.webhook import Webhook, WebhookConfig

    now = datetime.now(UTC)
    notification = Notification(
        event_id=f"evt_test_{uuid.uuid4().hex}",
        type=event_type,
        subject=subject,
        at=now,
        data={"test": True, "reason": "sent by 'evalpipe webhook send-test': change nothing"},
        source="/evalpipe/test",
    )
    channel = Webhook(WebhookConfig(url=url, secrets=tuple(secret.split())))
    delivery = channel.send(channel.render(notification), event_id=notification.event_id, at=now)
    if delivery.ok:
        typer.echo(f"delivered: HTTP {delivery.status} after {delivery.elapsed_ms:.0f} ms, id {notification.event_id}")
        return
    typer.echo(f"not delivered after {delivery.elapsed_ms:.0f} ms: {delivery.error}", err=True)
    raise typer.Exit(1)


def _print_json(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _print_event(event: dict[str, Any]) -> None:
    lines = [f"{event.get('time')}  {event.get('type')}  {event.get('subject', '')}  id {event.get('id')}"]
    data = event.get("data")
    for name, value in data.items() if isinstance(data, dict) else ():
        lines.append(f"    {name}: {value if isinstance(value, str) else json.dumps(value)}")
    # Evidence quotes what models and users wrote: control characters must not reach the terminal.
    print("\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines), flush=True)


def _print_refusal(reason: str) -> None:
    typer.echo(f"refused (401): {reason}", err=True)
