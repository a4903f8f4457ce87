"""Options: code, then environment, then default; a clear error at start-up, and nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evalpipe import Hook, Release
from evalpipe.errors import ConfigError

URL = "redis://localhost:6379/0"


def test_the_environment_fills_in_what_the_code_leaves_open(monkeypatch):
    """A deployment names variant and environment, the code its versions; what the code says wins."""
    monkeypatch.setenv("EVALPIPE_REDIS_URL", URL)
    monkeypatch.setenv("EVALPIPE_SERVICE", "from-env")
    monkeypatch.setenv("EVALPIPE_RELEASE", '{"variant": "canary", "prompt": "p7"}')
    monkeypatch.setenv("EVALPIPE_ENVIRONMENT", "staging")
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", '{"canary": 1, "baseline": 0.02}')
    monkeypatch.setenv("EVALPIPE_FLUSH_INTERVAL_S", "0.5")
    hook = Hook(release=Release(model="gpt-5", prompt="p8"))
    assert hook.enabled
    assert hook.release == Release(
        service="from-env", variant="canary", environment="staging", model="gpt-5", prompt="p8"
    )
    with hook.call() as call:
        assert call.sampled
    assert Hook("named").release.service == "named"
    monkeypatch.setenv("EVALPIPE_RELEASE", "shadow")
    assert Hook().release.variant == "shadow"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"service": ""}, "service"),
        ({"redis_url": "http://localhost"}, "redis://"),
        ({"redis_url": None, "enabled": True}, "EVALPIPE_REDIS_URL"),
        ({"sample_rate": 5}, "sample rate"),
        ({"capture": "half"}, "capture"),
        ({"redact": "yes"}, "redact"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"max_record_bytes": "1k"}, "max_record_bytes"),
        ({"flush_interval_s": 0.0}, "flush_interval_s"),
        ({"release": {"variant": "canary"}}, "Release"),
        ({"release": Release(service="other")}, "other"),
        ({"release": Release(model=4)}, "model.*4"),
        ({"release": Release(prompt=None)}, "prompt.*None"),
        ({"release": Release(index="a\x00b")}, "index"),
        ({"service": 7}, "service.*7"),
    ],
)
def test_an_option_that_cannot_work_is_a_clear_error_at_start_up(options, names):
    """The message names the option."""
    with pytest.raises(ConfigError, match=names):
        Hook(**{"service": "svc", "redis_url": URL, **options})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ENABLED", "maybe"),
        ("SAMPLE_RATE", "five percent"),
        ("RELEASE", "{oops"),
        ("RELEASE", '{"modle": "x"}'),
        ("FLUSH_INTERVAL_S", "soon"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named_with_its_value(monkeypatch, variable, value):
    """Whoever set it finds it at once."""
    monkeypatch.setenv(f"EVALPIPE_{variable}", value)
    with pytest.raises(ConfigError, match=f"EVALPIPE_{variable}"):
        Hook("svc", redis_url=URL)


def test_importing_evalpipe_loads_nothing_but_the_standard_library():
    """In a fresh interpreter, also after making a hook: redis comes with the first message, in its own thread."""
    code = (
        "import sys; before = set(sys.modules); import evalpipe;"
        "evalpipe.Hook('svc', redis_url='redis://localhost');"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'evalpipe'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
