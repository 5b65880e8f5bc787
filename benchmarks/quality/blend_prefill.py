"""What caches made for blending cost, with their scores, beside the prefill of the same documents."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvtool
from benchmarks.common.timing import interleaved
from benchmarks.corpora.help_text import prefilled_help
from benchmarks.quality.blend_rows import MIXED, RANDOM, SIMILAR
from kvtool.blending.averaged import NEIGHBOURS, make_averaged
from kvtool.store.local import LocalStore

DOCUMENTS, TOKENS = 6, 200


def prefill_cost(model: kvtool.Model, repeats: int) -> dict[str, Any]:
    """Seconds of prefill, and of what ``--neighbours`` adds to it; rounds interleaved.

    Each document is prefilled after each of its neighbours. The spread of these caches, which blending scores tokens by,
    takes no further run of the model.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, names = prefilled_help(model, folder, DOCUMENTS, TOKENS)
        files = sorted(folder.glob("*.txt"))
        copy = folder / "copy"

        def timed(run: Callable[[], object]) -> float:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started

        def prefill() -> float:
            shutil.rmtree(copy, ignore_errors=True)
            return timed(lambda: kvtool.prefill(files, model=model, store=LocalStore(copy)))

        def average(choice: str) -> float:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(str(source), copy)
            return timed(lambda: make_averaged(LocalStore(copy), model, names, choice=choice))

        runs = {
            "prefill": prefill,
            f"{NEIGHBOURS} neighbours, {RANDOM}": lambda: average(RANDOM),
            f"{NEIGHBOURS} neighbours, {SIMILAR}": lambda: average(SIMILAR),
            f"{NEIGHBOURS} neighbours, {MIXED}": lambda: average(MIXED),
        }
        return {
            "documents": DOCUMENTS,
            "tokens": TOKENS,
            "repeats": repeats,
            "seconds": interleaved(runs, repeats, warm_up=False),
        }
