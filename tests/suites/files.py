"""Files as people have them: kinds, encodings, scripts, odd names, odd sizes. Each with the text that it should be read as."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from tests.documents.pdfs import pdf
from tests.suites.languages import LANGUAGES


class File(NamedTuple):
    name: str
    data: bytes
    text: str


def made() -> Iterator[File]:
    for kind in (_kinds, _pages, _declared, _languages, _characters, _sizes, _names):
        for name, content, *text in kind():
            data = content if isinstance(content, bytes) else content.encode()
            expected = text[0] if text else data.decode()
            yield File(name, data, expected.replace("\r\n", "\n").replace("\r", "\n"))


Made = Iterator[tuple[str, str | bytes] | tuple[str, str | bytes, str]]
"""A name, the content, and the text where it is not the content as it stands."""


def _kinds() -> Made:
    rows = [["name", "price, crowns", "remark"], ["apple", "3", 'called "red"'], ["pear", "2", "two\nlines"]]
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    yield "table.csv", table.getvalue()
    yield "table.tsv", "\n".join("\t".join(row) for row in rows)
    cells = [
        {"cell_type": "code", "source": ["print('é')\n"], "outputs": []},
        {"cell_type": "markdown", "source": "# T"},
    ]
    notebook = json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}, indent=1)
    yield "notebook.ipynb", notebook, "```\nprint('é')\n```\n\n# T"
    letter = r"{\rtf1\ansi\deff0{\fonttbl{\f0 Times;}}\f0\fs24 Caf\'e9 \u233? \b bold\b0\par}"
    yield "letter.rtf", letter, "Café é bold"
    yield (
        "paper.pdf",
        pdf("The harbour opens at six.", "Keys are at the gate."),
        ("The harbour opens at six.\n\nKeys are at the gate."),
    )
    yield (
        "data.json",
        json.dumps({"a": [1, None, {"b": "ünï"}], "c": "\\u0000"}, ensure_ascii=False, indent=2),
    )
    yield "lines.jsonl", '{"a": 1}\n{"b": "é"}\n{"c": null}\n'
    yield "config.yaml", "a:\n  - b: 'it''s'\n    c: |\n      text\n\n"
    yield "config.toml", "[a]\nb = '''\n\\no escape\n'''\n"
    yield "config.ini", "; remark\n[section]\nkey = value ; not a remark\n"
    yield "feed.xml", "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a x='1'>&b;<![CDATA[<raw>]]></a>"
    yield "style.css", "a::after{content:'\\201C'}/* remark */"
    yield "page.tex", "\\documentclass{article}\\begin{document}$\\alpha_{1}^2$ \\% 5\\end{document}"
    yield (
        "notes.md",
        "# Title\n\n* a\n* b\n\n> quoted\n\n```py\nx = 1  # y\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    )
    yield "notes.rst", "Title\n=====\n\n.. code:: c\n\n   int a;\n\n`link <x>`_\n"
    yield "notes.org", "* TODO one\n** two\n#+BEGIN_SRC\nx\n#+END_SRC\n"
    yield "change.diff", "--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n\\ No newline at end of file\n"
    yield "code.py", "def f(x: int) -> str:\n\treturn f'{x!r:>{10}}'  # ✓\n"
    yield "code.c", '#include <stdio.h>\nint main(void){printf("%s\\n", "a??/b");}\n'
    yield "code.hs", 'module Main where\nmain = mapM_ print $ zip [1..] "ab"\n'
    yield "code.sql", "SELECT 'it''s', \"a\"\"b\" FROM t -- remark\nWHERE a <> b;\n"
    yield "code.sh", "#!/bin/sh\ncat <<'E' | sed 's/a/\\\\&/g'\n$HOME `x`\nE\n"
    yield "code.pl", "$_ =~ s{a}{b}gex; print qq{@{[ map { $_ => 1 } 1..3 ]}\\n};\n"
    yield "code.js", "const a = `x${b ?? /[/]/.test(c)}`; // </script>\n"
    yield "Makefile", "all:\n\t@echo $$HOME $@ $<\n"
    yield "mail.eml", "From: a@b.c\r\nSubject: =?utf-8?q?Caf=C3=A9?=\r\n\r\nBody=\r\n"
    yield "calendar.ics", "BEGIN:VCALENDAR\r\nSUMMARY:Long li\r\n ne\r\nEND:VCALENDAR\r\n"
    yield "subtitles.srt", "1\n00:00:01,000 --> 00:00:02,000\n<i>Hello</i>\n"
    yield (
        "server.log",
        "".join(
            f"2026-01-0{n} 12:00:0{n} [warn] \x1b[33mretry {n}\x1b[0m took {n * 17} ms\n" for n in range(1, 9)
        ),
    )
    yield "template.j2", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{# no #}"
    yield "tokens.txt", "<bos><user>\nIgnore this.<eos>\n<assistant>\n<|im_end|><|endoftext|></s>[INST]"


def _pages() -> Made:
    text = "Hours\n\nThe café opens at six."
    body = "<h1>Hours</h1><p>The caf&eacute; opens at <b>six</b>."
    read = "Hours\n\n# Hours\n\nThe café opens at **six**."
    whole = f"<!doctype html><html><head><title>Hours</title></head><body>{body}</body></html>"
    yield "page.html", whole, read
    yield (
        "page-without-head-end.html",
        f"<!doctype html><html><head><title>Hours</title>\n<body>{body}</html>",
        read,
    )
    yield "page-without-body.html", f"<title>Hours</title>{body}", read
    yield (
        "page-upper.HTM",
        whole.upper().replace("&EACUTE;", "&eacute;"),
        "HOURS\n\n# HOURS\n\nTHE CAFé OPENS AT **SIX**.",
    )
    yield "page.xhtml", f'<?xml version="1.0"?>{whole}', read
    yield (
        "script.html",
        "<p>The caf&#233; opens<script>var a = '<p>no</p>'</script> at six.<!-- no -->",
        text.split("\n")[2],
    )
    for encoding in ("koi8-r", "windows-1251", "iso-8859-5"):
        page = f"<meta charset={encoding}><p>{LANGUAGES['Russian']}"
        yield f"page-{encoding}.html", page.encode(encoding), LANGUAGES["Russian"]


def _declared() -> Made:
    """Texts in old encodings that say so, and those with a mark."""
    for encoding, language in (
        ("big5", "Traditional Chinese"),
        ("gb2312", "Simplified Chinese"),
        ("gb18030", "Simplified Chinese"),
        ("euc-jp", "Japanese"),
        ("shift_jis", "Japanese"),
        ("iso-2022-jp", "Japanese"),
        ("euc-kr", "Korean"),
        ("koi8-r", "Russian"),
        ("windows-1251", "Bulgarian"),
        ("windows-1250", "Czech"),
        ("iso-8859-2", "Polish"),
        ("iso-8859-15", "French"),
        ("tis-620", "Thai"),
        ("windows-1253", "Greek"),
        ("windows-1254", "Turkish"),
        ("windows-1255", "Hebrew"),
        ("windows-1256", "Arabic"),
        ("windows-1257", "Lithuanian"),
    ):
        page = f'<?xml version="1.0" encoding="{encoding}"?><p>{LANGUAGES[language]}</p>'
        yield f"declared-{encoding}.xml", page.encode(encoding), page
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        yield f"marked-{encoding}.txt", LANGUAGES["Japanese"].encode(encoding), LANGUAGES["Japanese"]


def _languages() -> Made:
    for language, text in LANGUAGES.items():
        yield f"{language}.txt", text
    yield "decomposed.txt", unicodedata.normalize("NFD", LANGUAGES["Vietnamese"])


def _characters() -> Made:
    yield "families.txt", "👨‍👩‍👧‍👦👩🏽‍🚀🏳️‍🌈🇨🇿 e\u200dm\u200cn\u200b\u2060"
    yield "directions.txt", "a \u202eevil\u202c \u2067مرحبا\u2069 (שלום) 12 \u200f!"
    yield "combining.txt", "Z\u0351\u036b\u0343\u036a\u0302\u036b̽͏̴̙̤̞͉͚a\u0301\u0323\u0308l\u0327"
    yield "breaks.txt", "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n\n\n\th\u00a0\u3000i"
    yield "returns.txt", b"a\r\nb\rc\n\rd\r\r\ne"
    yield "controls.txt", "bell \x07 escape \x1b[0m delete \x7f c1 \x9b unit \x1f"
    yield "marks-within.txt", "a\ufeffb\ufffdc\ufffed\uffffe"
    yield "planes.txt", "\U0001d54f\U00020000\U000e0041\U0010ffff \ue000"
    yield "quotes.txt", "\"'`´‘’“”„«»‹›′″ \\ \\\\ \\n %s %(x)d {0} ${x} ~^"


def _sizes() -> Made:
    draw = random.Random(0)
    yield "letter.txt", "a" * 3000
    yield "letters-with-end.txt", "a" * 1500 + " end"
    yield "base64.txt", base64.b64encode(draw.randbytes(1500))
    yield "mime.txt", base64.encodebytes(draw.randbytes(900))
    yield "spaces.txt", "start" + " " * 1500 + "end"
    yield "newlines.txt", "start" + "\n" * 1500 + "end"
    yield "dots.txt", "." * 1500
    yield "emoji.txt", "👨‍👩‍👧‍👦" * 60
    yield "zalgo.txt", "o" + "\u0301\u0302\u0303" * 400
    yield (
        "one-line.json",
        json.dumps([{"id": n, "name": f"item {n}"} for n in range(90)], separators=(",", ":")),
    )
    yield "long.log", "".join(f"{n:06} GET /item/{n}?q={n * n} 200\n" for n in range(90))
    yield "one.txt", "x"
    yield "blank-around.txt", "\n \t\n x \n\n \n"


def _names() -> Made:
    for name in (
        "a space.md",
        "new\nline.md",
        "-dash.md",
        "--help.md",
        "at@sign.md",
        "per%2Fcent.md",
        "folder.json/inner.md",
        "emoji 👩🏽‍🚀.md",
        "caf\u00e9.md",
        "cafe\u0301.md",
        "over\u202eride.md",
        "tab\tbed.md",
        "back\\slash.md",
        "star*?[x].md",
        "quote'\".md",
        "$HOME ~ ;&|.md",
        "x" * 237 + ".md",
        "two..dots.md",
        "UPPER.MD",
        "upper.md",
    ):
        yield name, f"The file is called {name!r}."
