"""The weights as flags: for flagd over HTTP, and as an OpenFeature provider in the process; one answer everywhere."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from openfeature import api as openfeature
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from evalpipe import Hook, Release
from evalpipe.api.app import make_api
from evalpipe.hook.integrations.openfeature import EvalpipeProvider
from evalpipe.settings import Settings
from evalpipe.store import controls
from evalpipe.wiring import Wiring, now

UNITS = [f"user-{i}" for i in range(1_000)]


class Server:
    """The API on a port, with its control plane."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.wiring = Wiring(settings)
        self.url = url

    def put(self, weights: dict[str, int], name: str = "refund", **fields: Any) -> None:
        """Set weights, and publish them."""
        with self.wiring.store.begin() as tx:
            body = {"weights": weights, **fields}
            controls.put(tx, "desk", "weights", name, body, actor="ada", reason="a test", now=now())
        self.wiring.publish.one("desk", now())

    def get(self, path: str = "/v1/flags/desk", tag: str = "", key: str = "key-one") -> tuple[int, str, bytes]:
        """Status, ETag and body of an answer, asked for as flagd does."""
        headers = {"Authorization": f"Bearer {key}"} | ({"If-None-Match": tag} if tag else {})
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as answer:
                return answer.status, answer.headers["ETag"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("ETag", ""), error.read()

    def flagd(self, path: str = "/v1/flags/desk") -> FlagdCore:
        """The evaluator of flagd itself, with the definitions that this server gives."""
        core = FlagdCore()
        core.set_flags(self.get(path)[2].decode())
        return core


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The API's URL, while uvicorn serves it on a free port."""
    server = uvicorn.Server(uvicorn.Config(make_api(settings), port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture
def server(migrated_url: str, redis_url: str) -> Iterator[Server]:
    """A server over each database."""
    settings = Settings(database_url=migrated_url, redis_url=redis_url, api_keys=("key-one",))
    with serving(settings) as url:
        made = Server(settings, url)
        yield made
        made.wiring.close()


@pytest.fixture
def sqlite_server(migrated_sqlite_url: str, redis_url: str) -> Iterator[Server]:
    """A server over SQLite, for what does not depend on the database."""
    settings = Settings(database_url=migrated_sqlite_url, redis_url=redis_url, api_keys=("key-one",))
    with serving(settings) as url:
        made = Server(settings, url)
        yield made
        made.wiring.close()


def split(core: FlagdCore, name: str = "refund") -> dict[str, str]:
    """The variant of every unit, by flagd."""
    return {unit: core.resolve_string_value(name, "?", EvaluationContext(unit)).value for unit in UNITS}


def test_flagd_polls_definitions_and_hears_when_nothing_changed(server: Server) -> None:
    """A strong ETag that changes with these weights only; closed without the key."""
    server.put({"canary": 5, "baseline": 95})
    status, tag, body = server.get()
    flag = json.loads(body)["flags"]["refund"]
    assert (status, flag["state"], flag["defaultVariant"]) == (200, "ENABLED", "baseline")
    assert flag["variants"] == {"canary": "canary", "baseline": "baseline"}
    assert flag["targeting"]["if"][1]["fractional"][1:] == [["canary", 5], ["baseline", 95]]
    assert tag.startswith('"')
    assert server.get(tag=tag) == (304, tag, b"")
    assert server.get(tag=f'"other", W/{tag}')[0] == 304
    with server.wiring.store.begin() as tx:
        controls.put(tx, "desk", "switch", "stop", {}, actor="ada", reason="a test", now=now())
    assert server.get(tag=tag)[0] == 304
    server.put({"canary": 20, "baseline": 80})
    assert server.get(tag=tag)[0] == 200
    assert server.get(key="wrong")[0] == 401
    assert json.loads(server.get("/v1/flags/unknown")[2])["flags"] == {}


def test_flagd_splits_by_the_weights_and_nobody_leaves_a_canary_that_grows(sqlite_server: Server) -> None:
    """By flagd's own evaluator; without a targeting key everybody is in the baseline."""
    sqlite_server.put({"canary": 5, "baseline": 95})
    core = sqlite_server.flagd()
    before = split(core)
    assert 20 <= Counter(before.values())["canary"] <= 90
    assert core.resolve_string_value("refund", "?", EvaluationContext()).value == "baseline"
    sqlite_server.put({"canary": 30, "baseline": 70})
    after = split(sqlite_server.flagd())
    assert 240 <= Counter(after.values())["canary"] <= 360
    assert all(after[unit] == "canary" for unit, variant in before.items() if variant == "canary")


def test_a_rollback_reaches_flagd_as_a_weight_of_nothing(sqlite_server: Server) -> None:
    """The flag stays enabled: a disabled one would give the application's own default."""
    sqlite_server.put({"canary": 100, "baseline": 0})
    assert set(split(sqlite_server.flagd()).values()) == {"canary"}
    with sqlite_server.wiring.store.begin() as tx:
        controls.roll_back(tx, "desk", "production", "canary", reason="worse", now=now())
    assert set(split(sqlite_server.flagd()).values()) == {"baseline"}


def test_an_environment_gets_its_own_weights_before_those_for_all(sqlite_server: Server) -> None:
    """And a staging split never reaches a flagd that did not ask for staging."""
    sqlite_server.put({"canary": 0, "baseline": 1})
    sqlite_server.put({"canary": 1, "baseline": 0}, environment="staging")
    sqlite_server.put({"canary": 1, "baseline": 0}, name="only", environment="staging")
    assert set(split(sqlite_server.flagd()).values()) == {"baseline"}
    staging = sqlite_server.flagd("/v1/flags/desk?environment=staging")
    assert set(split(staging).values()) == set(split(staging, "only").values()) == {"canary"}
    assert set(json.loads(sqlite_server.get()[2])["flags"]) == {"refund"}


# OpenFeature, in the application's process


@pytest.fixture
def hook(redis_url: str) -> Iterator[Hook]:
    """A hook of the service, in production."""
    made = Hook("desk", Release(environment="production"), redis_url=redis_url)
    yield made
    made.shutdown()


def provided(hook: Hook) -> Any:
    """The SDK's client with our provider."""
    openfeature.set_provider_and_wait(EvalpipeProvider(hook))
    return openfeature.get_client()


def eventually(check: Any, timeout_s: float = 60.0) -> None:
    """Wait until ``check()`` is true."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_provider_gives_the_variant_that_hook_and_flagd_give(sqlite_server: Server, hook: Hook) -> None:
    """One unit, one arm, whoever is asked; and it follows the weights within seconds."""
    sqlite_server.put({"canary": 30, "other": 20, "baseline": 50})
    client = provided(hook)
    with hook.call("any"):
        pass
    eventually(lambda: client.get_string_details("refund", "?").error_code is None)
    by_flagd = split(sqlite_server.flagd())
    assert set(by_flagd.values()) == {"canary", "other", "baseline"}
    for unit in UNITS[:300]:
        found = client.get_string_details("refund", "?", EvaluationContext(unit))
        assert (found.value, found.variant, found.reason) == (by_flagd[unit], by_flagd[unit], Reason.SPLIT)
        assert hook.variant("refund", unit) == by_flagd[unit]
    nobody = client.get_string_details("refund", "?")
    assert (nobody.value, nobody.reason) == ("baseline", Reason.DEFAULT)
    sqlite_server.put({"canary": 0, "other": 0, "baseline": 1})
    eventually(lambda: {hook.variant("refund", unit) for unit in UNITS} == {"baseline"})
    openfeature.clear_providers()


def test_the_provider_says_what_it_does_not_have(sqlite_server: Server, hook: Hook) -> None:
    """The application's default, with the reason; other kinds of flags than names are mismatches."""
    client = provided(hook)
    with hook.call("any"):
        pass
    unknown = client.get_string_details("refund", "mine", EvaluationContext("user-1"))
    assert (unknown.value, unknown.error_code) == ("mine", ErrorCode.FLAG_NOT_FOUND)
    sqlite_server.put({"canary": 1, "baseline": 1})
    eventually(lambda: client.get_string_details("refund", "mine", EvaluationContext("user-1")).error_code is None)
    assert client.get_string_details("refun", "mine").error_code == ErrorCode.FLAG_NOT_FOUND
    for found in (
        client.get_boolean_details("refund", True),
        client.get_integer_details("refund", 1),
        client.get_float_details("refund", 1.0),
        client.get_object_details("refund", {}),
    ):
        assert found.error_code == ErrorCode.TYPE_MISMATCH
    openfeature.clear_providers()


def test_a_hook_that_is_off_gives_the_applications_defaults() -> None:
    """Without a queue there is no control plane."""
    client = provided(Hook("desk"))
    assert client.get_string_value("refund", "mine", EvaluationContext("user-1")) == "mine"
    openfeature.clear_providers()
