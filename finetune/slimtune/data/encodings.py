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

from slimtune.errors import InputError, SettingsError

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
    "big5": "Big5",
    "shift_jis": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "euc_kr": "EUC-KR",
    "cp1252": "Windows-1252 (Latin-1)",
}
# A byte that is no text, as the character U+DC00 + byte, which no correct file holds.
NO_TEXT = re.compile("[\udc00-\udcff]")
_ESCAPE = "slimtune.no_text"
_FEW = 100  # one such byte among so many, and the file is still UTF-8
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_ZEROS = 8  # of so many bytes at most one is zero in a text that is not UTF-16
_JUDGED = 200_000  # bytes
_DRAW = 0.04  # difference of chaos (0 to 1) that tells nothing on short texts
# Encodings from before UTF-8 that are still met, with what their texts are mostly made of.
_CHINESE = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实"
    "這個們來為國說時要會對於著過發後裡種經麼學現當沒動還進樣開從實問題請您好吗嗎什么哪怎答案电話话货款价"
)
_KANA = frozenset(map(chr, range(0x3041, 0x30FB)))
_HANGUL = frozenset(
    "다이는을가의에고하지기리로한사니자은도시어인아를있습까요서나해그일것수보으게여"
)
_LATIN = frozenset("äöüßéèàçêñóíáâôûîÄÖÜ’“”–")
_COMMON = {
    "gb18030": _CHINESE,
    "big5": _CHINESE,
    "shift_jis": _KANA,
    "euc_jp": _KANA,
    "euc_kr": _HANGUL,
    "cp1252": _LATIN,
}
_ENOUGH = 0.15  # of the letters beyond ASCII: real texts have a third and more, mojibake a tenth


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


def detect_encoding(file: Path, named: str = "auto") -> str:
    """The encoding that is `named`; else by its BOM; else UTF-16 by its zero bytes; else UTF-8 if
    every byte fits; else what `_of_faulty` says. InputError if nothing fits, or several do.
    """
    if named != "auto":
        return _named(file, named)
    with open_bytes(file) as stream:
        start = stream.read(_CHUNK)
        for bom, name in _BOMS.items():
            if start.startswith(bom):
                return name
        # A single zero byte costs its row; in UTF-16 every other byte of plain text is one.
        if start[:4096].count(0) * _ZEROS > len(start[:4096]):
            return _utf16(start[:4096])
        fitting = ["utf-8"] if _fits(stream, "utf-8") else _of_faulty(stream)
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(ENCODING_NAMES[name] for name in fitting)
    raise InputError(
        f"{file}: encoding {'not certain' if fitting else 'unknown'}",
        f"its bytes may be {names}" if fitting else "neither UTF-8 nor another known one fits it",
        f"name it: --encoding {fitting[0] if fitting else 'NAME'}, or save the file as UTF-8",
    )


def _named(file: Path, name: str) -> str:
    """The user's word for it, checked; SettingsError for a name that Python does not know."""
    try:
        known = codecs.lookup(name).name
        "".encode(known)  # a LookupError for rot13 and its like, which are no encodings of text
    except LookupError:
        raise SettingsError(
            f"data.encoding: {name!r}: unknown",
            f"known are, among others, {', '.join(ENCODING_NAMES)}",
            "--encoding auto looks at the bytes",
        ) from None
    ENCODING_NAMES.setdefault(known, known)
    return known


def _of_faulty(stream: BinaryIO) -> list[str]:
    """What bytes that are not all UTF-8 may be in: UTF-8 but for a few places, or one of `_COMMON`.

    UTF-8 if its characters beyond ASCII are more than twice the bytes that fit none: in GBK text
    about a fifth of the characters pass for UTF-8, and most bytes fit none. With fewer, what reads
    like a language. A lone high byte is a fault in UTF-8, not a character of another encoding.
    """
    characters, faults, size = _utf8_characters(stream)
    if characters > 2 * faults:
        return ["utf-8"]
    likely = _likely(stream)
    if faults * _FEW > size:
        return likely
    # So few high bytes are letters of Windows-1252 at best: their rows are set aside instead.
    return [name for name in likely if name != "cp1252"] or ["utf-8"]


def _likely(stream: BinaryIO) -> list[str]:
    """The encodings of `_COMMON` that fit all bytes and read best: two or more if it is a draw.

    charset-normalizer measures the mess (unusual neighbours, signs amid words) and how near the
    letters are to a language; a hundred of the commonest characters settle what it cannot.
    """
    from charset_normalizer import from_bytes  # 2 MB, for files that are no UTF-8

    text = _high_lines(stream)
    found = [
        one for one in from_bytes(text, cp_isolation=list(_COMMON)) if _fits(stream, one.encoding)
    ]
    if not found:
        return []
    least = min(one.chaos for one in found)
    best = [one.encoding for one in found if one.chaos <= least + _DRAW]
    usual = {name: _usual(text.decode(name, "replace"), _COMMON[name]) for name in best}
    most = max(usual.values())
    if most < _ENOUGH:  # a few words: then what it was in nearly every case so far
        known = [one.encoding for one in found]
        return ["gb18030"] if "gb18030" in known else best
    return [name for name in best if usual[name] * 2 >= most]


def _high_lines(stream: BinaryIO) -> bytes:
    """The first lines with bytes beyond ASCII, up to some hundred kilobytes of them."""
    stream.seek(0)
    lines, size = [], 0
    for line in stream:
        if not line.isascii():
            lines.append(line)
            size += len(line)
        if size > _JUDGED:
            break
    return b"".join(lines)


def _usual(text: str, common: frozenset[str]) -> float:
    """The share of the letters beyond ASCII that texts of a language are full of."""
    letters = [sign for sign in text if sign > "\x7f" and sign.isalpha()]
    return sum(sign in common for sign in letters) / max(len(letters), 1)


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
