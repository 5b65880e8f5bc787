"""What serving costs: many clients at a server process, each answer compared to the one that is given alone.

python -m benchmarks serve [--clients 64] [--seconds 60] [--documents 20] [--tokens 2000] [--memory 2.5]
    [--compress kvzip:keep=0.3 …]

The same clients ask the same questions of a server with caches and of one without; with --compress, of one with raw caches and
of one with caches of each recipe instead. Requests that are on their way when the time is up are waited for. Memory is what the
process holds beyond what it held before the first request, sampled every half second; "caches" are those that its memory for
caches holds at the end.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.server import ANSWER_TOKENS, Asked, ask_once, served
from benchmarks.corpora.help_text import prefilled_help
from kvtool.ask import ask
from kvtool.compression.pipeline_options import parameters_of
from kvtool.store.manifest import RAW

QUESTIONS = (
    "What is this text about?",
    "Which of these statements can raise an exception?",
    "What is the first example?",
)


@dataclass
class Told:
    """What the clients saw. ``first`` are seconds to each answer's first text."""

    first: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    caches: int = 0

    def row(self, name: str, nbytes: int) -> list[object]:
        ordered = sorted(self.first)
        return [
            name,
            len(ordered),
            len(self.errors),
            len(self.wrong),
            f"{len(ordered) / self.seconds:.2f}",
            f"{statistics.median(ordered):.2f}",
            f"{ordered[int(0.95 * (len(ordered) - 1))]:.2f}",
            f"{nbytes / 1e6:.0f}",
            self.caches,
        ]


@dataclass(frozen=True)
class Way:
    """A server that clients ask. ``variant`` is what it answers from, as ``kvtool ask`` does alone."""

    name: str
    clients: int
    options: tuple[str, ...] = ()
    variant: str = RAW


HEADER = [
    "",
    "answers",
    "errors",
    "wrong",
    "a second",
    "TTFT median, s",
    "TTFT 95 %, s",
    "memory, MB",
    "caches",
]


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--memory", type=float, default=2.5, help="GB, the server's --memory")
    parser.add_argument("--compress", nargs="+", default=[], help="recipes with settings, beside raw")
    arguments = parser.parse_args(argv)
    print(machine())
    model = kvtool.load_model()
    with tempfile.TemporaryDirectory() as folder:
        store, names = prefilled_help(model, Path(folder), arguments.documents, arguments.tokens)
        for setting in arguments.compress:
            recipe, *options = setting.split(":")
            parameters: dict[str, Any] = {**parameters_of(options, setting, "keep=0.3")}
            kvtool.compress(store, recipe=recipe, name=setting, model=model, **parameters)
        variants = (RAW, *arguments.compress)
        questions = [Asked(name, question) for name in names for question in QUESTIONS]
        expected = {
            variant: {one: _alone(one, model, store, variant) for one in questions} for variant in variants
        }
        print(
            f"{len(names)} documents of {arguments.tokens:,} tokens, {len(questions)} answers alone",
            flush=True,
        )
        ways = [Way(name, arguments.clients, ("--variant", name), name) for name in variants]
        if not arguments.compress:
            ways = [
                Way("with caches", arguments.clients),
                Way("without", arguments.clients, ("--no-caches",)),
                Way("with caches, one client", 1),
                Way("without, one client", 1, ("--no-caches",)),
            ]
        rows = []
        for way in ways:
            memory = ("--memory", f"{arguments.memory:g}")
            with (
                served("--store", str(store), *memory, *way.options) as (process, url),
                _watched(process.pid) as held,
            ):
                told = _load(url, model.name, expected[way.variant], way.clients, arguments.seconds)
                told.caches = _caches(url)
            rows.append(told.row(f"{way.name} ({way.clients})", max(held) - held[0]))
            for problem in (*told.errors[:3], *told.wrong[:3]):
                print(problem, flush=True)
        print_table(HEADER, rows)


def _alone(asked: Asked, model: kvtool.Model, store: kvtool.Store, variant: str) -> str:
    documents = [asked.document] if asked.document else []
    return ask(asked.question, documents, model, store, variant=variant, max_tokens=ANSWER_TOKENS).text


def _caches(url: str) -> int:
    """How many caches the server holds in memory."""
    lines = httpx.get(f"{url.removesuffix('/v1')}/metrics").text.splitlines()
    return next(
        int(float(line.split()[1])) for line in lines if line.startswith("kvtool:cache_memory_caches ")
    )


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """Bytes of memory that a process holds, every half second."""
    found: list[int] = []
    done = threading.Event()

    def look() -> None:
        status = Path(f"/proc/{pid}/status").read_text()
        found.extend(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmRSS" in line)

    def watch() -> None:
        while not done.wait(0.5):
            look()

    look()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        done.set()
        watching.join()


def _load(url: str, model: str, expected: dict[Asked, str], clients: int, seconds: float) -> Told:
    told, until = Told(), time.monotonic() + seconds
    started = time.monotonic()
    asking = [
        threading.Thread(target=_client, args=(url, model, expected, n, until, told)) for n in range(clients)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    told.seconds = time.monotonic() - started
    return told


def _client(url: str, model: str, expected: dict[Asked, str], seed: int, until: float, told: Told) -> None:
    chosen = random.Random(seed)
    with httpx.Client(timeout=1800) as http:
        for number in itertools.count():
            if number and time.monotonic() >= until:
                return
            asked = chosen.choice(list(expected))
            try:
                text, first = ask_once(http, url, model, asked)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                told.errors.append(f"{asked}: {error!r}")
                continue
            told.first.append(first)
            if text != expected[asked]:
                told.wrong.append(f"{asked}: {text!r}, alone {expected[asked]!r}")
