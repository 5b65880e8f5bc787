"""Reading only what a question needs: bytes, time to first token, retrieval and KL beside the full load.

python -m benchmarks reading_pages [--tokens 7000] [--read 10 25 50] [--haystacks 3] [--keys 10] [--questions 10]
    [--repeats 3] [--folder build/benchmarks/reading_pages] [--write docs/results/reading_pages.md]

Keys are hidden in documents that nobody tuned on, and each is asked alone. --folder keeps the documents and their caches: what it
holds is not prefilled again. HTTP is a kvtool server on loopback, a process of its own; nothing that was fetched is kept
between two questions. The embedded model's context is 8,192, with room for a prefix and an answer.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import Lines, machine
from benchmarks.common.server import served
from benchmarks.common.timing import interleaved
from benchmarks.pages.tables import table
from benchmarks.quality.retrieval import haystack_texts, lookup_haystack
from kvtool.artifact.paged_cache import PagedCache, paged_cache
from kvtool.ask import ask
from kvtool.engines.attention.cache_attention import cache_attention
from kvtool.engines.cache import DocumentCache
from kvtool.engines.generate import generate
from kvtool.engines.transformers import device_of
from kvtool.measurement.needles import Haystack, Question, contained
from kvtool.measurement.statistics import mean
from kvtool.model.chat_template import conversation_tokens
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore
from kvtool.system.cache_dir import cache_dir

VARIANT = "quest"
TIMED = "What is this text about?"
"""The question whose first token is timed."""

PAGE = """# Reading only what a question needs

`kvtool ask --read` on documents of {tokens:,} tokens, beside the full load. This command makes the page:

`{command}`

{machine}. Model: {model}, cached in {dtype}. Other work ran on the machine: compare times within the table only.

- **read**: bytes read of the files for one question, and their share: header, bounds, digests, the prefix and the first two
  layers whole, and of the other layers the pages that the question's queries rank first.
- **first token**: seconds until it from a file in the system's cache, and over HTTP from a server on loopback, where nothing is
  kept between two questions; medians of {repeats} interleaved rounds. The full load is that of the variant `raw`.
- **right**: of {asked} questions about keys hidden in {haystacks} documents, each asked alone; nothing is known of them before.
- **KL**: from the full cache, in nats per token of its answers, with a 95 % interval over documents.

{table}
"""

COLUMNS = ("read", "MB", "of the file", "first token, file", "first token, HTTP", "right", "KL")


@dataclass
class Measured:
    """Of one share, None for the full load: bytes by question, right answers and KLs by document."""

    nbytes: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    kl: list[list[float]] = field(default_factory=list)


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    model = kvtool.load_model()
    print(machine(), flush=True)
    stacks = _haystacks(model, arguments)
    store = _stored(model, arguments.folder, stacks)
    shares: list[float | None] = [None, *(percent / 100 for percent in arguments.read)]
    measured = {share: Measured() for share in shares}
    asked = {name: stack.questions[: arguments.questions] for name, stack in stacks.items()}
    progress, total = Lines(), sum(map(len, asked.values()))
    for name, questions in asked.items():
        full = store.load(name, model)
        for share in shares:
            measured[share].kl.append([])
        for question in questions:
            _answer(model, store, name, question, full, measured)
            progress("questions answered", len(measured[None].right), total)
    seconds = _times(model, store, next(iter(stacks)), shares, arguments.repeats)
    page = PAGE.format(
        tokens=arguments.tokens,
        command=arguments.command,
        machine=machine(),
        model=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        repeats=arguments.repeats,
        asked=total,
        haystacks=len(stacks),
        table=table(COLUMNS, [_row(share, one, seconds) for share, one in measured.items()]),
    )
    print(page)
    if arguments.write:
        arguments.write.write_text(page)


def _haystacks(model: kvtool.Model, arguments: argparse.Namespace) -> dict[str, Haystack]:
    """Haystacks by the names of their documents."""
    length = arguments.tokens
    return {
        f"{length}-{n}.txt": lookup_haystack(model, f"{length}/{n}", text, length, arguments.keys)
        for n, text in enumerate(haystack_texts(model, length, arguments.haystacks))
    }


def _stored(model: kvtool.Model, folder: Path, stacks: dict[str, Haystack]) -> LocalStore:
    folder.mkdir(parents=True, exist_ok=True)
    for name, stack in stacks.items():
        (folder / name).write_text(stack.text)
    store = LocalStore(folder / "store")
    for name in stacks:
        kvtool.prefill([folder / name], model=model, store=store)
        if len(store[name].segments) > 1:
            raise kvtool.KvtoolError("--tokens", f"{name} has several segments", "choose fewer tokens")
    kvtool.compress(store, list(stacks), recipe=VARIANT)
    return store


def _answer(
    model: kvtool.Model,
    store: LocalStore,
    name: str,
    question: Question,
    full: DocumentCache,
    measured: dict[float | None, Measured],
) -> None:
    """Adds the answers to a question from the full cache and from each share of its pages."""
    prompt = conversation_tokens(model, store.prefix(name, model), (), question.text, question.lead)
    expected: list[int] = []
    reference = torch.empty(0)
    for share, result in measured.items():
        cache = full if share is None else paged_cache(store.parts(name, VARIANT), model, share)
        if share is None:
            expected = _generated(model, cache, prompt, question)
            reference = _logs(model, cache, prompt, expected)
        logs = reference if share is None else _logs(model, cache, prompt, expected)
        # The pages that were read for the prompt are there still.
        answer = expected if share is None else _generated(model, cache, prompt, question)
        result.right.append(all(contained(question.answers, model.tokenizer.decode(answer))))
        result.kl[-1] += (reference.exp() * (reference - logs)).sum(-1).tolist()
        if isinstance(cache, PagedCache):
            result.nbytes.append(cache.read_nbytes)
            result.stored.append(cache.stored_nbytes)
        else:
            nbytes = sum(part.nbytes for part in store.parts(name))
            result.nbytes.append(nbytes)
            result.stored.append(nbytes)


def _generated(model: kvtool.Model, cache: DocumentCache, prompt: list[int], question: Question) -> list[int]:
    n_tokens = len(cache.token_ids)
    tokens = generate(model, [*cache.token_ids.tolist(), *prompt], cache, max_tokens=question.max_tokens)
    _crop(cache, n_tokens)
    return tokens


@torch.no_grad()
def _logs(model: kvtool.Model, cache: DocumentCache, prompt: list[int], answer: list[int]) -> Tensor:
    """Log probabilities of each token of ``answer`` after the prompt, whose pass is one of its own: it decides what is read."""
    n_tokens, logs = len(cache.token_ids), []
    with cache_attention(model, cache):
        for ids in (prompt, answer[:-1]):
            if ids:
                tokens = torch.tensor([ids], device=device_of(model))
                logs.append(model.model(tokens, past_key_values=cache, use_cache=True).logits[0].float())
    _crop(cache, n_tokens)
    return torch.cat([logs[0][-1:], *logs[1:]]).log_softmax(-1).cpu()


def _crop(cache: DocumentCache, n_tokens: int) -> None:
    """Removes what was appended to a document of ``n_tokens``."""
    for layer in cache.layers:
        layer.crop(n_tokens - layer.get_seq_length())


def _times(
    model: kvtool.Model, store: LocalStore, name: str, shares: Sequence[float | None], repeats: int
) -> dict[tuple[str, float | None], float]:
    """Seconds to the first token, of the full load and of each share."""
    with served("--store", str(store.root), "--variant", "raw") as (_, url):
        remote = RemoteStore(url)
        runs: dict[str, Callable[[], float]] = {}
        for share in shares:
            runs[f"file {share}"] = partial(_first_token, model, store, name, share)
            runs[f"http {share}"] = partial(_fetched, model, remote, name, share)
        medians = interleaved(runs, repeats)
    return {(where, share): medians[f"{where} {share}"] for where in ("file", "http") for share in shares}


def _first_token(model: kvtool.Model, store: kvtool.Store, name: str, share: float | None) -> float:
    variant = "raw" if share is None else VARIANT
    answer = ask(TIMED, name, model, store, variant=variant, read=share, max_tokens=1)
    return answer.first_token_seconds


def _fetched(model: kvtool.Model, remote: RemoteStore, name: str, share: float | None) -> float:
    for kept in (remote.cache.root, cache_dir() / "heads" / remote.backend.key):
        shutil.rmtree(kept, ignore_errors=True)
    return _first_token(model, RemoteStore(remote.backend.url), name, share)


def _row(share: float | None, one: Measured, seconds: dict[tuple[str, float | None], float]) -> list[str]:
    kl = mean(one.kl)
    assert kl is not None
    interval = f"{kl.value:.4f} ({kl.low:.4f} to {kl.high:.4f})"
    nbytes = sum(one.nbytes) / len(one.nbytes)
    return [
        "all" if share is None else f"{share:.0%}",
        f"{nbytes / 1e6:.1f}",
        f"{sum(one.nbytes) / sum(one.stored):.0%}",
        f"{seconds['file', share]:.2f}",
        f"{seconds['http', share]:.2f}",
        f"{sum(one.right)} of {len(one.right)}",
        "" if share is None else interval,
    ]


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=7000, help="of each document")
    parser.add_argument("--read", type=float, nargs="+", default=[10, 25, 50], help="percentages")
    parser.add_argument("--haystacks", type=int, default=3, help="documents")
    parser.add_argument("--keys", type=int, default=10, help="hidden in each")
    parser.add_argument("--questions", type=int, default=10, help="about each, the first of its keys")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/reading_pages"))
    parser.add_argument("--write", type=Path, help="the page")
    arguments = parser.parse_args(argv)
    arguments.command = command("reading_pages", argv)
    return arguments
