"""The pages for people in a real browser, where there is one."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import pytest

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and importlib.util.find_spec("playwright")),
    reason="needs the program chromium and the package playwright",
)

# A process of its own: playwright's loop does not get on with others.
_BEFORE = """
import json, sys
from playwright.sync_api import sync_playwright
url, key, chromium = sys.argv[1:]
with sync_playwright() as p:
    browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    errors = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto(url)
    page.keyboard.type("Ada"); page.keyboard.press("Tab"); page.keyboard.type(key); page.keyboard.press("Enter")
"""
_AFTER = """
    print(json.dumps({"errors": errors, **seen}))
    browser.close()
"""


def browse(url: str, key: str, steps: str) -> Any:
    """What ``steps`` put into ``seen`` after Ada signed in on the page at ``url``, and the page's ``errors``."""
    script = _BEFORE + textwrap.indent(textwrap.dedent(steps), "    ") + _AFTER
    words = [sys.executable, "-c", script, url, key, shutil.which("chromium") or ""]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
