"""Everything that can be set from outside, read once from ``EVALPIPE_*`` variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from evalpipe.errors import ConfigError

PREFIX = "EVALPIPE_"
MOST = 1e9
"""No setting makes sense above it."""
REDIS_FILE = "redis.url"
"""In the home: the Redis of the ``evalpipe up`` that runs there, or ran last."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of workers, API and command line (the hook has its own few).

    Attributes:
        home: folder of the embedded default's files.
        database_url: SQLAlchemy URL; PostgreSQL or SQLite.
        redis_url: the queue that hooks write to and Celery reads; if not set, that of ``evalpipe up`` in the home.
        scorecards: folder of the scorecard files.
        judge: ``provider:model`` that scorecards mean by ``default``; "" means that no judge is configured, and judged
            criteria are skipped with that reason.
        judge_base_url: an OpenAI- or Anthropic-compatible endpoint; "" means the provider's own.
        judge_api_key: "" means the provider's own variable.
        judge_concurrency: judge calls in flight per worker process at the most.
        judge_timeout_s: for one attempt.
        judge_usd_per_day: what all judges together may cost in a UTC day; None for no bound.
        webhook_url: where decisions go; "" means nowhere.
        webhook_secrets: ``whsec_...`` keys; deliveries are signed with each, so that keys can be rotated.
        channels: a YAML file of further channels that decisions go to; None for none.
        rollouts: a file or folder of ``rollouts:`` that change events start; None for none.
        alerts: a file or folder of ``alerts:``, with rules and who is told; None for none.
        url: where people reach the API, for links in notifications; "" means no links.
        fingerprints: a file or folder of ``fingerprints:``, prompts by which a model is watched; None for none.
        api_keys: keys that the API takes; without any it refuses everything but health.
        api_intake_keys: keys for applications: they open only what takes spans, records, feedback and alerts in.
        api_label_keys: keys for people who label: they open only what the labelling page needs.
        api_gate_keys: keys for deployers and flagd: they open only whether a canary may go on, and its weights.
        drain_s: a judge task claims no new work after this long; the next task goes on.
        visibility_timeout_s: Redis gives a message that nobody acknowledged for this long to another worker. More than
            the longest task takes: less would only mean work done twice, which changes nothing.
        lease: how long a worker owns the work it claimed.
        attempts: how often work is tried before it is kept as an error.
        retention: how long records, scores and grades are kept.
        rollups: how long sums of scores are kept, by level: ``minute`` and ``hour``; those of days are kept for ever.
        max_record_bytes: a larger record goes to the dead letters.
        source: the ``source`` of CloudEvents.
        anchors_every_s: how often each judge grades its anchors again.
        otlp_endpoint: base URL of an OpenTelemetry endpoint that gets an event for each score; "" for none.
        otlp_headers: sent with each request to it, by name.
        prices: a file of prices for a million tokens, which win over the list that is installed; None for none.
        embeddings: what makes embeddings of inputs and outputs: ``static``, ``sentence-transformers:MODEL`` or
            ``openai:MODEL``.
        embeddings_base_url: an API in the form of OpenAI's; "" means the provider's own.
        embeddings_api_key: "" means the provider's own variable.
    """

    home: Path = Path(".evalpipe")
    database_url: str = field(default="", repr=False)
    redis_url: str = field(default="redis://localhost:6379/0", repr=False)
    scorecards: Path = Path("scorecards")
    judge: str = ""
    judge_base_url: str = ""
    judge_api_key: str = field(default="", repr=False)
    judge_concurrency: int = 32
    judge_timeout_s: float = 60.0
    judge_usd_per_day: float | None = None
    webhook_url: str = ""
    webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    channels: Path | None = None
    rollouts: Path | None = None
    alerts: Path | None = None
    url: str = ""
    fingerprints: Path | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_intake_keys: tuple[str, ...] = field(default=(), repr=False)
    api_label_keys: tuple[str, ...] = field(default=(), repr=False)
    api_gate_keys: tuple[str, ...] = field(default=(), repr=False)
    drain_s: float = 30.0
    visibility_timeout_s: float = 600.0
    lease: timedelta = timedelta(seconds=120)
    attempts: int = 5
    retention: timedelta = timedelta(days=90)
    rollups: Mapping[str, timedelta] = field(
        default_factory=lambda: {"minute": timedelta(days=14), "hour": timedelta(days=400)}
    )
    max_record_bytes: int = 262_144
    source: str = "/evalpipe"
    anchors_every_s: float = 3600.0
    otlp_endpoint: str = ""
    otlp_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    prices: Path | None = None
    embeddings: str = "static"
    embeddings_base_url: str = ""
    embeddings_api_key: str = field(default="", repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings in ``environ`` (the process's own by default).

        Raises:
            ConfigError: a value does not parse; the message names the variable and the value.
        """
        env = os.environ if environ is None else environ
        default = cls()
        home = Path(env.get(PREFIX + "HOME") or default.home)
        return cls(
            home=home,
            database_url=env.get(PREFIX + "DATABASE_URL") or f"sqlite:///{home / 'evalpipe.db'}",
            redis_url=env.get(PREFIX + "REDIS_URL") or redis_of(home) or default.redis_url,
            scorecards=Path(env.get(PREFIX + "SCORECARDS") or default.scorecards),
            judge=env.get(PREFIX + "JUDGE", ""),
            judge_base_url=env.get(PREFIX + "JUDGE_BASE_URL", ""),
            judge_api_key=env.get(PREFIX + "JUDGE_API_KEY", ""),
            judge_concurrency=_whole(env, "JUDGE_CONCURRENCY", 32, least=1),
            judge_timeout_s=_number(env, "JUDGE_TIMEOUT_S", 60.0, least=0.1),
            judge_usd_per_day=_optional(env, "JUDGE_USD_PER_DAY", least=0),
            webhook_url=env.get(PREFIX + "WEBHOOK_URL", ""),
            webhook_secrets=tuple(env.get(PREFIX + "WEBHOOK_SECRET", "").split()),
            channels=_path(env, "CHANNELS"),
            rollouts=_path(env, "ROLLOUTS"),
            alerts=_path(env, "ALERTS"),
            url=env.get(PREFIX + "URL", ""),
            fingerprints=_path(env, "FINGERPRINTS"),
            api_keys=tuple(env.get(PREFIX + "API_KEYS", "").split()),
            api_intake_keys=tuple(env.get(PREFIX + "API_INTAKE_KEYS", "").split()),
            api_label_keys=tuple(env.get(PREFIX + "API_LABEL_KEYS", "").split()),
            api_gate_keys=tuple(env.get(PREFIX + "API_GATE_KEYS", "").split()),
            drain_s=_number(env, "DRAIN_S", 30.0, least=0.1),
            visibility_timeout_s=_number(env, "VISIBILITY_TIMEOUT_S", 600.0, least=1),
            lease=timedelta(seconds=_number(env, "LEASE_S", 120.0, least=1)),
            attempts=_whole(env, "ATTEMPTS", 5, least=1),
            retention=timedelta(days=_number(env, "RETENTION_DAYS", 90.0, least=0, most=36_500)),
            rollups={
                "minute": timedelta(days=_number(env, "ROLLUP_MINUTE_DAYS", 14.0, least=2, most=36_500)),
                "hour": timedelta(days=_number(env, "ROLLUP_HOUR_DAYS", 400.0, least=30, most=36_500)),
            },
            max_record_bytes=_whole(env, "MAX_RECORD_BYTES", 262_144, least=1024),
            source=env.get(PREFIX + "SOURCE") or default.source,
            anchors_every_s=_number(env, "ANCHORS_EVERY_S", 3600.0, least=1),
            otlp_endpoint=env.get(PREFIX + "OTLP_ENDPOINT", ""),
            otlp_headers=_pairs(env, "OTLP_HEADERS"),
            prices=_path(env, "PRICES"),
            embeddings=env.get(PREFIX + "EMBEDDINGS") or default.embeddings,
            embeddings_base_url=env.get(PREFIX + "EMBEDDINGS_BASE_URL", ""),
            embeddings_api_key=env.get(PREFIX + "EMBEDDINGS_API_KEY", ""),
        )


def redis_of(home: Path) -> str:
    """The URL of the Redis that ``evalpipe up`` noted in this home; "" if there is none.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    path = home / REDIS_FILE
    try:
        return path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): set EVALPIPE_REDIS_URL or EVALPIPE_HOME") from None


def masked(url: str) -> str:
    """``url`` to be shown: without its password. What looks like one is hidden too."""
    import re

    shown = re.sub(r"(://[^:/@]*:).*@", r"\1***@", url)
    return re.sub(r"(?i)([?&](?:ssl)?passw(?:or)?d=)[^&]*", r"\1***", shown)


def _number(env: Mapping[str, str], name: str, default: float, *, least: float, most: float = MOST) -> float:
    text = env.get(PREFIX + name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{PREFIX}{name} must be a number, not {text!r}") from None
    if not least <= value <= most:
        raise ConfigError(f"{PREFIX}{name} must be from {least:g} to {most:g}, not {text!r}")
    return value


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(env[PREFIX + name]) if env.get(PREFIX + name) else None


def _pairs(env: Mapping[str, str], name: str) -> dict[str, str]:
    """As OpenTelemetry's own variables write headers: ``name=value,name=value``."""
    found = {}
    for part in filter(None, env.get(PREFIX + name, "").split(",")):
        key, given, value = part.partition("=")
        if not given or not key.strip():
            raise ConfigError(f"{PREFIX}{name} must be name=value,name=value; one part has no '='")
        found[key.strip().lower()] = value.strip()
    return found


def _optional(env: Mapping[str, str], name: str, *, least: float) -> float | None:
    return _number(env, name, 0.0, least=least) if env.get(PREFIX + name) else None


def _whole(env: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    value = _number(env, name, default, least=least)
    if value != int(value):
        raise ConfigError(f"{PREFIX}{name} must be a whole number, not {env[PREFIX + name]!r}")
    return int(value)
