"""The summary of the chat's demo fits into 80 columns."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.panel import Panel

from evalpipe.store.metered import Metered

CHAT = Path(__file__).resolve().parents[2] / "examples" / "chat"


@pytest.fixture
def view(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo's own module."""
    monkeypatch.syspath_prepend(str(CHAT))
    monkeypatch.delitem(sys.modules, "view", raising=False)
    return importlib.import_module("view")


@pytest.mark.parametrize("table", ["meter_table", "ledger_table"])
def test_every_number_of_the_demos_tables_is_whole_in_80_columns(view: Any, table: str) -> None:
    """Also within the frame that they have while the traffic runs."""
    meters = {}
    for variant in ("baseline", "canary", "shadow"):
        metered = Metered({"variant": variant})
        metered.sums.update(calls=12345, input_tokens=400_000, output_tokens=56_789, screened=100, refusals=3)
        metered.sums["cost_usd"] = 1.2345  # type: ignore[assignment]
        metered.blocked["kill_switch"] = 678
        for sketch in metered.sketches.values():
            sketch.add(1234.0)
        meters[variant] = metered
    terms = ("observed", "not_sampled", "sampled", "scored", "skipped", "shed", "in_flight")
    seen = view.Seen(meters=meters, ledger=dict.fromkeys(terms, 12345))
    out = io.StringIO()
    Console(file=out, width=80).print(Panel(getattr(view, table)(seen)))
    told = out.getvalue()
    assert "…" not in told
    assert told.count("12345") == (3 if table == "meter_table" else len(terms))
    if table == "meter_table":
        assert all(told.count(text) == 3 for text in ("456,789", "$1.2345", "678", "3.0%"))
        assert all(len(line.split()) == 13 for line in told.splitlines() if "12345" in line)
    assert max(map(len, told.splitlines())) == 80
    assert all(word in told for word in ("variant", "refused", "latency") if table == "meter_table")
    assert all(word in told for word in ("observed", "diff ", "flight") if table == "ledger_table")
