"""From what people write, ``provider:model[@base_url][?option=value&...]``, to a judge."""

from __future__ import annotations

import json
import re
from datetime import date
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from evalpipe.errors import ConfigError
from evalpipe.judges.base import Judge, JudgeConfig, judges
from evalpipe.scorecard.wording import worded
from evalpipe.settings import PREFIX, Settings

_SHAPE = "write provider:model, for example 'openai:MODEL' or 'openai:MODEL@http://127.0.0.1:8080/v1?usd_per_mtok=0'"

_USUAL_PATHS = frozenset({"", "/v1"})


def _prices(value: Any) -> Any:
    if value is None:
        return None
    try:
        prices = tuple(float(part) for part in str(value).split("/"))
    except ValueError:
        prices = ()
    if len(prices) not in {1, 2}:
        raise ValueError("is no price: write it as 0.2/0.75 (input/output), or 0 for a free model")
    return prices * 2 if len(prices) == 1 else prices


def _date(value: Any) -> Any:
    try:
        return None if value is None else date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ValueError("is no date: write it as 2027-03-31") from None


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Options(BaseModel):
    """Base of every provider's options: what stands behind the ``?``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    unversioned: ClassVar[frozenset[str]] = frozenset({"usd_per_mtok", "rpm", "tpm", "usd_per_day", "retires"})
    """Options that cannot change a grade, and so are not part of a judge's version."""

    usd_per_mtok: Annotated[tuple[Price, Price] | None, BeforeValidator(_prices)] = Field(
        default=None,
        description="US dollars for a million input and output tokens, as '0.2/0.75'; '0' for a free model.",
    )
    rpm: Rate | None = Field(
        default=None, description="Requests per minute of this model that all workers together make at the most."
    )
    tpm: Rate | None = Field(
        default=None, description="Tokens per minute, in and out, that all workers together ask of this model."
    )
    usd_per_day: Price | None = Field(
        default=None, description="US dollars that this judge may cost in one day (UTC), over all scorecards."
    )
    retires: Annotated[str | None, BeforeValidator(_date)] = Field(
        default=None, description="The day on which the provider takes the model away, as 2027-03-31."
    )


OptionsT = TypeVar("OptionsT", bound=Options)


def read_options(config: JudgeConfig, model: type[OptionsT]) -> OptionsT:
    """The options of ``config``, checked.

    Raises:
        ConfigError: an option is unknown (the message lists the known ones) or has a wrong value.
    """
    try:
        return model.model_validate(dict(config.options))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        known = list(model.model_fields)
        if name in known:
            said = f"{next(worded(error, model)).message}. It is: {model.model_fields[name].description}"
        else:
            meant = "".join(f"; did you mean {close!r}?" for close in get_close_matches(name, known, n=1))
            said = f"no such option{meant} (the options are: {', '.join(known)})"
        raise ConfigError(f"judge {config.provider}:{config.model}: option {name!r}: {said}") from None


class _Common(Options):
    """What every provider knows, whatever else is there."""

    model_config = ConfigDict(extra="ignore")


def common_options(config: JudgeConfig) -> Options:
    """The options that every provider knows: prices, rates, the cap of a day, the day of its retirement.

    Raises:
        ConfigError: one of them has a wrong value.
    """
    return read_options(config, _Common)


def version_of(config: JudgeConfig, options: Options, base_url: str = "") -> str:
    """``provider:model[@host[/path]][?option=value]``: everything that can change what this judge says, and no secret.

    The path is named where it is not the usual one: a gateway may have other models, and other bills, behind another.
    """
    endpoint = urlsplit(base_url or config.base_url)
    path = endpoint.path.rstrip("/")
    host = (endpoint.hostname or "") + (f":{endpoint.port}" if endpoint.port else "")
    host += path if path not in _USUAL_PATHS else ""
    given = {name: getattr(options, name) for name in sorted(options.model_fields_set - options.unversioned)}
    tail = "&".join(f"{name}={quote(_text(value), safe='')}" for name, value in given.items())
    return f"{config.provider}:{config.model}" + (f"@{host}" if host else "") + (f"?{tail}" if tail else "")


def parse_judge(text: str, *, where: str = "the judge", **settings: Any) -> JudgeConfig:
    """The judge that ``text`` names.

    Args:
        text: ``provider:model``, then ``@`` and a base URL for a compatible endpoint, then ``?`` and options whose
            values are JSON or plain words: ``openai:qwen@http://127.0.0.1:8080/v1?seed=7&usd_per_mtok=0``.
        where: where it was written, for messages.
        settings: further fields of ``JudgeConfig``.

    Raises:
        ConfigError: the text has another shape, or names a provider that does not exist.
    """
    named, _, query = text.strip().partition("?")
    provider, colon, rest = named.partition(":")
    model, url = rest, ""
    if found := re.search(r"@(?=https?://)", rest):
        model, url = rest[: found.start()], rest[found.end() :]
    if not colon:
        raise ConfigError(f"{where} is {text!r}, which has no provider; {_SHAPE}")
    if provider not in judges:
        raise ConfigError(f"{where} is {text!r}: no judge named {provider!r}; {judges.nearest(provider)}")
    if not model:
        raise ConfigError(f"{where} is {text!r}, which names no model; {_SHAPE}")
    if (url and not urlsplit(url).hostname) or re.search(r"@[\w.-]+(:\d+|/)", model):
        raise ConfigError(f"{where} is {text!r}: its base URL must begin with http:// or https:// and a host; {_SHAPE}")
    options = {name: _value(value) for name, value in parse_qsl(query, keep_blank_values=True)}
    settings["base_url"] = url or settings.get("base_url", "")
    return JudgeConfig(provider=provider, model=model, options=options, **settings)


def judge_config(settings: Settings, model: str = "default") -> JudgeConfig:
    """The judge that a scorecard's ``model`` means.

    The endpoint and the key of the settings belong to the default judge: they are never used for another one.

    Raises:
        ConfigError: no default judge is configured, or the name is wrong.
    """
    common: dict[str, Any] = {"concurrency": settings.judge_concurrency, "timeout_s": settings.judge_timeout_s}
    if model != "default":
        return parse_judge(model, where="a scorecard's judge model", **common)
    if not settings.judge:
        raise ConfigError(f"no judge is configured: set {PREFIX}JUDGE; {_SHAPE}")
    return parse_judge(
        settings.judge,
        where=f"{PREFIX}JUDGE",
        base_url=settings.judge_base_url,
        api_key=settings.judge_api_key,
        **common,
    )


def open_judge(config: JudgeConfig) -> Judge:
    """The judge of ``config``; it connects when it is first asked.

    Raises:
        ConfigError: the provider or an option is unknown.
    """
    return judges.get(config.provider)(config)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
