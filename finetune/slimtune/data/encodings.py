"""Which encoding a file is in, told by its bytes, compressed or not."""

import codecs
import gzip
import io
import re
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
ENCODING_NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with BOM", "gb18030": "GB18030 (GBK)"} | {
    "utf-16": "UTF-16 with BOM",
    "utf-16-le": "UTF-16 LE",
    "utf-16-be": "UTF-16 BE",
}
# A byte that is no text, as the character U+DC00 + byte, which no correct file holds.
NO_TEXT = re.compile("[\udc00-\udcff]")
_ESCAPE = "slimtune.no_text"
_FEW = 100  # one such byte among so many, and the file is still UTF-8
_PAIR = re.compile(rb"[\x81-\xfe][\x80-\xfe]")  # how GBK writes nearly every Chinese character
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_HIGH = bytes(range(128, 256))


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


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Python's surrogateescape, for UTF-16 and bytes below 128 too."""
    faulty = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in faulty), error.end


codecs.register_error(_ESCAPE, _escaped)


@contextmanager
def open_text(file: Path, encoding: str) -> Iterator[TextIO]:
    """The file's text; CRLF becomes LF, inside quoted CSV texts too; a bad byte, `NO_TEXT`."""
    with (
        open_bytes(file) as stream,
        io.TextIOWrapper(stream, encoding=encoding, errors=_ESCAPE) as text,
    ):
        yield text


def detect_encoding(file: Path) -> str:
    """By its BOM; else UTF-16 by its zero bytes; else UTF-8 if every byte fits; else what
    `_of_faulty` says. InputError if nothing fits.
    """
    with open_bytes(file) as stream:
        start = stream.read(_CHUNK)
        for bom, name in _BOMS.items():
            if start.startswith(bom):
                return name
        if b"\0" in start[:4096]:
            return _utf16(start[:4096])
        encoding = "utf-8" if _fits(stream, "utf-8") else _of_faulty(stream)
    if encoding:
        return encoding
    raise InputError(
        f"{file}: encoding unknown",
        "neither UTF-8, UTF-16, nor GB18030/GBK fits its bytes",
        f"save it as UTF-8, for instance: iconv -f ENCODING -t UTF-8 {file.name} -o utf8.json",
    )


def _of_faulty(stream: BinaryIO) -> str:
    """What bytes that are not all UTF-8 are in: UTF-8 but for a few places, or GB18030, which
    holds GBK and GB2312; "" if neither.

    UTF-8 if its characters beyond ASCII are more than twice the bytes that fit none: in GBK text
    about a fifth of the characters pass for UTF-8, and most bytes fit none. With fewer, GB18030 if
    all bytes fit and most high ones stand in pairs, as in Chinese words; a lone one (Latin-1)
    is a fault in UTF-8, not the first half of a character that its neighbour completes.
    """
    characters, faults, size = _utf8_characters(stream)
    if characters > 2 * faults:
        return "utf-8"
    if _mostly_pairs(stream) and _fits(stream, "gb18030"):
        return "gb18030"
    return "utf-8" if faults * _FEW <= size else ""


def _utf8_characters(stream: BinaryIO) -> tuple[int, int, int]:
    """(characters beyond ASCII, bytes that are no UTF-8, all bytes) of the stream."""
    decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
    characters = faults = size = 0
    stream.seek(0)
    while True:
        chunk = stream.read(_CHUNK)
        text = decoder.decode(chunk, final=not chunk)
        if not text.isascii():
            faulty = len(NO_TEXT.findall(text))
            faults += faulty
            characters += sum(map(len, _BEYOND_ASCII.findall(text))) - faulty
        size += len(chunk)
        if not chunk:
            return characters, faults, size


def _mostly_pairs(stream: BinaryIO) -> bool:
    paired = high = 0
    stream.seek(0)
    while chunk := stream.read(_CHUNK):
        paired += 2 * len(_PAIR.findall(chunk))
        high += len(chunk) - len(chunk.translate(None, _HIGH))
    return 2 * paired > high


def _utf16(start: bytes) -> str:
    """ASCII signs (brackets, quotes, commas) have their zero byte second in LE, first in BE."""
    return "utf-16-le" if start[1::2].count(0) >= start[0::2].count(0) else "utf-16-be"


def _fits(stream: BinaryIO, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    stream.seek(0)
    try:
        while chunk := stream.read(_CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
