"""What is installed: the tests run against the built wheel, and the bare package brings nothing."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import evalpipe
from evalpipe.api.pages import page
from evalpipe.cli.up import shipped_scorecards
from evalpipe.judges.corpus import attempts
from evalpipe.store import migrate


def test_the_bare_package_needs_nothing() -> None:
    """It goes into other people's applications."""
    needed = importlib.metadata.requires("evalpipe") or []
    bare = [re.split(r"[<>=!~ \[;]", line)[0] for line in needed if "extra ==" not in line]
    assert bare == []


def test_importing_the_package_loads_the_standard_library_only() -> None:
    """In a fresh interpreter, transitively."""
    code = (
        "import sys; before = set(sys.modules); import evalpipe; "
        "roots = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(roots - set(sys.stdlib_module_names) - {'evalpipe'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_migrations_and_scorecards_come_with_the_package() -> None:
    """A wheel without them could not start."""
    assert (migrate.folder() / "env.py").exists()
    assert {"support-bot.yaml", "rag-answer.yaml", "json-extraction.yaml", "agent-tools.yaml"} <= {
        path.name for path in shipped_scorecards().iterdir()
    }


def test_the_labelling_page_and_the_injection_corpus_come_with_the_package() -> None:
    """Neither is a module, so a build could forget them."""
    assert "<script>" in page("label.html")[0]
    assert len(attempts()) > 100


def test_the_public_names_are_these() -> None:
    """A name that appears or disappears here is a change for every application."""
    assert evalpipe.__all__ == [
        "BudgetExceeded", "Hook", "Keep", "KillSwitchEngaged", "Rate", "Redaction", "Release", "Sampling",
        "__version__", "read_feedback", "read_scores", "verify_signature",
    ]  # fmt: skip
    for name in evalpipe.__all__:
        assert getattr(evalpipe, name) is not None
    assert evalpipe.__version__ == importlib.metadata.version("evalpipe")
    assert Path(evalpipe.__file__).with_name("py.typed").exists()
