"""kvtool demo: the main job, end to end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from . import common

DOCUMENT = "docs/faq.md"
QUESTION = "How do I check that a store is whole?"
TOKENS = 35


def run(
    question: Annotated[str, typer.Option("--question", help="What to ask.")] = QUESTION,
    doc: Annotated[str, typer.Option("--doc", help="Which of kvtool's documents to ask.")] = DOCUMENT,
) -> int:
    """Prefill kvtool's own documents with the embedded model, compress them, and ask a question, with both times."""
    from . import ask, compress, ls, prefill

    documents = Path(__file__).resolve().parents[1] / "docs"
    # A folder of its own: documents are named by their path from the working directory.
    with tempfile.TemporaryDirectory(prefix="kvtool-demo-") as folder, contextlib.chdir(folder):
        shutil.copytree(documents, "docs")
        store = Path("kv-store")
        _announce("prefill docs/")
        if code := prefill.run(["docs/"], store=store):
            return code
        _announce("compress --recipe kivi --bits 4")
        if code := compress.run(recipe="kivi", bits=4, store=store):
            return code
        _announce("ls")
        ls.run(store=store)
        for variant in ("raw", "kivi"):
            _announce(f"ask '{question}' --doc {doc} --variant {variant} --max-tokens {TOKENS} --compare")
            ask.run([question], [doc], variant=variant, max_tokens=TOKENS, compare=True, store=store)
    return 0


def _announce(command: str) -> None:
    common.say(f"\n$ kvtool {command}")
