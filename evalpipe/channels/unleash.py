"""Unleash: the share of a gradual rollout is the canary's; a rollback turns the flag off in its environment.

Source: Unleash's admin API, https://docs.getunleash.io/reference/api/unleash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from urllib.parse import quote

from pydantic import Field

from evalpipe.channels.acting import Acting, ActingConfig, Call, Step
from evalpipe.channels.base import ChannelConfig, channels


class UnleashConfig(ActingConfig):
    """The flag, and the strategy of it that holds the share."""

    url: str = Field(description="Of Unleash, for example https://unleash.example.com.")
    project: str = Field("default", min_length=1, description="The flag's project.")
    feature: str = Field(min_length=1, description="The flag: on means canary.")
    flag_environment: str = Field("production", min_length=1, description="As Unleash names it.")
    strategy_id: str = Field(min_length=1, description="Of the flag's gradual rollout strategy in that environment.")


@channels.register("unleash")
class Unleash(Acting):
    """Sets the ``rollout`` of one strategy by JSON Patch, which leaves its constraints and segments as they are.

    The flag is turned on after its share was set, never before. Shares are whole per cents: a fraction is rounded up.
    """

    Config = UnleashConfig

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, UnleashConfig)
        super().__init__(config, config.url)
        self._config = config

    def calls(self, step: Step) -> list[Call]:
        """Off, or the share and then on."""
        config = self._config
        place = (
            f"/api/admin/projects/{quote(config.project, safe='')}/features/{quote(config.feature, safe='')}"
            f"/environments/{quote(config.flag_environment, safe='')}"
        )
        if step.percent == 0:
            return [Call("POST", f"{place}/off")]
        share = [{"op": "replace", "path": "/parameters/rollout", "value": str(math.ceil(step.percent))}]
        return [
            Call("PATCH", f"{place}/strategies/{quote(config.strategy_id, safe='')}", share),
            Call("POST", f"{place}/on"),
        ]

    def headers(self) -> Mapping[str, str]:
        """The token, as it is."""
        return {"authorization": self._config.token}
