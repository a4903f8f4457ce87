"""Tables of the command line: ids and numbers are whole at any width, and a narrow one shows fewer columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stages import AT, World, record
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.cli.tables import _fit, _total, show
from evalpipe.sketch import Sketch
from evalpipe.store import migrate
from evalpipe.store.sql import Store

ROW = {
    "record_id": "0192f0c1a2b34c5d6e7f8a9b0c1d2e3f",
    "service": "support-bot",
    "value": 1234567.891,
    "calls": 123456789,
    "nothing": None,
    "explanation": "It says [bold]what[/bold] the customer asked for, and then a lot more about it. " * 3,
}
COLUMNS = list(ROW)


@pytest.mark.parametrize("width", ["40", "80", "100", "119", "120", "160"])
def test_ids_and_numbers_are_whole_at_any_width(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is folded, and nothing of it is lost or taken for markup."""
    monkeypatch.setenv("COLUMNS", width)
    show([ROW, {**ROW, "value": None}], COLUMNS)
    told = capsys.readouterr().out
    assert all(text in told for text in (str(ROW["record_id"]), "1234567.891", "123456789", "support-bot"))
    assert "…" not in told
    assert "[bold]" in told
    if int(width) >= 100:
        assert max(map(len, told.splitlines())) <= int(width)


def test_a_narrow_terminal_does_without_the_columns_that_are_least_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many as have to go, in the order given, and it says so; a wide one leaves none out."""
    monkeypatch.setenv("COLUMNS", "80")
    show([ROW], COLUMNS, less=["explanation", "service"])
    told = capsys.readouterr()
    assert "explanation" not in told.out
    assert "service" in told.out
    assert told.err == "Left out, for want of width: explanation.\n"
    monkeypatch.setenv("COLUMNS", "120")
    show([ROW], COLUMNS, less=["explanation", "service"])
    told = capsys.readouterr()
    assert "explanation" in told.out
    assert told.err == ""


def test_what_is_piped_is_wide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody's terminal has that width: one line for each row, for grep."""
    monkeypatch.delenv("COLUMNS", raising=False)
    show([{**ROW, "explanation": "x " * 40}], COLUMNS, less=["explanation"])
    told = capsys.readouterr()
    assert len([line for line in told.out.splitlines() if line.strip()]) == 3
    assert told.err == ""


def test_a_table_of_nothing_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    """And JSON is an empty array."""
    show([], ["service", "calls"])
    assert "service" in capsys.readouterr().out
    show([], ["service", "calls"], machine=True)
    assert capsys.readouterr().out == "[]\n"


PAIRS = st.tuples(st.integers(1, 40), st.integers(0, 60)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(PAIRS, min_size=1, max_size=12), st.integers(20, 250))
def test_no_column_is_narrower_than_it_has_to_be_nor_wider_than_it_likes(
    columns: list[tuple[int, int]], room: int
) -> None:
    """And together they fit, wherever the least widths do."""
    widths = _fit(columns, room)
    assert all(least <= width <= whole for width, (least, whole) in zip(widths, columns, strict=True))
    if _total(least for least, _ in columns) <= room:
        assert _total(widths) <= room


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A service with a long name that had some traffic, scored; Redis is away."""
    url = f"sqlite:///{tmp_path / 'evalpipe.db'}"
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", url)
    monkeypatch.setenv("EVALPIPE_REDIS_URL", "redis://127.0.0.1:1/0")
    store = Store(url)
    migrate.upgrade(store)
    store.close()
    made = World(url, tmp_path)
    made.ingest(record(1), record(2))
    sketch = Sketch()
    sketch.add(12345.678)
    wire = {name: sketch.to_wire() for name in ("latency", "ttft", "tpot")}
    counts = {"calls": 1234567, "sampled": 654321, "input_tokens": 98765432, "cost_usd": 4321.123, "screened": 9}
    made.measure(made.meter(feature="order-tracking", **counts, **wire), AT)
    yield made
    made.close()


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("command", "whole"),
    [("meter", ["order-tracking", "1234567", "4321.123"]), ("ledger", ["desk", "654321"]), ("scores", [])],
)
def test_meter_ledger_and_scores_fit_into_80_columns(command: str, whole: list[str]) -> None:
    """With all that matters most."""
    done = CliRunner().invoke(app, [command, "--since", "36500d"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert all(text in done.stdout for text in whole), done.stdout
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
