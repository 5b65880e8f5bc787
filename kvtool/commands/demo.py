"""kvtool demo: prefill, compress and ask, end to end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from kvtool.commands import ask, compress, output, prefill
from kvtool.commands.store import ls

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
"""Short texts that come with kvtool, so that a first try takes half a minute."""

DOCUMENT = "samples/harbour.md"
QUESTION = "What does a night cost?"
TOKENS = 28

BLENDED = ("samples/bakery.md", "samples/harbour.md")
QUESTION_TO_BOTH = "How many steps does the lighthouse have?"
TOKENS_FROM_BOTH = 12


def run(
    question: Annotated[str, typer.Option(help="Ask this.")] = QUESTION,
    doc: Annotated[str, typer.Option(help="Ask this one of the sample documents.")] = DOCUMENT,
) -> int:
    """Prefill the sample documents with the embedded model, compress them, ask one and two of them, with both times."""
    # A folder of its own: documents are named by their path from the working directory.
    with tempfile.TemporaryDirectory(prefix="kvtool-demo-") as folder, contextlib.chdir(folder):
        shutil.copytree(SAMPLES, "samples")
        store = Path("kv-store")
        _announce("prefill samples/")
        if code := prefill.run(["samples/"], store=store):
            return code
        _announce("compress --recipe kivi --bits 4")
        if code := compress.run(recipe="kivi", bits=4, store=store):
            return code
        _announce("ls")
        ls.run(store=store)
        for variant in ("raw", "kivi"):
            _announce(f"ask '{question}' --doc {doc} --variant {variant} --max-tokens {TOKENS} --compare")
            ask.run([question], [doc], variant=variant, max_tokens=TOKENS, compare=True, store=store)
        both = " ".join(f"--doc {name}" for name in BLENDED)
        _announce(f"ask '{QUESTION_TO_BOTH}' {both} --max-tokens {TOKENS_FROM_BOTH} --compare")
        ask.run([QUESTION_TO_BOTH], list(BLENDED), max_tokens=TOKENS_FROM_BOTH, compare=True, store=store)
    return 0


def _announce(command: str) -> None:
    output.note("")
    output.note(f"$ kvtool {command}")
