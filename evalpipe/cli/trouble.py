"""What goes wrong around evalpipe, in words: no data here, no Redis, no database."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from redis import RedisError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from evalpipe.errors import ConfigError
from evalpipe.settings import PREFIX, Settings, masked, redis_of
from evalpipe.store import migrate
from evalpipe.store.sql import Store, is_passing
from evalpipe.wiring import Wiring

MIGRATE = "run `evalpipe migrate`"


def opened() -> Wiring:
    """The wiring, for commands that need data: they make neither a home nor an empty database.

    Raises:
        ConfigError: there is no database.
    """
    wiring = Wiring()
    if nothing := no_database(wiring.settings):
        raise ConfigError(nothing)
    return wiring


def no_database(settings: Settings) -> str:
    """Says that there is no file of the SQLite database; "" if there is one, and for other databases."""
    try:
        url = make_url(settings.database_url)
    except ArgumentError:
        return ""  # the store says what is wrong with it
    file = url.database if url.get_backend_name() == "sqlite" else None
    if not file or file.startswith((":memory:", "file:")) or Path(file).exists():
        return ""
    return _no_data(settings)


def redis_advice(settings: Settings) -> str:
    """What to do where Redis does not answer."""
    if not os.environ.get(PREFIX + "REDIS_URL") and settings.redis_url == redis_of(settings.home):
        home = settings.home.absolute()
        return f"`evalpipe up` is not running in {home}: start it, or set EVALPIPE_HOME or EVALPIPE_REDIS_URL"
    return "start it, or set EVALPIPE_REDIS_URL; `evalpipe up` starts one of its own"


def in_words(error: Exception) -> str:
    """What an error of Redis or the database means, and what to do; "" if it is none, or a mistake of ours."""
    settings = Settings.from_env()
    if isinstance(error, RedisError):
        return f"Redis does not answer ({error}): {redis_advice(settings)}"
    if not isinstance(error, DBAPIError):
        return ""
    if is_passing(error):
        return _no_answer(settings, error)
    return _not_migrated(settings)


def _not_migrated(settings: Settings) -> str:
    store = Store(settings.database_url)
    try:
        at, wanted = migrate.current(store), migrate.head()
    except DBAPIError as error:
        return _no_answer(settings, error)
    finally:
        store.close()
    if at is None:
        return _no_data(settings)
    return "" if at == wanted else f"{store.url} is at revision {at}, this code wants {wanted}: {MIGRATE}"


def _no_answer(settings: Settings, error: DBAPIError) -> str:
    where, why = masked(settings.database_url), (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
    return f"the database {where} cannot be used ({why}): start it, or set EVALPIPE_DATABASE_URL"


def _no_data(settings: Settings) -> str:
    if os.environ.get(PREFIX + "DATABASE_URL"):
        return f"no evalpipe data in {masked(settings.database_url)}: {MIGRATE}, or set EVALPIPE_DATABASE_URL"
    home = settings.home.absolute()
    return f"no evalpipe data in {home}: run `evalpipe up` here, set EVALPIPE_HOME, or {MIGRATE}"


def whoami() -> str:
    """The name of this process's user, for what is kept of who did something.

    Raises:
        ConfigError: it has none.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ConfigError("this process's user has no name: say who you are with --actor") from None
