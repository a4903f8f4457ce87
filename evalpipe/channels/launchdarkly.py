"""LaunchDarkly: the default rule's percentage rollout is the canary's share; a rollback turns the flag off.

Source: LaunchDarkly's REST API, semantic patch, https://launchdarkly.com/docs/api/feature-flags/patch-feature-flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import Field

from evalpipe.channels.acting import EVERYBODY, Acting, ActingConfig, Call, Step
from evalpipe.channels.base import ChannelConfig, channels

_THOUSANDTHS = 1_000
"""Weights are thousandths of a per cent."""


class LaunchDarklyConfig(ActingConfig):
    """The flag, and its two variations."""

    url: str = Field("https://app.launchdarkly.com", description="Of the API.")
    project: str = Field("default", min_length=1, description="The project's key.")
    flag: str = Field(min_length=1, description="The flag's key.")
    flag_environment: str = Field("production", min_length=1, description="The environment's key.")
    canary_variation: str = Field(min_length=1, description="Id of the variation that is the canary.")
    baseline_variation: str = Field(min_length=1, description="Id of the baseline's; it must be the off variation too.")


@channels.register("launchdarkly")
class LaunchDarkly(Acting):
    """Sends one semantic patch, which LaunchDarkly applies as a whole or not at all."""

    Config = LaunchDarklyConfig

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, LaunchDarklyConfig)
        super().__init__(config, config.url)
        self._config = config

    def calls(self, step: Step) -> list[Call]:
        """Off, or the weights and on."""
        config = self._config
        instructions: list[dict[str, Any]] = [{"kind": "turnFlagOff"}]
        if step.percent > 0:
            canary = round(step.percent * _THOUSANDTHS)
            weights = {
                config.canary_variation: canary,
                config.baseline_variation: round(EVERYBODY) * _THOUSANDTHS - canary,
            }
            instructions = [
                {"kind": "updateFallthroughVariationOrRollout", "rolloutWeights": weights},
                {"kind": "turnFlagOn"},
            ]
        patch = {
            "environmentKey": config.flag_environment,
            "comment": step.comment,
            "instructions": instructions,
        }
        path = f"/api/v2/flags/{quote(config.project, safe='')}/{quote(config.flag, safe='')}"
        return [Call("PATCH", path, patch)]

    def headers(self) -> Mapping[str, str]:
        """The token, and that the body is a semantic patch."""
        return {
            "authorization": self._config.token,
            "content-type": "application/json; domain-model=launchdarkly.semanticpatch",
        }
