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
PARQUET: Final = (".parquet", ".pq")
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
            whole = pyarrow.csv.ReadOptions(block_size=min(path.stat().st_size + 1, MOST_AT_ONCE))
            table = pyarrow.csv.read_csv(path, read_options=whole, convert_options=convert)
    except (pa.ArrowException, OSError, ValueError) as error:
        form = "Parquet" if path.suffix in PARQUET else "CSV with a header"
        raise ConfigError(f"{path} cannot be read as {form}: {str(error).splitlines()[0]}") from error
    lacking = [name for name in NEEDED if name not in table.column_names]
    if lacking:
        hint = nearest(lacking[0], table.column_names, there_are="its columns are")
        raise ConfigError(f"{path} has no column {', '.join(lacking)}{hint}")
    if not table.num_rows:
        raise ConfigError(f"{path} has a header and no scores")
    return {name: _plain(table[name], name) for name in (*NEEDED, *OPTIONAL) if name in table.column_names}


def _plain(column: Any, name: str) -> Any:
    import pyarrow as pa

    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if name in _TEXT or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    return array.fill_null("") if pa.types.is_string(array.type) and array.null_count else array


def codes(column: Any) -> tuple[Ints, list[str]]:
    """A column of words as places in a list of the different ones, in the order of the file."""
    encoded = column.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


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
    found = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found, np.isinf(found)


def instants(column: Any) -> tuple[Ints, Flags]:
    """Microseconds since 1970 of times, ISO 8601 text (UTC without a zone) or seconds; and which rows have none."""
    import pyarrow as pa

    for form in (pa.timestamp("us", "UTC"), pa.timestamp("us")) if pa.types.is_string(column.type) else ():
        column = column if (read := _cast(column, form)) is None else read
    if pa.types.is_timestamp(column.type):
        whole = column.cast(pa.timestamp("us")).cast(pa.int64())
        return whole.fill_null(0).to_numpy(), whole.is_null().to_numpy(zero_copy_only=False)
    import pandas as pd

    texts = pd.Series(
        (column if pa.types.is_string(column.type) else column.cast(pa.string())).to_pylist(), dtype=object
    )
    seconds = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    words = ~np.isfinite(seconds)
    found = np.where(words, 0.0, np.clip(seconds, -6e10, 2.5e11) * 1e6).astype(np.int64)
    wrong = np.zeros(len(found), dtype=bool)
    if words.any():
        parsed = pd.to_datetime(texts[words], utc=True, errors="coerce", format="ISO8601")
        none = parsed.isna().to_numpy()
        found[words] = np.where(none, 0, parsed.dt.as_unit("us").astype("int64").to_numpy())
        wrong[words] = none
    return found, wrong


def _cast(column: Any, kind: Any) -> Any:
    """Texts as another type, empty ones as null; None if one of them is not of that type."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        return None
    try:
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column).cast(kind)
    except pa.ArrowInvalid:
        return None


def times(found: Ints) -> list[datetime]:
    """Instants as aware UTC."""
    made = datetime.fromtimestamp
    return [made(instant, UTC) for instant in (found / 1e6).tolist()]


def empty(column: Any) -> Flags:
    """Which texts are empty."""
    import pyarrow.compute as pc

    found: Flags = pc.equal(column, "").to_numpy(zero_copy_only=False)
    return found


def where(of: Ints, words: Sequence[bool]) -> Flags:
    """By row what is known by word."""
    return np.array(words or [False], dtype=bool)[of]
