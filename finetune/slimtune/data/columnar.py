"""Tables of Apache Arrow: Parquet files, and the .arrow files of `datasets`' save_to_disk.

Both are read batch by batch: memory holds one, not the file.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimtune.data.source_file import BadLine, Block, NumberedRow, SourceFile
from slimtune.errors import InputError

if TYPE_CHECKING:
    import pyarrow

PARQUET = b"PAR1"
# An IPC stream begins with a message, an IPC file (Feather) with its name:
# arrow.apache.org/docs/format/Columnar.html
ARROW = (b"\xff\xff\xff\xff", b"ARROW1\0\0")
_ROWS = 2000  # of a block


def cut_columnar(source: SourceFile) -> Iterator[Block]:
    """The blocks of a parquet or arrow file; InputError where it is damaged."""
    import pyarrow

    line = 1
    try:
        batches = _parquet(source.file) if source.format == "parquet" else _arrow(source.file)
        for batch in batches:
            _require_sound(batch)
            for rows in _pieces(batch):
                yield Block(source, line, rows)
                line += rows.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise InputError(
            f"{source.file}: cannot be read from row {line:,} on",
            f"not valid {source.format}: {(str(error) or type(error).__name__).splitlines()[0]}",
            "copy or download it again",
        ) from error


def _parquet(file: Path) -> Iterator["pyarrow.RecordBatch"]:
    from pyarrow import parquet

    return parquet.ParquetFile(file).iter_batches(batch_size=_ROWS)


def _arrow(file: Path) -> Iterator["pyarrow.RecordBatch"]:
    from pyarrow import OSFile, ipc

    with OSFile(str(file)) as stream:
        start = stream.read(len(ARROW[1]))
        stream.seek(0)
        if start == ARROW[1]:
            reader = ipc.open_file(stream)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from ipc.open_stream(stream)


def _require_sound(batch: "pyarrow.RecordBatch") -> None:
    """ArrowInvalid or UnicodeDecodeError for a batch whose buffers or names are damaged.

    pyarrow believes the offsets in a file: a false one reads foreign memory, or ends the process.
    """
    batch.validate(full=True)
    str(batch.schema)  # decodes the names, those of nested fields too


def _pieces(batch: "pyarrow.RecordBatch") -> Iterator["pyarrow.RecordBatch"]:
    """The rows of a batch, some at a time; copied, for a slice travels with all of its batch."""
    import pyarrow

    if batch.num_rows <= _ROWS:
        yield batch
        return
    for start in range(0, batch.num_rows, _ROWS):
        piece = batch.slice(start, _ROWS)
        yield pyarrow.concat_batches([piece, piece.slice(0, 0)])


def parse_columnar(block: Block) -> Iterator[NumberedRow]:
    """(line, row) of each row; a BadLine for a value that Python does not hold (a year 300,000)."""
    for line, row in enumerate(_python_rows(block.rows), start=block.line):
        yield line, row if isinstance(row, BadLine) else _json_like(row)


def _python_rows(batch: "pyarrow.RecordBatch") -> list[dict[str, Any] | BadLine]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [BadLine("", f"a value that cannot be read: {error}")]
    return [row for n in range(batch.num_rows) for row in _python_rows(batch.slice(n, 1))]


def _json_like(row: dict[str, Any]) -> dict[str, Any]:
    """Bytes and times, which JSON has not, as text."""
    return {name: _json_value(value) for name, value in row.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {name: _json_value(one) for name, one in value.items()}
    return value if isinstance(value, str | int | None) else str(value)
