"""Which encoding a file is in, told by its bytes, compressed or not."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from slimtune.console import InputError

_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# How an encoding is called in the report.
NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with BOM", "gb18030": "GB18030 (GBK)"} | {
    "utf-16": "UTF-16 with BOM",
    "utf-16-le": "UTF-16 LE",
    "utf-16-be": "UTF-16 BE",
}


def is_compressed(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == _GZIP


@contextmanager
def open_bytes(file: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if it is gzip; InputError where the archive is broken."""
    try:
        with gzip.open(file) if is_compressed(file) else file.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{file}: broken gzip archive",
            str(error),
            "copy or download it again (gzip -t tells whether it is whole)",
        ) from error


@contextmanager
def open_text(file: Path, encoding: str) -> Iterator[TextIO]:
    """The file's text; CRLF becomes LF, inside quoted CSV texts too."""
    with open_bytes(file) as stream, io.TextIOWrapper(stream, encoding=encoding) as text:
        yield text


def detect_encoding(file: Path) -> str:
    """By its BOM; else UTF-16 by its zero bytes; else UTF-8 if every byte fits; else GB18030,
    which holds GBK and GB2312. InputError if nothing fits.
    """
    with open_bytes(file) as stream:
        start = stream.read(_CHUNK)
        for bom, name in _BOMS.items():
            if start.startswith(bom):
                return name
        if b"\0" in start[:4096]:
            return _utf16(start[:4096])
        for encoding in ("utf-8", "gb18030"):
            stream.seek(0)
            if _fits(stream, encoding):
                return encoding
    raise InputError(
        f"{file}: encoding unknown",
        "neither UTF-8, UTF-16, nor GB18030/GBK fits its bytes",
        f"save it as UTF-8, for instance: iconv -f ENCODING -t UTF-8 {file.name} -o utf8.json",
    )


def _utf16(start: bytes) -> str:
    """ASCII signs (brackets, quotes, commas) have their zero byte second in LE, first in BE."""
    return "utf-16-le" if start[1::2].count(0) >= start[0::2].count(0) else "utf-16-be"


def _fits(stream: BinaryIO, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while chunk := stream.read(_CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
