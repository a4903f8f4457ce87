"""The pages as they are sent."""

from __future__ import annotations

import re

import pytest

from evalpipe.api.pages import page


@pytest.mark.parametrize("name", ["alerts.html", "rollouts.html"])
def test_a_page_loads_nothing_and_runs_nothing_but_itself(name: str) -> None:
    """One file, with a policy that names the hashes of its own script and style."""
    html, policy = page(name)
    assert html.count("<script") == html.count("<style") == 1
    assert "base.css" not in html
    assert "unsafe" not in policy
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "://", "localStorage"):
        assert word not in html, word
    assert not re.search(r"<[^>]*\s(on\w+|style|src)=", html)
