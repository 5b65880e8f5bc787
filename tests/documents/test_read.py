from __future__ import annotations

import builtins
import io
import os
import re
from pathlib import Path
from typing import Any

import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool import limits
from kvtool.documents.read import read_text
from kvtool.errors import DocumentError
from tests.documents.pdfs import pdf


def test_plain_text_is_left_as_it_is(read: Any) -> None:
    text = "# Title  \n\n\tcode\n\x0c<b>é漢😀</b>\u2028 end "
    assert read("a.md", text.encode()) == text


@settings(max_examples=100)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".html", ".pdf"]))
def test_any_bytes_are_text_or_a_document_error(
    tmp_path_factory: pytest.TempPathFactory, data: Any, suffix: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    try:
        text = read_text(path, [])
    except DocumentError as error:
        message = str(error)
        text = None
    if text is None:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    else:
        assert text.strip()
        assert "\r" not in text
        assert text.encode().decode() == text  # no surrogates


@pytest.mark.parametrize(
    "data",
    [b"\x7fELF\0\0", bytes(range(1, 256)) * 4, b"text\0text", "no mark".encode("utf-16-le")],
    ids=["elf", "every byte", "nul", "utf-16 without a mark"],
)
def test_binary(error: Any, data: Any) -> None:
    message = error("a.txt", data)
    assert "is binary; expected text, Markdown, HTML or PDF; convert it to text or leave it out" in message


@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.pdf"])
def test_empty(error: Any, name: str) -> None:
    assert "it is empty (0 bytes); expected a document with text; fill the file or leave it out" in error(
        name, b""
    )


@pytest.mark.parametrize(("name", "data"), [("a.txt", b" \n\t "), ("a.html", b"<script>x</script>")])
def test_no_text(error: Any, name: str, data: Any) -> None:
    assert f"no text in its {len(data)} bytes; expected a document with text" in error(name, data)


def test_a_directory(error: Any, tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    assert "is a directory; expected a regular file; name a file instead" in error("folder.md")


def test_a_named_pipe_does_not_block(error: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe; expected a regular file" in error("pipe")


def test_vanished(error: Any) -> None:
    assert "no such file, or it has vanished; expected a file; check the path" in error("gone.md")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (
            PermissionError(13, "Permission denied"),
            "permission denied; .*change its permissions or leave it out",
        ),
        (FileNotFoundError(2, "No such file"), "has vanished"),
        (
            OSError(5, "Input/output error"),
            r"cannot be read \(Input/output error\); .*check the path and the disk",
        ),
    ],
)
def test_a_file_that_cannot_be_opened(
    error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Any, expected: Any
) -> None:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise raised

    (tmp_path / "a.md").write_text("text")
    monkeypatch.setattr(Path, "open", refuse)
    assert re.search(expected, error("a.md"))


def test_too_large_is_refused_before_it_is_opened(
    error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a.md").open("wb") as file:
        file.truncate(limits.DOCUMENT_BYTES + 1)
    monkeypatch.setattr(Path, "open", None)
    message = error("a.md")
    assert (
        "too large, 67,108,865 bytes or more; expected at most 67,108,864; split it into smaller" in message
    )


def test_a_file_that_grows_while_it_is_read_is_bounded(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", 10)
    sizes = []

    class Growing(io.BytesIO):
        def read(self, size: Any = -1) -> Any:
            sizes.append(size)
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda self, mode: Growing(b"x" * 1000))
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: os.close(os.open(self, os.O_CREAT)))
    assert "too large, 11 bytes or more; expected at most 10" in error("a.md", b"")
    assert sizes == [11]


def test_a_name_with_a_newline_stays_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "new\nline.txt").write_bytes(b"")
    with pytest.raises(DocumentError, match=r"new\\nline.txt'") as caught:
        read_text(tmp_path / "new\nline.txt", [])
    assert "\n" not in str(caught.value)


PAGE = b"""<?xml version="1.0"?><!DOCTYPE html><html><head><title>Guide</title><style>css</style></head>
<body><!-- note --><svg><title>icon</title></svg><noscript>off</noscript><template>t</template>
<h2>Start here</h2><p>Use snake_case, <a href="x.html">a link</a> and <b>bold</b>.<img src="x.png" alt="a">
<ul><li>one</li><li>two</li></ul><pre><code>if x &lt; 1:
    pass</code></pre><table><tr><th>k</th></tr><tr><td>v</td></tr></table><script>js</script></body></html>"""


@pytest.mark.parametrize("suffix", ["html", "HTM", "xhtml"])
def test_html_becomes_markdown(read: Any, suffix: Any) -> None:
    assert read(f"a.{suffix}", PAGE) == (
        "Guide\n\n## Start here\n\nUse snake_case, a link and **bold**.\n\n- one\n- two\n\n"
        "```\nif x < 1:\n    pass\n```\n\n| k |\n| --- |\n| v |"
    )


@pytest.mark.parametrize(
    "page",
    [
        "<!doctype html><html><head><meta charset=utf-8><title>T</title>\n<body><h1>H</h1><p>wifi 4711</html>",
        "<head><title>T</title><h1>H</h1><p>wifi 4711",
        "<head><title>T</title><style>css</style><noscript><img src=x></noscript><h1>H</h1>wifi 4711",
        "<html><head><title>T</title></head><h1>H</h1><p>wifi 4711",
        "<title>T</title><h1>H</h1><p>wifi 4711",
        "<head><link rel=x href=y><body><title>T</title><title>icon</title><h1>H</h1><p>wifi 4711</body>",
    ],
)
def test_the_body_of_html_is_read_whatever_tags_are_left_out(read: Any, page: str) -> None:
    assert read("a.html", page.encode()) == "T\n\n# H\n\nwifi 4711"


def test_text_that_follows_the_head_without_a_tag_is_body(read: Any) -> None:
    assert read("a.html", b"<head><title>T</title>wifi 4711") == "T\n\nwifi 4711"


@pytest.mark.parametrize(
    "body", [b"<script>draw()</script>", b"<frameset><frame src=x></frameset>", b"<noscript>Turn it on"]
)
def test_html_that_is_only_a_title_is_warned_of(read_with_warning: Any, body: bytes) -> None:
    text, warning = read_with_warning("a.html", b"<html><head><title>T</title></head>" + body)
    assert text == "T"
    assert "holds nothing but its title, in " in warning


def test_html_that_is_only_a_fragment_warns_of_nothing(read: Any, recwarn: Any) -> None:
    assert read("a.html", b"index.html") == "index.html"
    assert not recwarn.list


def test_end_tags_that_html_lets_one_leave_out(read: Any) -> None:
    assert read("a.html", b"<p>text" * 5000) == "\n\n".join(["text"] * 5000)
    assert (
        read("b.html", b"<ul><li>a<ul><li>in</ul><li>b</ul><p>c<h1>d</h1>") == "- a\n  - in\n- b\n\nc\n\n# d"
    )
    assert (
        read("c.html", b"<table><tr><th>a<th>b<tr><td>1<td>2</table>")
        == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    )


def test_html_nested_too_deeply(error: Any) -> None:
    message = error("a.html", b"<div>" * 5000 + b"text")
    assert (
        "nested too deeply; expected a few hundred levels at most; save the page as text or Markdown"
        in message
    )


def test_html_that_the_parser_turns_down(error: Any) -> None:
    message = error("a.html", b"<![foo[ x <p>text")
    assert "is not HTML that can be read (" in message
    assert "save it as text or Markdown instead" in message


def test_pdf(read: Any) -> None:
    assert read("a.PDF", pdf("first page", "second page")) == "first page\n\nsecond page"


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        (["text", "", ""], "no text on 2 of its 3 pages (2-3), which are blank or scanned images; run OCR"),
        (["", "text", "", "", "", "text", ""], "no text on 5 of its 7 pages (1, 3-5, 7), which"),
    ],
)
def test_pages_of_a_pdf_without_text_are_named(
    read_with_warning: Any, pages: list[str], expected: str
) -> None:
    text, warning = read_with_warning("a.pdf", pdf(*pages))
    assert text == "\n\n".join(page for page in pages if page)
    assert expected in warning


def test_a_pdf_that_opens_without_a_password_though_encrypted(read: Any) -> None:
    assert read("a.pdf", pdf("open", encrypt="")) == "open"


def test_a_pdf_with_a_password(error: Any) -> None:
    message = error("a.pdf", pdf("secret", encrypt="password"))
    assert "is encrypted; expected a PDF that opens without a password; save it without one" in message


@pytest.mark.parametrize("data", [b"%PDF-1.4 junk", b"no pdf " * 100, pdf("text")[:300]])
def test_a_broken_pdf(error: Any, data: Any) -> None:
    message = error("a.pdf", data)
    assert "is broken (" in message
    assert "expected a PDF; open it in a viewer and save it again" in message


def test_a_pdf_that_makes_pypdf_recurse(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def recurse(*args: Any, **kwargs: Any) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(pypdf, "PdfReader", recurse)
    assert "is broken (RecursionError: maximum recursion depth exceeded)" in error("a.pdf", b"%PDF")


def test_a_scanned_pdf(error: Any) -> None:
    message = error("a.pdf", pdf("", ""))
    assert "no text in its 2 pages, probably scanned images" in message
    assert "run OCR" in message


def test_a_pdf_that_unpacks_to_too_much_text(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pdf("x" * 100_000)
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", 99_999)
    monkeypatch.setattr("kvtool.documents.read.read_bytes", lambda path: data)
    message = error("a.pdf", data)
    assert "too large, more than 99,999 characters of text; split the PDF" in message


def test_pdf_without_pypdf(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def without_pypdf(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pypdf":
            raise ImportError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pypdf)
    assert "needs pypdf to be read; install it with: pip install 'kvtool[pdf]'" in error("a.pdf", b"%PDF")
