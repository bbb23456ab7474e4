"""Reads predictions that a stranger wrote, in a process that can do nothing else.

Started as ``python -I -m`` with an empty environment; the Parquet file is its standard input, and
with ``--about`` only its footer is read and no column is answered. The
parser is large and written in C++, so a file that leads it astray has to find itself in an empty
room: once the libraries are loaded, no file or socket can be opened, nothing started, and memory
and time are short. What comes back are numbers and short texts, and the parent checks those.

The answer is a line of JSON and the columns behind it as raw bytes:
``{"about": {...}, "rows": N, "columns": [[name, dtype], ...]}`` or ``{"fault": "..."}``.
"""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import _linux

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "tomoprobe.submissions._parquet_child"

MEMORY = 2 << 30
"""Bytes beyond what the libraries take: a table of five million rows."""
SECONDS = 60
MAX_ROWS = 5_000_000
"""Ten draws of six sizes on 50 000 cases are three million."""
MAX_COLUMNS = 400
MAX_TEXT = 200
"""Letters of a case's or patient's id."""
MAX_ABOUT = 1 << 16

ABOUT = "--about"


def main() -> None:
    """Answer once."""
    raw = sys.stdin.buffer.read()
    _warm_up()
    _linux.close_off(MEMORY, SECONDS)
    out = sys.stdout.buffer
    try:
        head, columns = _parsed(raw, with_columns=ABOUT not in sys.argv)
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError, MemoryError) as error:
        fault = f"{type(error).__name__}: {error}"
        out.write(json.dumps({"fault": fault[:500]}).encode() + b"\n")
        return
    out.write(json.dumps(head).encode() + b"\n")
    for column in columns:
        out.write(column.tobytes())


def _warm_up() -> None:
    """Use the parser once: what it loads and starts on first use it cannot any more later."""
    file = io.BytesIO()
    table = pa.table({"a": [1.5], "b": ["x"], "c": pa.array(["y"]).dictionary_encode()})
    pq.write_table(table, file, compression="zstd")
    pq.write_table(table, io.BytesIO(), compression="snappy")
    _parsed(file.getvalue(), ours=True)


def _parsed(
    raw: bytes, ours: bool = False, with_columns: bool = True
) -> tuple[dict[str, Any], Iterator[np.ndarray]]:
    """What the file says about itself, and its columns, one after the other."""
    file = pq.ParquetFile(
        io.BytesIO(raw),
        memory_map=False,
        thrift_string_size_limit=1 << 22,
        thrift_container_size_limit=1 << 18,
    )
    rows, names = file.metadata.num_rows, file.schema_arrow.names
    if rows > MAX_ROWS or len(names) > MAX_COLUMNS or len(set(names)) != len(names):
        raise ValueError(f"{rows} rows and {len(names)} columns are too many, or named twice")
    about = (file.schema_arrow.metadata or {}).get(b"tomoprobe", b"{}")
    if len(about) > MAX_ABOUT or (about == b"{}" and not ours):
        raise ValueError("no file that `tomoprobe evaluate --predictions` wrote")
    columns = {}
    for name in names if with_columns else ():
        column = _column(file.read(columns=[name], use_threads=False).column(0), name)
        if len(column) != rows:
            raise ValueError(f"column {name!r} has {len(column)} of {rows} rows")
        columns[name] = column
    head = {
        "about": json.loads(about),
        "rows": rows,
        "columns": [[name, column.dtype.str] for name, column in columns.items()],
    }
    return head, iter(columns.values())


def _column(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """As whole numbers, float64 or texts of fixed length."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if column.null_count:
        raise ValueError(f"column {name!r} has empty cells")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = cast("list[str]", column.to_pylist())
        if max(map(len, texts), default=0) > MAX_TEXT:
            raise ValueError(f"a text of column {name!r} has more than {MAX_TEXT} letters")
        return np.array(texts, dtype="<U" + str(max(map(len, texts), default=0) or 1))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.int64()).to_numpy().astype("<i8")
    if pa.types.is_floating(kind):
        return column.cast(pa.float64()).to_numpy().astype("<f8")
    raise ValueError(f"column {name!r} is of the type {kind}")


if __name__ == "__main__":
    main()
