"""The text of office documents, books and notebooks; what is wrong with those that have none."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.comments import Comment

from kvtool import limits
from kvtool.documents.load import Account, load
from kvtool.documents.office.convert import FORMATS, convert
from kvtool.documents.office.convert import _executor as executor
from kvtool.errors import DocumentError
from tests.documents.packages import docx, epub, packed, paragraph, pptx, shape


def text(name: str, data: bytes) -> str:
    """The text of a file that gives rise to no warning."""
    result, warnings = convert(data, Path(name).suffix, name)
    assert warnings == []
    return result


def xlsx(fill: Callable[[openpyxl.Workbook], None] = lambda _: None) -> bytes:
    book = openpyxl.Workbook()
    fill(book)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def notebook(*cells: dict[str, Any]) -> bytes:
    kernel = {"kernelspec": {"language": "python"}}
    return json.dumps({"nbformat": 4, "metadata": kernel, "cells": cells}).encode()


def test_word() -> None:
    def cells(*texts: str) -> str:
        return f"<w:tr>{''.join(f'<w:tc>{paragraph(text)}</w:tc>' for text in texts)}</w:tr>"

    data = docx(
        paragraph("Prices", '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>')
        + '<w:p><w:r><w:t>A crane</w:t><w:footnoteReference w:id="1"/><w:tab/><w:t>costs</w:t></w:r></w:p>'
        + f"<w:tbl>{cells('Item', 'Price')}{cells('Crane', '12 €')}</w:tbl>"
        + "<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>"
        + "<w:p><w:r><w:pict><v:shape><v:textbox><w:txbxContent>"
        + f"{paragraph('in a box')}</w:txbxContent></v:textbox></v:shape></w:pict></w:r></w:p>",
        footnotes=f'<w:footnote w:id="1">{paragraph("without fuel")}</w:footnote>',
        styles='<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>',
    )
    table = "|  |  |\n| --- | --- |\n| Item | Price |\n| Crane | 12 € |"
    assert text("a.docx", data) == (
        f"# Prices\n\nA crane[1] costs\n\n{table}\n\nnew\n\nin a box\n\n1. without fuel"
    )


def test_what_the_converter_of_word_leaves_out_follows_a_rule() -> None:
    field = '<w:p><w:r><w:t>until </w:t></w:r><w:fldSimple w:instr="DATE"><w:r><w:t>May</w:t></w:r></w:fldSimple></w:p>'
    equation = "<w:p><m:oMath><m:r><m:t>x=5</m:t></m:r></m:oMath></w:p>"
    data = docx(paragraph("body") + field + equation, hdr=paragraph("Secret") * 2, ftr=paragraph("body"))
    assert text("a.docx", data) == "body\n\nuntil\n\n---\n\nuntil May\n\nx=5\n\nSecret"


def test_powerpoint() -> None:
    table = "".join(
        f"<a:tr>{''.join(f'<a:tc><a:p><a:r><a:t>{cell}</a:t></a:r></a:p></a:tc>' for cell in row)}</a:tr>"
        for row in ("kv", "xy")
    )
    series = "<c:ser><c:tx><c:v>Sales</c:v></c:tx><c:cat><c:v>Q1</c:v></c:cat><c:val><c:v>1.5</c:v></c:val></c:ser>"
    data = pptx(
        shape("First", placeholder="title")
        + f"<p:grpSp>{shape('one', 'two')}</p:grpSp><a:tbl>{table}</a:tbl>"
        + shape("7", placeholder="sldNum"),
        shape("Second"),
        notesSlide=shape("say this"),
        chart=series,
    )
    assert text("a.pptx", data) == (
        "## First\n\none\ntwo\n\n| k | v |\n| --- | --- |\n| x | y |\n\nSales: Q1 1.5\n\nNotes: say this\n\nSecond"
    )


def test_slides_without_text_are_named() -> None:
    result, (warning,) = convert(pptx(shape("text"), "", "<p:pic/>"), ".pptx", "a.pptx")
    assert result == "text"
    assert str(warning).startswith("a.pptx: has no text on 2 of its 3 slides (2, 3)")


def test_excel() -> None:
    def fill(book: openpyxl.Workbook) -> None:
        sheet = book.active
        sheet.title = "Prices"
        sheet.append(["Item", "Price", "Since"])
        sheet.append(["Crane|2", 12.5, date(2026, 3, 1)])
        sheet.append([])
        sheet.append([True, 0.25, datetime(2026, 3, 1, 14, 30)])
        sheet["B4"].number_format = "0%"
        sheet["A1"].comment = Comment("without fuel", "me")
        book.create_sheet("Hidden")["C2"] = "far\naway"
        book["Hidden"].sheet_state = "hidden"
        book.create_sheet("Empty")

    assert text("a.xlsx", xlsx(fill)) == (
        "## Prices\n\n| Item | Price | Since |\n| --- | --- | --- |\n| Crane\\|2 | 12.5 | 2026-03-01 |\n"
        "| TRUE | 25% | 2026-03-01 14:30:00 |\n\n"
        "## Hidden\n\n|  |  | far away |\n| --- | --- | --- |\n\n---\n\nwithout fuel"
    )


def test_formulas_without_results_are_read_themselves_and_named() -> None:
    data = xlsx(lambda book: book.active.append([1, 2, "=SUM(A1:B1)"]))
    result, (warning,) = convert(data, ".xlsx", "a.xlsx")
    assert "| 1 | 2 | =SUM(A1:B1) |" in result
    assert "stores no result for 1 of its formulas" in str(warning)


def test_epub_in_reading_order() -> None:
    data = epub("<h1>One</h1><p>first", "<p>second</p><ul><li>item</li></ul>")
    assert text("a.epub", data) == "The Book\n\n# One\n\nfirst\n\nsecond\n\n- item"


def test_a_book_of_pictures_is_named() -> None:
    _, (warning,) = convert(epub("<p>imprint</p>", "<img/>", "<img/>"), ".epub", "a.epub")
    assert "has no text in 2 of its 3 chapters" in str(warning)


def test_rich_text() -> None:
    data = (
        rb"{\rtf1\ansi\ansicpg1250{\fonttbl{\f0 Arial;}}{\header top\par}{\info{\title no}}"
        rb"Hello \b bold\b0  caf\'e9 \u8364? \'a3uk \u-10179?\u-8704?{\footnote a \{note\}}.\par"
        rb"{\shp{\*\shpinst{\sp{\sn x}{\sv 1}}{\shptxt in a box\par}}}{\trowd c1\cell c2\cell\row}}"
    )
    assert text("a.rtf", data) == (
        "top\n\nHello bold café € Łuk \N{GRINNING FACE} [a {note}].\nin a box\nc1|c2|"
    )


def test_a_notebook_with_what_its_code_has_printed() -> None:
    outputs = [
        {"output_type": "stream", "text": ["hi\n", "you\n"]},
        {"output_type": "display_data", "data": {"image/png": "iVBO", "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": "<b>42</b>"}},
        {"output_type": "error", "traceback": ["\x1b[31mValueError\x1b[0m: bad"]},
    ]
    data = notebook(
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "x = '```'", "outputs": outputs},
        {"cell_type": "raw", "source": "raw"},
    )
    assert text("a.ipynb", data) == (
        "# Title\nwords\n\n````python\nx = '```'\n````\n\n```\nhi\nyou\n```\n\n```\n**42**\n```\n\n"
        "```\nValueError: bad\n```\n\nraw"
    )


def test_a_file_with_pictures_only(error: Any) -> None:
    file = io.BytesIO(docx("<w:p/>"))
    with ZipFile(file, "a") as package:
        package.writestr("word/media/a.png", b"picture")
    message = error("a.docx", file.getvalue())
    assert "has pictures and no text; expected a Word document with text" in message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.docx", docx("<w:p/>")),
        ("a.pptx", pptx("")),
        ("a.xlsx", xlsx()),
        ("a.epub", epub("")),
        ("a.rtf", rb"{\rtf1 }"),
        ("a.ipynb", notebook()),
        ("b.docx", b""),
    ],
)
def test_an_empty_file_in_a_folder_is_passed_over(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / f"~${name}").write_bytes(b"open in an editor")
    (tmp_path / "a.md").write_text("text")
    account = Account()
    assert [document.text for document in load([tmp_path], account)] == ["text"]
    assert (account.problems, account.passed_over) == ([], {"empty": 1, "hidden": 1})


def encrypted_zip() -> bytes:
    data = bytearray(docx(paragraph("text")))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)),
        ("a.pptx", encrypted_zip()),
        (
            "a.epub",
            epub("text", encryption='<e><CipherReference URI="OPS/text/c0.xhtml"/></e>'),
        ),
    ],
)
def test_an_encrypted_file(name: str, data: bytes) -> None:
    with pytest.raises(DocumentError, match=rf"^{name}: is encrypted"):
        convert(data, Path(name).suffix, name)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("data", [b"no such file", b"{}", docx(paragraph("text"))[:-30], packed({"a": "b"})])
def test_a_broken_file(suffix: str, data: bytes) -> None:
    with pytest.raises(
        DocumentError, match=r"^a: is broken \(.*\); expected (an? .*|rich text); open it in"
    ) as caught:
        convert(data, suffix, "a")
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from([".docx", ".pptx", ".rtf", ".epub", ".ipynb"]),
    at=st.floats(0, 1),
    byte=st.binary(),
)
def test_any_damage_gives_text_or_a_document_error(suffix: str, at: float, byte: bytes) -> None:
    data = {
        ".docx": docx(paragraph("text")),
        ".pptx": pptx(shape("text")),
        ".rtf": rb"{\rtf1\ansi{\fonttbl{\f0\fcharset238 A;}} \u8364?\'a3{\footnote b}}",
        ".epub": epub("text"),
        ".ipynb": notebook({"cell_type": "code", "source": "x", "outputs": [{"text": "y"}]}),
    }[suffix]
    place = int(at * len(data))
    try:
        result, _ = convert(data[:place] + byte + data[place + 1 :], suffix, "a")
    except DocumentError:
        return
    assert result.encode().decode() == result


def test_a_zip_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 100_000)
    with pytest.raises(
        DocumentError, match=r"too large, 1,00.,... bytes when unpacked; expected at most 100,000"
    ):
        convert(docx(paragraph("x" * 1_000_000)), ".docx", "a")


def test_a_row_that_no_sheet_has(monkeypatch: pytest.MonkeyPatch) -> None:
    data = xlsx(lambda book: book.active.cell(1000, 1, "last"))
    assert "last" in text("a.xlsx", data)
    monkeypatch.setattr(limits, "SHEET_ROWS", 999)
    with pytest.raises(DocumentError, match="sheet Sheet has more than 999 rows"):
        convert(data, ".xlsx", "a")


def test_entities_that_multiply_or_name_files() -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    for entities in (f'<!ENTITY e0 "x">{levels}', '<!ENTITY e11 SYSTEM "file:///etc/passwd">'):
        body = docx(paragraph("&e11;"))
        parts = {"ppt/presentation.xml": f"<!DOCTYPE a [{entities}]><a>&e11;</a>"}
        relation = "<Relationship Type='x/officeDocument' Target='ppt/presentation.xml'/>"
        bomb = packed({"_rels/.rels": f"<r>{relation}</r>", **parts})
        for suffix, data in ((".docx", body), (".pptx", bomb)):
            with pytest.raises(DocumentError, match="is broken"):
                convert(data, suffix, "a")


def test_files_are_read_in_another_process_within_bounds(
    read: Any, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = docx(paragraph("text"))
    assert read("a.DOCX", data) == read("a.docm", data) == "text"
    with monkeypatch.context() as bounded:
        # The one process is busy, so that the conversion cannot end before it is waited for.
        executor().submit(time.sleep, 60)
        bounded.setattr(limits, "CONVERSION_SECONDS", 0.0)
        assert "cannot be converted within 0 s and 4 GiB; split it" in error("b.docx", data)
    assert read("c.docx", data) == "text"


def test_an_interrupted_run_leaves_no_process(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    data = docx(paragraph("text"))
    read("a.docx", data)
    (worker,) = executor()._processes.values()
    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read("b.docx", data)
    assert not worker.is_alive()
    assert read("c.docx", data) == "text"


KILLED = """
import time
from kvtool.documents.office.convert import _executor as executor
executor().submit(time.sleep, 60)
print(*executor()._processes, flush=True)
time.sleep(60)
"""


def test_a_killed_run_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker = int(process.stdout.readline())
        # Once it has begun to work, it would not notice by itself.
        time.sleep(1)
        process.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _is_alive(worker):
        time.sleep(0.1)
    assert not _is_alive(worker)


def _is_alive(pid: int) -> bool:
    """Whether the process is there and has not ended, though nobody may have waited for it."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] not in ("", "Z")


def test_without_the_extra(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    remedy = "install it with: pip install 'kvtool[office]'"
    assert f"is a Word document, which needs mammoth to be read; {remedy}" in error("a.docx", docx(""))
    (tmp_path / "b.docx").write_bytes(docx(""))
    (tmp_path / "a.md").write_text("text")
    account = Account()
    assert [document.text for document in load([tmp_path], account)] == ["text"]
    assert account.passed_over == {".docx": 2}
    assert [str(warning) for warning in account.warnings] == [
        f".docx: 2 of these files were passed over, since mammoth is missing; {remedy}"
    ]
