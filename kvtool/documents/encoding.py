"""Decodes bytes to text: the encoding is declared, or tried, or at last guessed."""

from __future__ import annotations

from encodings import normalize_encoding
from encodings.aliases import aliases

from charset_normalizer import from_bytes

from kvtool.errors import DocumentError

# UTF-32's little-endian mark begins with UTF-16's, so it is looked for first.
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)

# Those that the web still meets, after the WHATWG Encoding Standard. With all of Python's, charset_normalizer
# takes "café" in Latin-1 for UTF-16, and a single "é" for EBCDIC.
# fmt: off
LEGACY_ENCODINGS = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp866",
    "cp874", "iso8859_2", "iso8859_5", "iso8859_7", "koi8_r", "koi8_u",
    "cp932", "euc_jp", "gb18030", "big5", "cp949",
]
# fmt: on


def decode(data: bytes, name: str, declared: str | None = None) -> str:
    """Bytes as text: by byte order mark, by `declared`, as UTF-8, or by charset_normalizer's guess.

    Raises:
        DocumentError: the bytes are binary, or not what their byte order mark says.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                label, byte = encoding.upper(), len(mark) + error.start
                reason = f"begins with the byte order mark of {label}, but byte {byte:,} is not {label}"
                raise DocumentError(name, reason, "save it again as UTF-8") from None
    reason = "is binary; expected text, Markdown, HTML or PDF"
    binary = DocumentError(name, reason, "convert it to text or leave it out")
    if b"\0" in data:
        raise binary
    for encoding in filter(None, (text_encoding(declared), "utf-8")):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    # A few bytes fit several code pages equally well; then the one that browsers, too, fall back on is taken.
    guess = max(
        from_bytes(data, cp_isolation=LEGACY_ENCODINGS),
        key=lambda match: (-match.chaos, match.coherence, match.encoding == "cp1252"),
        default=None,
    )
    # Compressed data can pass for an old code page; text has no control characters but these.
    if guess is None or any(byte < 32 and byte not in b"\t\n\v\f\r\x1a\x1b" for byte in data[:65536]):
        raise binary
    return str(guess)


def text_encoding(label: str | None) -> str | None:
    """Python's name for a declared encoding, or None where the declaration cannot be true or is unknown.

    As browsers do, Latin-1 and ASCII are taken for Windows-1252, which pages so labelled are in fact. A
    declaration that can be read as ASCII is not in UTF-16; and Python's codecs that are no character
    encodings (hex, zlib, punycode) are left out.
    """
    key = normalize_encoding(label or "").lower()
    encoding = aliases.get(key, key)
    if encoding not in aliases.values() or encoding.startswith("utf_") or encoding.endswith("_codec"):
        return None
    return "cp1252" if encoding in {"latin_1", "ascii"} else encoding
