"""kvtool demo: the main job, end to end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from kvtool.commands import common

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
"""Short texts that come with kvtool, so that a first try takes half a minute."""

DOCUMENT = "samples/harbour.md"
QUESTION = "What does a night cost?"
TOKENS = 28

BLENDED = ("samples/bakery.md", "samples/harbour.md")
QUESTION_TO_BOTH = "How many steps does the lighthouse have?"
TOKENS_FROM_BOTH = 12


def run(
    question: Annotated[str, typer.Option("--question", help="What to ask.")] = QUESTION,
    doc: Annotated[str, typer.Option("--doc", help="Which of the sample documents to ask.")] = DOCUMENT,
) -> int:
    """Prefill the sample documents with the embedded model, compress them, ask one and two of them, with both times."""
    from kvtool.commands import ask, compress, prefill
    from kvtool.commands.store import ls

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
        _announce(
            f"ask '{QUESTION_TO_BOTH}' {' '.join(f'--doc {d}' for d in BLENDED)} --max-tokens {TOKENS_FROM_BOTH} --compare"
        )
        ask.run([QUESTION_TO_BOTH], list(BLENDED), max_tokens=TOKENS_FROM_BOTH, compare=True, store=store)
    return 0


def _announce(command: str) -> None:
    common.say(f"\n$ kvtool {command}")
