"""GitHub: a decision starts the workflows that listen for its ``repository_dispatch`` event.

Source: GitHub's REST API, "Create a repository dispatch event": an event type of at most 100 characters, and a payload
of at most ten keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from pydantic import Field

from evalpipe.channels.acting import Acting, ActingConfig, Call, Step
from evalpipe.channels.base import ChannelConfig, channels

KEYS: Final = ("decision_id", "rollout_id", "seq", "action", "service", "environment", "baseline", "canary")
"""What the payload has of a decision beside ``to_percent`` and ``reason``: ten keys, and GitHub takes no more."""
_REASON = 2_000


class GitHubConfig(ActingConfig):
    """The repository whose workflows act."""

    url: str = Field("https://api.github.com", description="Of the API; of a server of your own with /api/v3.")
    repository: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="owner/name.")


@channels.register("github")
class GitHub(Acting):
    """Sends ``evalpipe-rollback``, ``evalpipe-advance`` or ``evalpipe-hold``, the last where it changes the share."""

    Config = GitHubConfig

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, GitHubConfig)
        super().__init__(config, config.url)
        self._config = config

    def calls(self, step: Step) -> list[Call]:
        """One event."""
        payload = {name: step.data.get(name) for name in KEYS}
        payload |= {"to_percent": step.percent, "reason": step.reason[:_REASON]}
        path = f"/repos/{quote(self._config.repository)}/dispatches"
        return [Call("POST", path, {"event_type": f"evalpipe-{step.action}", "client_payload": payload})]

    def headers(self) -> Mapping[str, str]:
        """The token, and the version of the API."""
        return {
            "accept": "application/vnd.github+json",
            "authorization": f"Bearer {self._config.token}",
            "x-github-api-version": "2022-11-28",
        }
