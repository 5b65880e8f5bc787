"""Documents that are there wherever Python is: prose, source code, and kvtool's own pages."""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import kvtool
from benchmarks.corpora.help_text import text_of
from kvtool.model.chat_template import document_tokens

PAGES = Path(__file__).resolve().parents[2] / "docs"

SKIP = 20_000
"""Tokens of Python's help between one text of prose and the next."""


def write_corpus(folder: Path, model: kvtool.Model, tokens: int) -> list[Path]:
    """Six documents of ``tokens`` tokens each."""
    folder.mkdir(parents=True)
    pages = "\n\n".join((PAGES / f"{name}.md").read_text() for name in ("architecture", "faq", "artifact"))
    texts = {
        "help-1.txt": text_of(model, tokens),
        "help-2.txt": text_of(model, tokens, skip=SKIP),
        "parser.py": Path(argparse.__file__).read_text(),
        "archive.py": Path(tarfile.__file__).read_text(),
        "decoder.py": Path(json.__file__).with_name("decoder.py").read_text(),
        "pages.md": pages,
    }
    written = []
    for name, text in texts.items():
        ids = document_tokens(model, text[: tokens * 8])[:tokens]
        path = folder / name
        path.write_text(str(model.tokenizer.decode(ids)))
        written.append(path)
    return written
