"""The control thread against a real Valkey: switches and budgets hold over processes, Redis's faults hurt no caller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import redis
from stopwatch import assert_quick

from evalpipe.errors import BudgetExceeded, KillSwitchEngaged
from evalpipe.hook.control import KEY, Control
from evalpipe.hook.document import parse
from evalpipe.record import Release
from evalpipe.store import controls
from evalpipe.store.sql import Store

SWITCH = {"name": "stop-agent", "feature": "agent", "engaged": True, "reason": "cost x40", "incident": "https://inc/1"}
BUDGET = {"name": "user-hour", "per": "user", "limit": 10_000, "unit": "tokens", "window": "hour", "lease": 0.02}


def publish(url, revision, prices="", **parts):
    """Write a control document as the server does."""
    document = json.dumps({"schema": 1, "revision": revision, "published_at": time.time(), **parts})
    with redis.Redis.from_url(url) as client:
        client.hset(KEY + "bot", mapping={"revision": revision, "document": document, "prices": prices})


@pytest.fixture
def make_control():
    """A maker of running controls that are stopped when the test ends."""
    made = []

    def make(url, fail="open"):
        made.append(Control(SimpleNamespace(release=Release("bot"), redis_url=url, fail=fail, prices={})))
        made[-1].start()
        return made[-1]

    yield make
    for control in made:
        control.stop(2.0)


def a_call(feature="agent", user="ann"):
    """As much of a call as the control looks at."""
    usage = {
        "cost_usd": None,
        "model": "",
        "output": "",
        "nested": False,
        "input_tokens": None,
        "output_tokens": None,
        "cached_tokens": None,
    }
    return SimpleNamespace(feature=feature, segment="", user_id=user, release=Release("bot"), reserved=None, **usage)


def refused(control, feature="agent"):
    """Whether a call is refused; asking takes no time, whatever Redis does."""
    start = time.perf_counter()
    call = a_call(feature)
    answer = control.refuse(call)
    control.settle(call)
    assert_quick(time.perf_counter() - start, 0.1)
    return answer is not None


def until(condition, timeout_s=60.0):
    """Wait for ``condition``; its seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "it did not happen"
        time.sleep(0.01)
    return time.monotonic() - start


def test_a_switch_is_obeyed_within_a_second_and_released_as_quickly(redis_url, make_control):
    """Set in Redis by one, refused at another."""
    control = make_control(redis_url)
    assert not refused(control)
    publish(redis_url, 1, switches=[SWITCH])
    assert_quick(until(lambda: refused(control)), 1.0)
    assert isinstance(control.refuse(a_call()), KillSwitchEngaged)
    publish(redis_url, 2, switches=[{**SWITCH, "engaged": False}])
    assert_quick(until(lambda: not refused(control)), 1.0)
    assert not control.active


def test_prices_arrive_with_the_document(redis_url, make_control):
    """They are one field of the same hash."""
    publish(redis_url, 1, prices='{"version":"1","models":{"gpt-6-luna":[1,2,0.5]}}')
    control = make_control(redis_url)
    until(lambda: control.cost("gpt-6-luna", 1_000_000, 0, 0) == 1.0)


def test_with_redis_down_at_the_start_the_hooks_fail_mode_holds_until_it_is_up(valkey, make_control):
    """Nobody waits, and a switch is obeyed soon after Redis is there."""
    publish(valkey.url, 1, switches=[SWITCH])
    valkey.stop()
    controls = {fail: make_control(valkey.url, fail) for fail in ("open", "closed")}
    time.sleep(0.6)
    assert {fail: refused(control, "chat") for fail, control in controls.items()} == {"open": False, "closed": True}
    valkey.start()
    assert_quick(until(lambda: all(refused(control) for control in controls.values())), 2.0)
    assert_quick(until(lambda: not any(refused(control, "chat") for control in controls.values())), 2.0)


def test_a_switch_stays_engaged_when_redis_is_killed_and_comes_back_empty(valkey, make_control):
    """What is missing releases nothing; what is written anew does."""
    publish(valkey.url, 7, switches=[SWITCH])
    control = make_control(valkey.url)
    until(lambda: refused(control))
    valkey.kill()
    time.sleep(0.4)
    assert refused(control)
    valkey.start(persist=False)
    time.sleep(0.8)
    assert refused(control)
    publish(valkey.url, 8)
    assert_quick(until(lambda: not refused(control)), 2.0)


def test_an_empty_redis_counts_as_unreachable_for_the_maximum_staleness(redis_url, make_control):
    """An open switch lets calls pass after it, a closed one refuses even where it was not engaged."""
    closed = {**SWITCH, "name": "closed", "feature": "chat", "engaged": False, "fail": "closed", "max_staleness_s": 1}
    publish(redis_url, 1, switches=[{**SWITCH, "max_staleness_s": 1}, closed])
    control = make_control(redis_url)
    until(lambda: refused(control))
    assert not refused(control, "chat")
    with redis.Redis.from_url(redis_url) as client:
        client.delete(KEY + "bot")
    took = until(lambda: not refused(control))
    assert took > 0.5
    assert_quick(took, 2.0)
    assert refused(control, "chat")


def test_while_redis_hangs_nobody_waits_and_afterwards_the_new_document_is_obeyed(valkey, make_control):
    """SIGSTOP: connections are taken, and no answer comes."""
    publish(valkey.url, 1, switches=[SWITCH], budgets=[BUDGET])
    control = make_control(valkey.url)
    until(lambda: refused(control))
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert refused(control)
            assert not refused(control, "chat")
            time.sleep(0.01)
    finally:
        os.kill(valkey.pid, signal.SIGCONT)
    publish(valkey.url, 2)
    assert_quick(until(lambda: not refused(control)), 2.5)


def test_a_document_that_cannot_be_read_changes_nothing_and_is_told_once(redis_url, make_control, caplog):
    """Garbage, then one of a newer schema, then a good one."""
    publish(redis_url, 1, switches=[SWITCH])
    control = make_control(redis_url)
    until(lambda: refused(control))
    with redis.Redis.from_url(redis_url) as client:
        client.hset(KEY + "bot", mapping={"revision": "2", "document": b"\xff{"})
        until(lambda: caplog.records)
        time.sleep(0.5)
        assert refused(control)
        assert len(caplog.records) == 1
        client.hset(KEY + "bot", mapping={"revision": "3", "document": '{"schema": 2}'})
        until(lambda: len(caplog.records) > 1)
        time.sleep(0.5)
    assert refused(control)
    assert len(caplog.records) == 2
    publish(redis_url, 4)
    until(lambda: not refused(control))


def test_the_document_that_the_store_makes_is_what_a_hook_reads(migrated_sqlite_url):
    """One control of each kind, as people set them."""
    store = Store(migrated_sqlite_url)
    given = {
        ("switch", "stop-agent"): {"feature": "agent", "incident": "https://inc/1", "fail": "closed"},
        ("budget", "user-day"): {"per": "user", "limit": 0.5, "unit": "usd", "window": "day"},
        ("weights", "refund-prompt"): {
            "weights": {"control": 80, "canary": 20}, "baseline": "control", "features": ["refunds"], "sample": 0.5,
            "shadow": {"rate": 0.1, "per_minute": 60},
        },
        ("rate", "chat"): {"feature": "chat", "rate": 0.2},
    }  # fmt: skip
    now = datetime.now(UTC)
    with store.begin() as tx:
        for (kind, name), fields in given.items():
            controls.put(tx, "bot", kind, name, fields, actor="ada", reason="cost x40", now=now)
        document = parse(json.dumps(controls.document(tx, "bot", now)))
    store.close()
    assert document.revision == 4
    (switch,), (budget,) = document.switches, document.budgets
    assert (switch.name, switch.feature, switch.engaged, switch.closed) == ("stop-agent", "agent", True, True)
    assert (switch.reason, switch.incident) == ("cost x40", "https://inc/1")
    assert (budget.units, budget.lease, budget.reason) == (500_000, 10_000, "cost x40")
    rollout = document.rollout("refund-prompt", "production")
    assert rollout is not None
    assert (rollout.weights, rollout.baseline, rollout.shadow) == (
        (("canary", 20), ("control", 80)),
        "control",
        (0.1, 60),
    )
    assert [rate for _, _, _, rate, _ in document.rates] == [0.5, 0.125, 0.1, 0.2]


FORKS = """
import os, sys, time
from evalpipe import Hook
from evalpipe.errors import KillSwitchEngaged

def refused():
    try:
        with hook.call("agent"):
            return False
    except KillSwitchEngaged:
        return True

def wait(state):
    deadline = time.monotonic() + 60
    while refused() != state:
        assert time.monotonic() < deadline, state
        time.sleep(0.01)

hook = Hook("bot", redis_url=sys.argv[1], enforce=True, sample_rate=0.0)
wait(True)
child = os.fork()
if not child:
    assert refused(), "what the parent knew holds at once"
print("engaged", flush=True)
wait(False)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_obeys_at_once_and_pulls_for_itself(redis_url):
    """The parent's thread is not in the child; the switch is released in both."""
    publish(redis_url, 1, switches=[SWITCH])
    command = [sys.executable, "-c", FORKS, redis_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["engaged\n"] * 2
        publish(redis_url, 2, switches=[{**SWITCH, "engaged": False}])
        assert process.wait(60) == 0


SPENDS = """
import json, random, sys, threading, time
from evalpipe import Hook
from evalpipe.errors import BudgetExceeded

hook = Hook("bot", redis_url=sys.argv[1], enforce=True, sample_rate=0.0)
spent, beyond, ahead, refused, lock = 0, 0, 0, 0, threading.Lock()

def work(seed):
    global spent, beyond, ahead, refused
    chance = random.Random(seed)
    while time.monotonic() < end or refused < 20:
        tokens = chance.randrange(20, 60)
        try:
            with hook.call("chat", user_id="ann") as call:
                account, estimate = call.reserved[0]
                if account.used > account.leased:
                    ahead = max(200, account.left // 8, estimate)
                time.sleep(0.004)
                call.input_tokens, call.output_tokens = tokens, 0
        except BudgetExceeded:
            refused += 1
            time.sleep(0.02)
            continue
        with lock:
            spent, beyond = spent + tokens, beyond + max(0, tokens - estimate)

with hook.call("chat"):
    pass
while hook._process.control.document is None:
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + 1.2
threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
hook.shutdown()
print(json.dumps([spent, beyond, ahead]))
"""


def test_several_processes_that_hammer_one_budget_stay_within_the_stated_bound(redis_url):
    """The limit is reached, and exceeded by no more than what ran ahead and what calls took more than expected.

    Four processes of three threads, calls of 20 to 60 tokens, leases of 200.
    """
    publish(redis_url, 1, budgets=[BUDGET])
    until(lambda: time.time() % 3600 < 3570)
    command = [sys.executable, "-c", SPENDS, redis_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate(timeout=100)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    spent, beyond, ahead = (sum(column) for column in zip(*told, strict=True))
    assert 0.98 * BUDGET["limit"] < spent <= BUDGET["limit"] + ahead + beyond
    with redis.Redis.from_url(redis_url) as client:
        (key,) = client.scan_iter("evalpipe.budget:bot:user-hour:*")
        assert int(client.get(key)) == spent, "what was not spent was given back, what was, is booked"


def test_a_budget_is_refused_and_passes_again_when_its_limit_is_raised(redis_url, make_control):
    """The next document says so."""
    publish(redis_url, 1, budgets=[{**BUDGET, "limit": 100}])
    control = make_control(redis_url)
    until(lambda: control.document is not None)
    call = a_call()
    assert control.refuse(call) is None
    call.input_tokens = 500
    control.settle(call)
    until(lambda: isinstance(control.refuse(a_call()), BudgetExceeded))
    publish(redis_url, 2, budgets=[BUDGET])
    until(lambda: control.refuse(a_call()) is None)
