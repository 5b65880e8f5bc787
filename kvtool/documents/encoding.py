"""Decodes bytes to text: the encoding is given, declared, tried, or at last guessed. What is not certain is a warning."""

from __future__ import annotations

import codecs
import re
from encodings import normalize_encoding
from encodings.aliases import aliases

from bs4.dammit import EncodingDetector
from charset_normalizer import from_bytes

from kvtool.errors import DocumentError, UsageError

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

# As browsers do: files labelled with the one are often in the other, which has all its characters.
SUPERSETS = {
    "ascii": "cp1252", "latin_1": "cp1252", "iso8859_9": "cp1254", "iso8859_11": "cp874", "tis_620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932",
}
# fmt: on

# Of the encodings with escapes, each Japanese one has what those before it lack.
ESCAPED = ("iso2022_jp_2", "iso2022_kr", "iso2022_jp_ext", "iso2022_jp_3", "iso2022_jp_2004")

MAYBE = {"hz": re.compile(rb"~\{[!-w][!-~]"), "utf_7": re.compile(rb"\+[A-Za-z0-9+/]{3}")}
"""Encodings whose every byte is ASCII, as plain text is, and what text in them has in it."""

COMMENT = re.compile(rb"\A(?:[ \t\f]*#[^\n]*\n)?[ \t\f]*#[^\n]*?coding[:=][ \t]*([-\w.]+)")
AT_CHARSET = re.compile(rb'\A@charset "([^"]+)";')
DECLARATIONS = {".py": COMMENT, ".pyi": COMMENT, ".rb": COMMENT, ".css": AT_CHARSET}
"""How files of a suffix declare their encoding, besides XML, which does it the same way under any name."""

STRAY = re.compile(r"[\udc80-\udcff]")
"""A byte that fits no character, as Python's error handler ``surrogateescape`` shows it."""


def decode(
    data: bytes,
    name: str,
    warnings: list[DocumentError],
    *,
    given: str | None = None,
    declared: str | None = None,
) -> str:
    """Bytes as text: by byte order mark, as ``given`` or ``declared``, as UTF-8, or by charset_normalizer's guess.

    Single bytes that do not fit an encoding which the rest is in are replaced by U+FFFD. ``warnings`` gets how many and
    where, an encoding that was guessed, and one that was not UTF-8 though the bytes are that too.

    Raises:
        DocumentError: the bytes are binary, or not what their byte order mark or ``given`` says.
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
    if given:
        text = _decode_as_given(data, name, given)
        if "\0" in text:
            raise binary
        _warn_of_utf_8(data, name, given, warnings)
        return text
    if b"\0" in data:
        raise binary
    encodings = [encoding for encoding in (text_encoding(declared), "utf-8") if encoding]
    if len(encodings) == 1 and data.isascii() and (text_or_none := _decode_seven_bits(data, name, warnings)):
        return text_or_none
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        _warn_of_utf_8(data, name, encoding, warnings)
        return text
    for encoding in encodings:
        if (text_or_none := _decode_but_for_strays(data, name, encoding, warnings)) is not None:
            return text_or_none
    # A few bytes fit several code pages equally well; then the one that browsers, too, fall back on is taken.
    guess = max(
        from_bytes(data, cp_isolation=LEGACY_ENCODINGS),
        key=lambda match: (-match.chaos, match.coherence, match.encoding == "cp1252"),
        default=None,
    )
    # Compressed data can pass for an old code page; text has no control characters but these.
    if guess is None or any(byte < 32 and byte not in b"\t\n\v\f\r\x1a\x1b" for byte in data[:65536]):
        raise binary
    warnings.append(_guessed(name, guess.encoding))
    return str(guess)


def _guessed(name: str, encoding: str) -> DocumentError:
    reason = f"its encoding was guessed: {encoding}; expected UTF-8, or a file that declares its encoding"
    return DocumentError(name, reason, "check the text, and set another with --encoding if it is wrong")


def _decode_seven_bits(data: bytes, name: str, warnings: list[DocumentError]) -> str | None:
    """The text of ASCII bytes whose escapes mean other characters, or None for plain text.

    Escapes of ISO 2022 are in no other text. What HZ and UTF-7 use instead may be: there is only a warning.
    """
    if b"\x1b$" in data or b"\x1b(" in data:
        for encoding in ESCAPED:
            text = _decoded(data, encoding)
            # A codec leaves what it does not know as it is: escapes, and the shift to Korean.
            if text and not {"\x1b", "\x0e"} & set(text):
                warnings.append(_guessed(name, encoding))
                return text
    for encoding, sign in MAYBE.items():
        text = _decoded(data, encoding) if sign.search(data) else None
        if text and all(character.isascii() or character.isprintable() for character in text):
            reason = f"is plain ASCII, and was read as that, but may be in {encoding}"
            warnings.append(DocumentError(name, reason, f"set --encoding {encoding} if the text is wrong"))
    return None


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _decode_as_given(data: bytes, name: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start:,} is not {encoding}, as which it was to be read"
        raise DocumentError(
            name, reason, "set another --encoding for this file, or leave the flag out"
        ) from None


def _warn_of_utf_8(data: bytes, name: str, encoding: str, warnings: list[DocumentError]) -> None:
    """Warns where bytes were read in another encoding, but are UTF-8, which hardly any other text is by chance."""
    if data.isascii() or codecs.lookup(encoding).name in {"utf-8", "utf-8-sig"}:
        return
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return
    reason = f"was read as {encoding}, as it says or was set, but its bytes are UTF-8 too"
    warnings.append(DocumentError(name, reason, "set --encoding utf-8 if the text is wrong"))


def _decode_but_for_strays(
    data: bytes, name: str, encoding: str, warnings: list[DocumentError]
) -> str | None:
    """The text with U+FFFD for each byte that does not fit, or None where these are many.

    In text of a code page few bytes happen to be UTF-8; two characters to each stray byte are no accident.
    """
    try:
        text = data.decode(encoding, "surrogateescape")
    except UnicodeDecodeError:
        return None
    strays = [match.start() for match in STRAY.finditer(text)]
    characters = len(text) - len(text.encode("ascii", "ignore")) - len(strays)
    if characters < 2 * len(strays):
        return None
    places = [
        f"0x{ord(text[at]) - 0xDC00:02x} in line {text.count(chr(10), 0, at) + 1:,}" for at in strays[:3]
    ]
    etc = ", …" if len(strays) > len(places) else ""
    reason = (
        f"{len(strays):,} bytes are not {encoding} and were replaced by U+FFFD ({', '.join(places)}{etc})"
    )
    warnings.append(DocumentError(name, reason, "mend these, or set the file's encoding with --encoding"))
    return STRAY.sub("\N{REPLACEMENT CHARACTER}", text)


def declared_encoding(data: bytes, suffix: str, *, html: bool) -> str | None:
    """The encoding that a file says it has: in its XML declaration, ``<meta>``, or a comment at its beginning."""
    if label := EncodingDetector.find_declared_encoding(data, is_html=html):
        return label
    pattern = DECLARATIONS.get(suffix)
    match = pattern.match(data) if pattern else None
    return match[1].decode("ascii", "replace") if match else None


def given_encoding(label: str) -> str:
    """Python's name for the encoding that a user set.

    Raises:
        UsageError: no text encoding has this name.
    """
    try:
        # Decoding nothing raises for codecs that are no character encodings, such as hex.
        "".encode(label)
        return codecs.lookup(label).name
    except (LookupError, ValueError):
        remedy = "expected a name such as utf-8, cp1250 or gb18030"
        raise UsageError(f"encoding {label!r}", "is not a text encoding that Python knows", remedy) from None


def text_encoding(label: str | None) -> str | None:
    """Python's name for a declared encoding, or None where the declaration cannot be true or is unknown.

    As browsers do, one that has a superset in use is taken for it. A declaration that can be read as ASCII is
    not in UTF-16; and Python's codecs that are no character encodings (hex, zlib, punycode) are left out.
    """
    key = normalize_encoding(label or "").lower().removeprefix("x_")
    encoding = aliases.get(key, key)
    wide = encoding.startswith("utf_") and encoding != "utf_7"
    if encoding not in aliases.values() or wide or encoding.endswith("_codec"):
        return None
    return SUPERSETS.get(encoding, encoding)
