"""Registries find plug-ins by file and by entry point, and say what is wrong."""

from __future__ import annotations

import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from evalpipe import registry as registry_module
from evalpipe.errors import ConfigError
from evalpipe.registry import Registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a package of plug-ins from sources, and its registry ``plugs.base.things``."""

    def make(**modules: str):
        folder = tmp_path / "plugs"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "base.py").write_text('from evalpipe.registry import Registry\nthings = Registry("thing", "plugs")\n')
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        import plugs.base

        return plugs.base.things

    yield make
    for name in [n for n in sys.modules if n.partition(".")[0] == "plugs"]:
        del sys.modules[name]


ONE = 'from plugs.base import things\n@things.register("one")\nclass One: ...\n'
TWO = ONE.replace("one", "two").replace("One", "Two")


def test_one_file_adds_one_thing(package):
    """Nothing else has to name it."""
    things = package(one=ONE, two=TWO)
    assert list(things) == ["one", "two"]
    assert things.get("one").__name__ == "One"
    assert "two" in things
    assert "three" not in things


def test_a_wrong_name_gets_the_nearest_right_one(package):
    """And where nothing is near, all that there are."""
    things = package(one=ONE, two=TWO)
    with pytest.raises(ConfigError, match="no thing named 'onne'; did you mean 'one'\\?"):
        things.get("onne")
    with pytest.raises(ConfigError, match="there are: one, two"):
        things.get("zebra")


def test_two_things_cannot_have_one_name(package):
    """The message names both."""
    things = package(one=ONE, other=ONE)
    with pytest.raises(ConfigError, match="two things are named 'one'"):
        list(things)


def test_the_same_thing_may_be_registered_again():
    """A module that is imported under two names does no harm."""
    things: Registry[type] = Registry("thing", "evalpipe.scorers")
    assert things.register("int")(things.register("int")(int)) is int


def test_a_file_that_cannot_be_imported_is_told_each_time(package):
    """Half of a family must not look like a whole one the second time."""
    things = package(a_good=ONE, broken="import no_such_module_anywhere\n", two=TWO)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            things.get("one")


def test_another_distribution_adds_its_own_by_entry_point(package, tmp_path: Path, monkeypatch):
    """The entry point names a module that registers when it is imported."""
    things = package(one=ONE)
    (tmp_path / "elsewhere.py").write_text('from plugs.base import things\nthings.register("extra")(dict)\n')
    found = [EntryPoint(name="x", value="elsewhere", group="plugs")]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: found if group == "plugs" else [])
    assert things.get("extra") is dict
    assert list(things) == ["extra", "one"]


def test_a_second_thread_waits_until_all_are_found(package):
    """It must not see the family while it is half there."""
    slow = "import time\ntime.sleep(0.3)\n" + TWO
    things = package(one=ONE, two=slow)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(list(things))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["one", "two"]] * 4


def test_a_plugin_may_ask_its_registry_while_it_is_imported(package):
    """It sees those before it."""
    curious = "from plugs.base import things\nseen = list(things)\n" + TWO.replace(
        "from plugs.base import things\n", ""
    )
    things = package(a_one=ONE, b_curious=curious)
    assert list(things) == ["one", "two"]


@pytest.mark.parametrize("module", ["scorers", "judges", "channels"])
def test_every_family_of_evalpipe_is_whole(module: str):
    """Every registered plug-in has a name in lower case."""
    import importlib

    base = importlib.import_module(f"evalpipe.{module}.base")
    found = next(v for v in vars(base).values() if isinstance(v, Registry))
    names = list(found)
    assert names
    assert all(name == name.lower() for name in names)
