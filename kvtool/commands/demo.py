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

PACKAGE = Path(__file__).resolve().parents[1]

HANDBOOK = PACKAGE / "demo" / "handbook.md"
"""Long enough that its cache saves many times what loading it costs, and short enough for a first try on a laptop."""

QUESTION = "When does the first boat leave Port Almond?"
TOKENS = 15

BLENDED = ("samples/bakery.md", "samples/harbour.md")
QUESTION_TO_BOTH = "How many steps does the lighthouse have?"
TOKENS_FROM_BOTH = 12


def run(
    question: Annotated[
        str, typer.Option(help="Ask this about handbook.md, the handbook of a ferry line.")
    ] = QUESTION,
) -> int:
    """Prefill sample documents with the embedded model, compress them, ask one and two of them, with both times."""
    # A folder of its own: documents are named by their path from the working directory.
    with tempfile.TemporaryDirectory(prefix="kvtool-demo-") as folder, contextlib.chdir(folder):
        shutil.copy(HANDBOOK, ".")
        shutil.copytree(PACKAGE / "samples", "samples")
        store, handbook = Path("kv-store"), HANDBOOK.name
        paths = [handbook, *BLENDED]
        _announce(f"prefill {' '.join(paths)}")
        if code := prefill.run(paths, store=store):
            return code
        _announce("compress")
        if code := compress.run(store=store):
            return code
        _announce("ls")
        ls.run(store=store)
        # The same prefill without a cache, timed once: it takes most of the demo's time.
        for variant, flag, compare in (("raw", " --compare", True), ("klt", "", False)):
            _announce(f"ask '{question}' --doc {handbook} --variant {variant} --max-tokens {TOKENS}{flag}")
            ask.run([question], [handbook], variant=variant, max_tokens=TOKENS, compare=compare, store=store)
        both = " ".join(f"--doc {name}" for name in BLENDED)
        _announce(f"ask '{QUESTION_TO_BOTH}' {both} --max-tokens {TOKENS_FROM_BOTH} --compare")
        ask.run([QUESTION_TO_BOTH], list(BLENDED), max_tokens=TOKENS_FROM_BOTH, compare=True, store=store)
    return 0


def _announce(command: str) -> None:
    output.note("")
    output.note(f"$ kvtool {command}")
