"""kvtool demo: the main job, end to end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from kvtool.commands import common

PAGES = ("artifact.md", "calibration.md", "faq.md", "why.md")
"""Those of kvtool's documents that are short, so that a first try takes half a minute."""

DOCUMENT = "docs/faq.md"
QUESTION = "How do I check that a store is whole?"
TOKENS = 35

BLENDED = ("docs/faq.md", "docs/why.md")
QUESTION_TO_BOTH = "What is a recipe?"
TOKENS_FROM_BOTH = 12


def run(
    question: Annotated[str, typer.Option("--question", help="What to ask.")] = QUESTION,
    doc: Annotated[str, typer.Option("--doc", help="Which of kvtool's documents to ask.")] = DOCUMENT,
) -> int:
    """Prefill some of kvtool's documents with the embedded model, compress them, ask one and two of them, with both times."""
    from kvtool.commands import ask, compress, prefill
    from kvtool.commands.store import ls

    documents = Path(__file__).resolve().parents[1] / "docs"
    # A folder of its own: documents are named by their path from the working directory.
    with tempfile.TemporaryDirectory(prefix="kvtool-demo-") as folder, contextlib.chdir(folder):
        Path("docs").mkdir()
        for page in {*PAGES, Path(doc).name}:
            for path in documents.rglob(page):
                shutil.copy(path, "docs")
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
        _announce(
            f"ask '{QUESTION_TO_BOTH}' {' '.join(f'--doc {d}' for d in BLENDED)} --max-tokens {TOKENS_FROM_BOTH} --compare"
        )
        ask.run([QUESTION_TO_BOTH], list(BLENDED), max_tokens=TOKENS_FROM_BOTH, compare=True, store=store)
    return 0


def _announce(command: str) -> None:
    common.say(f"\n$ kvtool {command}")
