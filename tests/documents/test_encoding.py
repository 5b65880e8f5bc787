"""Encodings: given, declared, tried, guessed; and what is said about it."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from kvtool.documents.read import read_text
from kvtool.errors import DocumentError, UsageError


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-8"])
def test_unicode_encodings(read: Any, encoding: Any) -> None:
    assert read("a.txt", "é漢😀\r\nb\rc\n".encode(encoding)) == "é漢😀\nb\nc\n"


@pytest.mark.parametrize(
    ("mark", "encoding"), [(codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")]
)
def test_big_endian_byte_order_marks(read: Any, mark: Any, encoding: Any) -> None:
    assert read("a.txt", mark + "é漢".encode(encoding)) == "é漢"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("café", "latin-1"),
        ("L'été dernier, à la plage — où l'eau était très chaude.", "cp1252"),
        ("Привет, как дела? Это текст.", "cp1251"),
        ("Привет, как дела? Это текст.", "koi8-r"),
        ("日本語のテキストです。これは文書です", "shift_jis"),
        ("这是一个中文文档。", "gb18030"),
    ],
)
def test_older_encodings_are_guessed_with_a_warning(read_with_warning: Any, text: str, encoding: Any) -> None:
    guessed, warning = read_with_warning("a.txt", text.encode(encoding))
    assert guessed == text
    assert "its encoding was guessed: " in warning
    assert "set another with --encoding if it is wrong" in warning


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("これは文書です", "iso2022_jp", "iso2022_jp_2"),
        ("ｶﾀｶﾅ", "iso2022_jp_ext", "iso2022_jp_ext"),
        ("이것은 문서입니다", "iso2022_kr", "iso2022_kr"),
    ],
)
def test_escapes_for_other_characters_are_not_text(
    read: Any, read_with_warning: Any, text: str, encoding: str, guess: str
) -> None:
    data = text.encode(encoding)
    assert data.isascii()
    guessed, warning = read_with_warning("a.txt", data)
    assert guessed == text
    assert f"its encoding was guessed: {guess}; " in warning
    page = f"<?xml version='1.0' encoding='{encoding}'?>{text}"
    assert read("a.xml", page.encode(encoding)) == page


@pytest.mark.parametrize(("text", "encoding"), [("x 己所不欲。 y", "hz"), ("L'été à la plage", "utf_7")])
def test_ascii_that_may_be_more_is_warned_of(
    read: Any, read_with_warning: Any, text: str, encoding: str
) -> None:
    data = text.encode(encoding)
    plain, warning = read_with_warning("a.txt", data)
    assert plain.encode() == data
    assert f"may be in {encoding}; set --encoding {encoding} if the text is wrong" in warning
    page = f"<meta charset={encoding.replace('_', '-')}><p>".encode() + data
    assert read("a.html", page) == text


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred\x1b[0m \x1b(B",
        "a += b; c++ - d",
        "+420-123-456-789 +49 30 123456-78",
        "~{a}~} ~{x",
        "a+bc-d+ef-",
    ],
)
def test_plain_ascii_is_nothing_else(read: Any, text: str) -> None:
    assert read("a.txt", text.encode()) == text


@pytest.mark.parametrize(
    ("text", "encoding"), [("温度是三十七度", "gb18030"), ("Łukasz", "cp1250"), ("a\nb", "utf-16-le")]
)
def test_the_encoding_can_be_given(tmp_path: Path, text: str, encoding: str) -> None:
    warnings: list[DocumentError] = []
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "a.html").write_bytes(b"<meta charset=koi8-r>" + text.encode(encoding))
    assert read_text(tmp_path / "a.txt", warnings, encoding) == text
    if encoding != "utf-16-le":
        assert read_text(tmp_path / "a.html", warnings, encoding) == text
    assert warnings == []


def test_a_given_encoding_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Größe".encode())
    warnings: list[DocumentError] = []
    assert read_text(path, warnings, "latin-1") == "GrÃ¶Ã\x9fe"
    assert "was read as iso8859-1, as it says or was set, but its bytes are UTF-8 too" in str(warnings[0])
    with pytest.raises(
        DocumentError, match="byte 2 is not ascii, as which it was to be read; set another --encoding"
    ):
        read_text(path, [], "ascii")
    path.write_bytes(b"\0\1")
    with pytest.raises(DocumentError, match="is binary"):
        read_text(path, [], "latin-1")
    for label in ("hex", "latin-17", "a\0b"):
        with pytest.raises(
            UsageError, match="is not a text encoding that Python knows; expected a name such as"
        ):
            read_text(path, [], label)


@pytest.mark.parametrize(
    "before", ["2026-01-01 ✓ Größe 12 € - ok\n" * 20, "日本語のテキスト\n" * 20, "✓\n" * 20]
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.html"])
def test_a_stray_byte_in_utf_8_is_replaced_and_named(read_with_warning: Any, name: str, before: str) -> None:
    text, warning = read_with_warning(name, before.encode() + b"name=J\xfcrgen")
    assert text.split()[-1] == "name=J�rgen"
    assert text.split()[0] == before.split()[0]
    assert "1 bytes are not utf-8 and were replaced by U+FFFD (0xfc in line 21); mend these" in warning


def test_a_stray_byte_in_a_declared_encoding_is_replaced_too(read_with_warning: Any) -> None:
    data = '<?xml version="1.0" encoding="shift_jis"?>日本語のテキスト'.encode("shift_jis")
    text, warning = read_with_warning("a.xml", data + b"\n\x81\n\x81\n")
    assert text.endswith("日本語のテキスト\n�\n�\n")
    assert "2 bytes are not cp932 and were replaced by U+FFFD (0x81 in line 2, 0x81 in line 3)" in warning


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("iso-8859-15", "Preis 12 €, Œuvre"),
        ("gb2312", "温度是三十七度"),
        ("iso-8859-9", "İstanbul sıcaklığı, Şişli"),
        ("mac_cyrillic", "Код сарая"),
        ("x-sjis", "日本語"),
    ],
)
@pytest.mark.parametrize("suffix", [".xml", ".svg", ".rss", ""])
def test_an_xml_declaration_is_believed(read: Any, suffix: str, encoding: str, text: str) -> None:
    page = f'<?xml version="1.0" encoding="{encoding}"?><p>{text}</p>'
    assert read(f"a{suffix}", page.encode(encoding.removeprefix("x-"))) == page
    if suffix == ".xml":
        assert read("a.xhtml", page.encode(encoding.removeprefix("x-"))) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "#!/usr/bin/python\n# -*- coding: koi8-r -*-\n'Код'"),
        ("a.css", '@charset "koi8-r";a::after{content:"Код"}'),
    ],
)
def test_source_code_that_declares_its_encoding(read: Any, name: str, text: str) -> None:
    assert read(name, text.encode("koi8-r")) == text


def test_a_declaration_that_utf_8_belies_is_warned_of(read_with_warning: Any) -> None:
    _, warning = read_with_warning("a.html", "<meta charset=koi8-r><p>Größe".encode())
    assert (
        "was read as koi8_r, as it says or was set, but its bytes are UTF-8 too; set --encoding utf-8"
        in warning
    )


def test_bytes_that_belie_their_byte_order_mark(error: Any) -> None:
    message = error("a.txt", codecs.BOM_UTF16_LE + b"\x00\xd8")
    assert "byte order mark of UTF-16-LE, but byte 2 is not UTF-16-LE; save it again as UTF-8" in message


@pytest.mark.parametrize(
    ("label", "encoding"),
    [
        ("shift_jis", "shift_jis"),
        ("iso-8859-1", "cp1252"),
        ("utf-16", "utf-8"),
        ("punycode", "utf-8"),
        ("?", "utf-8"),
    ],
)
def test_the_declared_encoding_of_html(read: Any, label: Any, encoding: Any) -> None:
    text = "“quoted”" if encoding == "cp1252" else "日本語"
    assert read("a.html", f'<meta charset="{label}"><p>{text}</p>'.encode(encoding)) == text


def test_html_without_a_declaration_is_utf_8(read: Any) -> None:
    assert read("a.html", "<p>naïve</p>".encode()) == "naïve"
