"""Columns of a file of scores: words, numbers and instants, all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.errors import ConfigError
from evalpipe.scorecard.checks import nearest

NEEDED: Final = ("rollout", "arm", "criterion", "value")
OPTIONAL: Final = ("seq", "at", "unit", "weight", "status", "pair", "segment", "epoch")
MOST_AT_ONCE: Final = 1 << 29
"""Bytes of a block: blocks have to be joined."""
LATEST: Final = 4e9
"""Seconds since 1970 (the year 2096): a larger number is of milliseconds."""
PARQUET: Final = (".parquet", ".pq")
_BLANK: Final = ("seq", "at")
"""Columns that may be there and empty, as if they were not."""
_TEXT: Final = ("rollout", "arm", "criterion", "unit", "status", "pair", "segment", "epoch")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def read_columns(path: Path) -> dict[str, Any]:
    """The columns that are used, each an Arrow array; words are text and never null.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has no row.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}: name a CSV or Parquet file of scores")
    try:
        if path.suffix in PARQUET:
            table = pyarrow.parquet.read_table(path)
        else:
            texts = dict.fromkeys((*NEEDED, *OPTIONAL), pa.string())
            convert = pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=False)
            # With threads a row that cannot be parsed would be told without its number.
            whole = pyarrow.csv.ReadOptions(block_size=min(path.stat().st_size + 1, MOST_AT_ONCE), use_threads=False)
            table = pyarrow.csv.read_csv(path, read_options=whole, convert_options=convert)
    except (pa.ArrowException, OSError, ValueError) as error:
        form = "Parquet" if path.suffix in PARQUET else "CSV with a header"
        raise ConfigError(f"{path} cannot be read as {form}: {str(error).splitlines()[0]}") from error
    again = [name for name in (*NEEDED, *OPTIONAL) if table.column_names.count(name) > 1]
    if again:
        raise ConfigError(f"{path} has several columns {again[0]!r}: keep one")
    lacking = [name for name in NEEDED if name not in table.column_names]
    if lacking:
        hint = nearest(lacking[0], table.column_names, there_are="its columns are")
        raise ConfigError(f"{path} has no column {', '.join(lacking)}{hint}")
    if not table.num_rows:
        raise ConfigError(f"{path} has a header and no scores")
    found = {name: _plain(table[name], name) for name in (*NEEDED, *OPTIONAL) if name in table.column_names}
    return {name: column for name, column in found.items() if name not in _BLANK or not _is_blank(column)}


def _plain(column: Any, name: str) -> Any:
    import pyarrow as pa

    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    if pa.types.is_nested(array.type) or (pa.types.is_temporal(array.type) and name != "at"):
        raise ConfigError(f"column {name} is of type {array.type}: {'text' if name in _TEXT else 'numbers'} are wanted")
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if name in _TEXT or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    return _filled(array, "") if pa.types.is_string(array.type) else array


def codes(column: Any) -> tuple[Ints, list[str]]:
    """A column of words as places in a list of the different ones, in the order of the file."""
    encoded = column.dictionary_encode()
    return _array(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()


def numbers(column: Any) -> tuple[Floats, Flags]:
    """A column of numbers, NaN where there is none, and which rows have something that is no finite number."""
    import pyarrow as pa

    if pa.types.is_string(column.type) and (read := _cast(column, pa.float64())) is not None:
        column = read
    if pa.types.is_string(column.type):  # with something in it that is no number
        import pandas as pd

        texts = pd.Series(column.to_pylist(), dtype=object)
        found = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        return found, np.isinf(found) | (np.isnan(found) & ~empty(column))
    floats: Floats = _array(_filled(column.cast(pa.float64()), np.nan))
    return floats, np.isinf(floats)


def instants(column: Any) -> tuple[Ints, Flags]:
    """Microseconds since 1970 of times, ISO 8601 text (UTC without a zone) or seconds; and which rows have none."""
    import pyarrow as pa

    if (found := _seconds(column)) is not None:
        return found, np.zeros(len(found), dtype=bool)
    for form in (pa.timestamp("us", "UTC"), pa.timestamp("us")) if pa.types.is_string(column.type) else ():
        column = column if (read := _cast(column, form)) is None else read
    if pa.types.is_timestamp(column.type):
        whole = column.cast(pa.timestamp("us")).cast(pa.int64())
        return _array(_filled(whole, 0)), _flags(whole.is_null())
    import pandas as pd

    texts = pd.Series(
        (column if pa.types.is_string(column.type) else column.cast(pa.string())).to_pylist(), dtype=object
    )
    seconds = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    words = ~(np.abs(seconds) <= LATEST)
    found = np.where(words, 0.0, seconds * 1e6).astype(np.int64)
    wrong = np.zeros(len(found), dtype=bool)
    if words.any():
        parsed = pd.to_datetime(texts[words], utc=True, errors="coerce", format="ISO8601")
        none = parsed.isna().to_numpy()
        found[words] = np.where(none, 0, parsed.dt.as_unit("us").astype("int64").to_numpy())
        wrong[words] = none
    return found, wrong


def _seconds(column: Any) -> Ints | None:
    """Microseconds of a column that has seconds in every row, without the seconds that pandas takes; else None."""
    import pyarrow as pa

    read = _cast(column, pa.float64()) if pa.types.is_string(column.type) else column
    if read is None or read.null_count or not (pa.types.is_floating(read.type) or pa.types.is_integer(read.type)):
        return None
    seconds: Floats = _array(read.cast(pa.float64()))
    return (seconds * 1e6).astype(np.int64) if bool(np.all(np.abs(seconds) <= LATEST)) else None


def _cast(column: Any, kind: Any) -> Any:
    """Texts as another type, empty ones as null; None if one of them is not of that type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        return None
    try:
        written = pc.binary_length(column).cast(pa.bool_())
        return pc.if_else(written, column, pa.nulls(len(column), column.type)).cast(kind)
    except pa.ArrowInvalid:
        return None


def times(found: Ints) -> list[datetime]:
    """Instants as aware UTC."""
    made = datetime.fromtimestamp
    return [made(instant, UTC) for instant in (found / 1e6).tolist()]


def empty(column: Any) -> Flags:
    """Which texts are empty."""
    import pyarrow.compute as pc

    return _array(pc.binary_length(column)) == 0  # type: ignore[no-any-return]


def taken(column: Any, rows: Ints) -> list[str]:
    """The words of some rows."""
    import pyarrow as pa

    texts: list[str] = column.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)])).to_pylist()
    return texts


def where(of: Ints, words: Sequence[bool]) -> Flags:
    """By row what is known by word."""
    return np.array(words or [False], dtype=bool)[of]


def _is_blank(column: Any) -> bool:
    import pyarrow as pa

    if column.null_count == len(column):
        return True
    return pa.types.is_string(column.type) and column[0].as_py() == "" and bool(empty(column).all())


def _filled(column: Any, blank: Any) -> Any:
    return column.fill_null(blank) if column.null_count else column


def _array(numbers: Any) -> Any:
    """Arrow's numbers (none is null) as numpy's, without the second in which ``to_numpy`` imports pandas."""
    return np.from_dlpack(numbers)


def _flags(of: Any) -> Flags:
    import pyarrow as pa

    return _array(of.cast(pa.uint8())).astype(np.bool_)  # type: ignore[no-any-return]
