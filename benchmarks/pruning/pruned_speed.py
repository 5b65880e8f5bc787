"""Decoding speed and memory over pruned caches, against the full one.

python -m benchmarks pruned_speed [--tokens 4096 7800] [--keep 0.3] [--rows snapkv ada-kv …] [--repeats 5]
    [--write docs/results/pruning_speed.md]

All variants come from files and are decoded over in one process, in rounds in which each has one turn; ratios are those of the
medians. Memory is what the process grows by (Linux). The embedded model's context is 8,192, with room for a prefix and an answer.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import machine
from benchmarks.common.timing import interleaved
from benchmarks.corpora.help_text import text_of
from benchmarks.pages.tables import table
from kvtool.compression.pipeline_options import parameters_of
from kvtool.engines.attention.cache_attention import cache_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.transformers import device_of
from kvtool.measurement.peak_memory import peak, status
from kvtool.store.local import LocalStore
from kvtool.store.manifest import RAW
from kvtool.system.malloc_trim import trim

ROWS = ("snapkv:heads=tokens", "snapkv", "ada-kv")
"""The same tokens in all heads; as many in each head; different numbers in each. None of them needs a replay, for which a long
document leaves no room in the context."""

PAGE = """# Pruning: speed and memory

Decoding over caches that keep {keep:g} of their tokens, against the full cache of the same document. This command makes the page:

`{command}`

{machine}. Model: {model}.

- **stored**: bytes of the file. **resident**: what the process grows by when the cache is loaded, measured after free memory is
  given back. **peak**: the most that the process grows by while it loads the cache and decodes {decoded} tokens. All are divided
  by those of the full cache; **MB** is that of the resident full cache. The prefix is a part of each.
- **speed**: tokens a second, divided by that over the full cache: medians of {repeats} interleaved rounds of {decoded} tokens.
  **ms**: of a token, in this run.

{table}
"""

COLUMNS = ("tokens", "variant", "stored", "resident", "peak", "speed", "ms", "MB")


@dataclass(frozen=True)
class Memory:
    """Bytes: of the file, what the process grows by, and the most that it grew by meanwhile."""

    stored: int
    resident: int
    most: int


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    model = kvtool.load_model()
    rows: list[list[str]] = []
    for tokens in arguments.tokens:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(model, Path(folder), tokens, arguments)
    page = PAGE.format(
        keep=arguments.keep,
        model=model.name,
        machine=machine(),
        command=arguments.command,
        repeats=arguments.repeats,
        decoded=arguments.decoded,
        table=table(COLUMNS, rows),
    )
    print(page)
    if arguments.write:
        arguments.write.write_text(page)


def measure(model: kvtool.Model, folder: Path, tokens: int, arguments: argparse.Namespace) -> list[list[str]]:
    """A row for the full cache and each variant of one document of ``tokens`` tokens."""
    store, name = _compressed(model, folder, tokens, arguments.rows, arguments.keep)
    variants = [RAW, *arguments.rows]
    # Once, so that what is compiled or first used is not counted as a cache's.
    for variant in variants:
        decode(model, store.load(name, model, variant), 1)
    memory = {variant: _memory(model, store, name, variant, arguments.decoded) for variant in variants}
    caches = {variant: store.load(name, model, variant) for variant in variants}
    runs: dict[str, Callable[[], float]] = {
        variant: partial(decode, model, cache, arguments.decoded) for variant, cache in caches.items()
    }
    seconds = interleaved(runs, arguments.repeats)
    full, n_tokens = memory[RAW], store[name].n_tokens
    return [
        [
            f"{n_tokens:,}",
            "full" if variant == RAW else f"`{variant}`",
            f"{one.stored / full.stored:.3f}",
            f"{one.resident / full.resident:.3f}",
            f"{one.most / full.most:.3f}",
            f"{seconds[RAW] / seconds[variant]:.2f}",
            f"{1000 * seconds[variant] / arguments.decoded:.1f}",
            f"{full.resident / 1e6:.0f}" if variant == RAW else "",
        ]
        for variant, one in memory.items()
    ]


def _compressed(
    model: kvtool.Model, folder: Path, tokens: int, rows: Sequence[str], keep: float
) -> tuple[LocalStore, str]:
    """A store with one document, prefilled and compressed into each of ``rows``, and the document's name."""
    path = folder / f"{tokens}.txt"
    path.write_text(text_of(model, tokens))
    store = LocalStore(folder / "store")
    # More than the default, which leaves room for long answers. Text that is tokenized again may have a few tokens more.
    kvtool.prefill([path], model=model, store=store, segment_tokens=tokens + 64)
    if (segments := len(store[path.name].segments)) > 1:
        raise kvtool.KvtoolError(
            f"--tokens {tokens}", f"makes {segments} segments, expected one", "choose fewer tokens"
        )
    for row in rows:
        recipe, *options = row.split(":")
        parameters: dict[str, Any] = {
            "keep": keep,
            **parameters_of(options, f"--rows {row}", "snapkv:heads=tokens"),
        }
        kvtool.compress(store, recipe=recipe, name=row, model=model, **parameters)
    return store, path.name


@torch.no_grad()
def decode(model: kvtool.Model, cache: DocumentCache, tokens: int) -> float:
    """Seconds in which ``tokens`` tokens are decoded greedily after ``cache``, which is left as it was."""
    length = cache.get_seq_length()
    token = cache.token_ids[-1:][None].to(device_of(model))
    with cache_attention(model, cache):
        started = time.perf_counter()
        for _ in range(tokens):
            logits = model.model(input_ids=token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(-1)
        seconds = time.perf_counter() - started
    cache.crop(length - cache.get_seq_length())
    return seconds


def _memory(model: kvtool.Model, store: LocalStore, name: str, variant: str, decoded: int) -> Memory:
    before = _grown_to()
    with peak() as most:
        cache = store.load(name, model, variant)
        resident = _grown_to() - before
        decode(model, cache, decoded)
    if most.nbytes is None:
        raise SystemExit("this system does not report the memory of a process")
    return Memory(store.size(name, variant), resident, most.nbytes)


def _grown_to() -> int:
    """Bytes that the process holds, without mapped files, once what is free has been given back."""
    gc.collect()
    trim()
    resident = status("RssAnon")
    if resident is None:
        raise SystemExit("/proc/self/status has no RssAnon")
    return resident


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 7800], help="of the documents")
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="recipes that prune, without keep")
    parser.add_argument("--decoded", type=int, default=32, help="tokens of one turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, help="the page")
    arguments = parser.parse_args(argv)
    arguments.command = command("pruned_speed", argv)
    return arguments
