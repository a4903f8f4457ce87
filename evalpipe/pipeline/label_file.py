"""Labels in files: CSV or JSONL, one label a line. Everything that is wrong is told at once, with its line."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

from evalpipe.errors import ConfigError
from evalpipe.pipeline.labelling import CALIBRATE, LabelError, find, read_label
from evalpipe.record import MAX_ID, MAX_NAME
from evalpipe.scorecard.model import Scorecard
from evalpipe.store import labels
from evalpipe.store.labels import Added, Label
from evalpipe.store.sql import Store, Transaction

COLUMNS: Final = ("record_id", "criterion", "label", "annotator", "scorecard", "comment", "at")
"""What a file of labels may have; the first three it must have, the fourth unless an annotator is given."""
EXPORTED: Final = (*COLUMNS, "value", "source", "chosen", "weight", "superseded_at")
"""What an export has. An import ignores what it works out by itself."""
MAX_COMMENT: Final = 4000
AHEAD: Final = timedelta(hours=1)
CHUNK: Final = 5_000


@dataclass(frozen=True, slots=True)
class Read:
    """What a file says: its labels with their lines, and what is wrong with it."""

    found: list[tuple[int, Label]]
    problems: list[str]


def read_file(path: Path, cards: Sequence[Scorecard], *, annotator: str, now: datetime) -> Read:
    """The labels in a file; nothing is asked of the store.

    Args:
        path: ends in ``.csv``, ``.jsonl`` or ``.ndjson``.
        cards: whose criteria are labelled.
        annotator: of lines that name none; "" where each must.
        now: the time of labels that have none.

    Raises:
        ConfigError: the file cannot be opened, or is of another kind.
    """
    rows = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(path.suffix.lower())
    if rows is None:
        raise ConfigError(f"{path}: labels come as .csv, .jsonl or .ndjson, not {path.suffix or 'without an ending'}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    found: list[tuple[int, Label]] = []
    problems: list[str] = []
    seen: dict[tuple[Any, ...], tuple[int, Label]] = {}
    for number, row in rows(raw):
        try:
            one = _label(row, cards, annotator, now)
            line = _line_of_same(seen, number, one)
        except LabelError as error:
            field, advice = (f"{error.field}: " if error.field else ""), (f" ({error.advice})" if error.advice else "")
            problems.append(f"{path}:{number}: {field}{error}{advice}")
        else:
            if line == number:
                found.append((number, one))
    if not found and not problems:
        problems.append(f"{path}:1: there is no label in it")
    return Read(found, problems)


def check_records(
    tx: Transaction, path: Path, found: Sequence[tuple[int, Label]], progress: Callable[[int], None]
) -> list[str]:
    """One line for each label whose record is not in the store."""
    problems = []
    for start in range(0, len(found), CHUNK):
        some = found[start : start + CHUNK]
        absent = labels.missing(tx, (one.record_id for _, one in some))
        problems += [
            f"{path}:{line}: record_id: {one.record_id!r} is not in the store ({CALIBRATE})"
            for line, one in some
            if one.record_id in absent
        ]
        progress(len(some))
    return problems


def store_labels(
    store: Store, found: Sequence[tuple[int, Label]], now: datetime, progress: Callable[[int], None], *, dry_run: bool
) -> Added:
    """Store them all, or none; a dry run only counts."""
    done = Added()
    ordered = sorted((one for _, one in found), key=lambda one: (one.record_id, one.at))
    with store.read() if dry_run else store.begin() as tx:
        for start in range(0, len(ordered), CHUNK):
            some = labels.add(tx, ordered[start : start + CHUNK], now, dry_run=dry_run)
            done = Added(done.new + some.new, done.changed + some.changed, done.known + some.known)
            progress(len(ordered[start : start + CHUNK]))
    return done


def write(rows: Iterable[Mapping[str, Any]], out: TextIO, *, as_csv: bool) -> int:
    """Write labels as an import takes them; how many."""
    n = 0
    writer = csv.DictWriter(out, EXPORTED, extrasaction="ignore")
    if as_csv:
        writer.writeheader()
    for row in rows:
        n += 1
        plain = {name: v.isoformat() if isinstance(v := row[name], datetime) else v for name in EXPORTED}
        if as_csv:
            writer.writerow(plain)
        else:
            out.write(json.dumps({k: v for k, v in plain.items() if v is not None}, ensure_ascii=False) + "\n")
    return n


def _line_of_same(seen: dict[tuple[Any, ...], tuple[int, Label]], number: int, one: Label) -> int:
    """The line that says this first.

    Raises:
        LabelError: the same person said something else of it at the same time.
    """
    line, earlier = seen.setdefault((*one.key, one.at), (number, one))
    if (earlier.label, earlier.comment) == (one.label, one.comment):
        return line
    what = f"{one.annotator} labels {one.record_id} otherwise on line {line}"
    raise LabelError(what, "", None, "keep one, or give 'at'")


def _label(row: Mapping[str, Any] | str, cards: Sequence[Scorecard], annotator: str, now: datetime) -> Label:
    if isinstance(row, str):
        raise LabelError(row, "")
    if unknown := [name for name in row if name not in EXPORTED]:
        near = difflib.get_close_matches(unknown[0], COLUMNS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COLUMNS)}; {CALIBRATE}"
        raise LabelError("is no field of a label", unknown[0], None, meant)
    record_id = _text(row, "record_id", MAX_ID)
    by = _text({"annotator": row.get("annotator") or annotator}, "annotator", MAX_NAME)
    asked = find(cards, _text(row, "criterion", MAX_NAME), row.get("scorecard") or "")
    if row.get("label") in {None, ""}:
        raise LabelError("is missing", "label", None, f"there are: {', '.join(asked.values)}")
    word, value = read_label(asked, row["label"])
    comment = row.get("comment") or ""
    if not isinstance(comment, str) or len(comment) > MAX_COMMENT:
        raise LabelError(f"must be text of at most {MAX_COMMENT} characters", "comment")
    chosen = row.get("chosen") or "given"
    if chosen not in {"random", "uncertain", "given"}:
        raise LabelError(f"{chosen!r} is neither random nor uncertain nor given", "chosen")
    at = _instant(row.get("at"), now)
    return Label(record_id, asked.scorecard.name, asked.criterion.name, by, word, value, comment, "import", at, chosen)


def _text(row: Mapping[str, Any], name: str, most: int) -> str:
    value = row.get(name)
    if value is None or value == "":
        advice = "give a column 'annotator', or --annotator" if name == "annotator" else f"give a column {name!r}"
        raise LabelError("is missing", name, None, advice)
    if not isinstance(value, str) or not (text := value.strip()) or len(text) > most or not text.isprintable():
        raise LabelError(f"must be text of at most {most} printable characters, not {value!r:.80}", name)
    return text


def _instant(value: Any, now: datetime) -> datetime:
    if value is None or value == "":
        return now
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        at = None
    if at is None or at.tzinfo is None or at.year < 1970:
        raise LabelError(f"{value!r:.80} is no instant", "at", value, "write it as 2026-11-22T03:00:00Z")
    if at > now + AHEAD:
        raise LabelError(f"{value!r:.80} is in the future", "at", value, "write when it was labelled")
    return at


def _csv(raw: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield line, f"byte 0x{raw[error.start]:02x} is not UTF-8"
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    end = 0
    while True:
        start = end + 1  # a quoted comment may go over several lines: the row is told by its first
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield start, f"not CSV: {error}"
            return
        end = reader.line_num
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if not header:
            header = [cell.strip() for cell in row]
            if problem := _wrong_header(header):
                yield start, problem
                return
        elif len(row) != len(header):
            yield start, f"{len(row)} fields, but the first line has {len(header)}: quote a text that has a comma"
        else:
            yield start, dict(zip(header, row, strict=True))


def _wrong_header(header: Sequence[str]) -> str:
    if absent := [name for name in COLUMNS[:3] if name not in header]:
        return f"the first line must name the columns, and {absent[0]!r} is not among them: {', '.join(COLUMNS)}"
    twice = next((name for name in header if header.count(name) > 1), None)
    return f"the column {twice!r} occurs twice" if twice is not None else ""


def _jsonl(raw: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode(), parse_constant=_refuse)
        except UnicodeDecodeError as error:
            yield number, f"byte 0x{line[error.start]:02x} is not UTF-8"
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
        else:
            yield number, row if isinstance(row, dict) else f"must be an object, not {type(row).__name__}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
