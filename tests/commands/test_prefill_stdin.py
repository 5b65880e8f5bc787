"""kvtool prefill -: a document from standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvtool import Store
from kvtool.commands.prefill import _documents
from kvtool.errors import FAILED, USAGE, UsageError
from tests.commands.conftest import Cli, error_of

PAGE = b"<html><head><title>Hours</title></head><body><p>The code is 4711.</p></body></html>"


def test_the_ending_of_the_name_decides_the_format(cli: Cli) -> None:
    def prefill(name: str, data: bytes, *flags: str) -> str:
        report = json.loads(cli("prefill", "-", "--name", name, "--json", *flags, stdin=data).stdout)
        assert report["problems"] == []
        return "prefilled" if report["prefilled"] == [name] else "unchanged"

    assert prefill("web/page.html", PAGE) == "prefilled"
    assert prefill("web/page.html", PAGE) == "unchanged"
    assert prefill("web/page.txt", PAGE) == "prefilled"
    Path("page.md").write_text("Hours\n\nThe code is 4711.")
    cli("prefill", "page.md")
    store = Store("kv-store")
    assert store["web/page.html"].text_digest == store["page.md"].text_digest
    # What is fetched anew may replace what was fetched before.
    assert prefill("web/page.html", PAGE.replace(b"4711", b"4712")) == "prefilled"
    assert prefill("polish.txt", "Łukasz".encode("cp1250"), "--encoding", "cp1250") == "prefilled"
    Path("polish.md").write_text("Łukasz")
    cli("prefill", "polish.md")
    assert store["polish.txt"].text_digest == store["polish.md"].text_digest


def test_a_file_is_not_replaced_silently(cli: Cli) -> None:
    cli("prefill", "docs/a.md")
    message = error_of(cli("prefill", "-", "--name", "docs/a.md", stdin=b"Another text.", code=FAILED))
    assert (
        f"the store holds it from {Path('docs/a.md').resolve()}, and what was sent has another text"
        in message
    )
    cli("prefill", "-", "--name", "docs/a.md", stdin=Path("docs/a.md").read_bytes())
    result = cli("prefill", "-", "--name", "docs/a.md", "--replace", stdin=b"Another text.")
    assert "docs/a.md replaced: it came from" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "text"),
    [
        (["-"], b"text", USAGE, "-: reads a document that has no name; expected --name"),
        (["-", "docs", "--name", "a.md"], b"text", USAGE, "-: reads one document from standard input"),
        (["docs", "--name", "a.md"], b"text", USAGE, "--name: is for what - reads from standard input"),
        (["-", "--name", "../a.md"], b"text", FAILED, "'../a.md': is not a document name"),
        (["-", "--name", "a.md"], b"", FAILED, "a.md: it is empty (0 bytes)"),
        (["-", "--name", "a.md"], b"\x7fELF\0", FAILED, "a.md: is binary"),
        (["-", "--name", "a.pdf"], b"text", FAILED, "a.pdf: is broken"),
    ],
)
def test_what_cannot_be_read(cli: Cli, arguments: list[str], stdin: bytes, code: int, text: str) -> None:
    assert text in error_of(cli("prefill", *arguments, stdin=stdin, code=code))


def test_a_terminal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for stdin in (SimpleNamespace(isatty=lambda: True), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UsageError, match="reads standard input, which is closed or the terminal"):
            _documents(["-"], "a.md")
