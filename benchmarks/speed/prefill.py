"""Tokens per second of ``kvtool.prefill``, against a plain transformers loop over the same documents.

python -m benchmarks prefill [--repeats 3]

kvtool's time includes reading, splitting, hashing and writing the store; the loop's is the model's alone, on token ids
made beforehand, and what it computes is thrown away. The loop runs twice: as in transformers' documentation
(``model(ids)``), and lean, with ``logits_to_keep=1``. Both see the prefix before each document, as kvtool's caches do;
tokens counted are the documents' own.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.timing import interleaved
from benchmarks.corpora.help_text import text_of
from kvtool.model.chat_template import document_tokens, prefix_of


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args(argv).repeats
    model = kvtool.load_model()
    print(machine())
    _loop(model, [document_tokens(model, text_of(model, 200))])()
    sizes = random.Random(0)
    sets = {
        "100 of 50–200": [text_of(model, sizes.randint(50, 200), skip=n * 300) for n in range(100)],
        "2 of 4,096": [text_of(model, 4096, skip=n * 5000) for n in range(2)],
    }
    for name, texts in sets.items():
        ids = [document_tokens(model, text) for text in texts]
        tokens = sum(map(len, ids))
        medians = interleaved(
            {
                "kvtool": partial(_kvtool, model, texts),
                "plain": _loop(model, ids),
                "lean": _loop(model, ids, logits_to_keep=1),
            },
            repeats,
            warm_up=False,
        )
        speed = {way: tokens / seconds for way, seconds in medians.items()}
        row = [
            name,
            tokens,
            *(f"{speed[way]:.0f}" for way in ("kvtool", "plain", "lean")),
            f"{speed['kvtool'] / speed['plain']:.2f}",
            f"{speed['kvtool'] / speed['lean']:.2f}",
        ]
        print_table(
            ["documents", "tokens", "kvtool tok/s", "plain", "lean", "kvtool / plain", "kvtool / lean"], [row]
        )


def _kvtool(model: kvtool.Model, texts: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "documents"
        documents.mkdir()
        for number, text in enumerate(texts):
            (documents / f"{number:03}.txt").write_text(text)
        started = time.monotonic()
        report = kvtool.prefill([documents], model=model, store=kvtool.Store(Path(folder) / "store"))
        seconds = time.monotonic() - started
    if report.problems or len(report.prefilled) != len(texts):
        raise SystemExit(f"not all documents were prefilled: {report.problems}")
    return seconds


def _loop(model: kvtool.Model, documents: Sequence[list[int]], **options: int) -> Callable[[], float]:
    prefix = list(prefix_of(model).token_ids)

    @torch.no_grad()
    def run() -> float:
        started = time.monotonic()
        for ids in documents:
            model.model(torch.tensor([prefix + ids]), use_cache=True, **options)
        return time.monotonic() - started

    return run
