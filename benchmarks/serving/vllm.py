"""vLLM over a store's caches: time to first token with the connector, without it, and over its own warm prefix cache.

python -m benchmarks vllm [--repeats 5] [--tokens 2048 4096] [--variants raw kivi klt] [--clients 1 16] [--write PAGE]

`make engines` makes vLLM's environment. All servers run at once, each asked in its turn, and the ratios are those of medians.
Then the same prompts go to kvtool's own server and to vLLM with the connector, from one client and from several at a time:
tokens a second are those of all answers, memory is the most that the server's processes held.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import httpx
import psutil

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.server import served
from benchmarks.common.vllm import Engine, serve
from benchmarks.corpora.help_text import prefilled_help

QUESTION = "\n\nWhich of these statements can raise an exception?"
DTYPE = "bfloat16"
ANSWER = 32
CONTEXT = 8192
SHARED_TOKENS = 1024
"""Of each document that the servers are asked about side by side."""

Row: TypeAlias = list[object]
FIRST = ["tokens", "vLLM", "s to first token", "without / this"]
BESIDE = ["server", "clients", "s to first token", "tokens a second", "MB"]
PAGE = """# vLLM over a store's caches

Made by `python -m benchmarks vllm --write docs/results/vllm.md`: {}. The model is SmolLM2-135M in bfloat16, vLLM its build for
CPUs.

## First token

Seconds to the first token of an answer about a document of so many tokens: medians of one run, in which all servers take turns.
"without" is vLLM without the connector, which has not seen the document. "own prefix cache" is the same server, asked once more.
The others have the connector, and load the variant.

{}

## Beside kvtool's own server

The same prompts: documents of 1,024 tokens with raw caches, and a question. One client asks, or several at a time. Answers have
32 tokens. Memory is what the server's processes hold. vLLM has several, and 1 GiB for blocks.

{}
"""


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 4096])
    parser.add_argument("--variants", nargs="+", default=["raw", "kivi", "klt"])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--write", type=Path, help="the page that shows the results")
    arguments = parser.parse_args(argv)
    model = kvtool.load_model(dtype=DTYPE)
    print(machine(), flush=True)
    first: list[Row] = []
    for tokens in arguments.tokens:
        with tempfile.TemporaryDirectory() as folder:
            rows = _first_tokens(Path(folder), model, tokens, arguments.repeats, arguments.variants)
        print_table(FIRST, rows)
        first += rows
    beside: list[Row] = []
    if arguments.clients:
        with tempfile.TemporaryDirectory() as folder:
            beside = _side_by_side(Path(folder), model, arguments.clients)
        print_table(BESIDE, beside)
    if arguments.write:
        arguments.write.write_text(PAGE.format(machine(), _markdown(FIRST, first), _markdown(BESIDE, beside)))


def _first_tokens(
    folder: Path, model: kvtool.Model, tokens: int, repeats: int, variants: Sequence[str]
) -> list[Row]:
    store, prompts = _prompts(folder, model, repeats + 1, tokens, variants)
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        plain = stack.enter_context(serve(model.directory, folder, dtype=DTYPE, context=CONTEXT))
        engines = {
            variant: stack.enter_context(
                serve(
                    model.directory, folder, dtype=DTYPE, context=CONTEXT, store=str(store), variant=variant
                )
            )
            for variant in variants
        }
        for prompt in prompts:
            turns = {"without": plain, "own prefix cache": plain, **engines}
            for name, engine in turns.items():
                seconds.setdefault(name, []).append(engine.first_token(prompt)[0])
        for variant, engine in engines.items():
            if (loads := engine.metrics().get("loads", 0)) != len(prompts):
                raise SystemExit(f"{variant}: {loads:g} of {len(prompts)} documents were loaded")
    # The first of each warms up.
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return [
        [tokens, name, f"{median:.3f}", f"{medians['without'] / median:.1f}"]
        for name, median in medians.items()
    ]


def _side_by_side(folder: Path, model: kvtool.Model, clients: Sequence[int]) -> list[Row]:
    store, prompts = _prompts(folder, model, max(clients), SHARED_TOKENS, ["raw"])
    rows: list[Row] = []
    for n_clients in clients:
        with served("--store", str(store), "--dtype", DTYPE, "--variant", "raw") as (process, url):
            name = httpx.get(f"{url}/models").json()["data"][0]["id"]
            engine = Engine(url.removesuffix("/v1"), folder / "kvtool.log", process.pid, name)
            rows.append(["kvtool", n_clients, *_asked(engine, prompts, n_clients)])
        with serve(model.directory, folder, dtype=DTYPE, context=CONTEXT, store=str(store)) as engine:
            rows.append(["vLLM", n_clients, *_asked(engine, prompts, n_clients)])
    return rows


def _markdown(header: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _asked(engine: Engine, prompts: Sequence[Sequence[int]], n_clients: int) -> list[str]:
    """Median seconds to the first token, tokens a second of all clients, and megabytes."""
    engine.first_token(prompts[0][: SHARED_TOKENS // 2], ANSWER)
    with _memory(engine.pid) as most, ThreadPoolExecutor(n_clients) as pool:
        began = time.monotonic()
        times = list(pool.map(lambda prompt: engine.first_token(prompt, ANSWER)[0], prompts))
        seconds = time.monotonic() - began
    return [
        f"{statistics.median(times):.3f}",
        f"{len(prompts) * ANSWER / seconds:.1f}",
        f"{most[0] / 1e6:.0f}",
    ]


@contextmanager
def _memory(pid: int) -> Iterator[list[int]]:
    """The most bytes that a process and its children hold within the context, which are its own: shared ones count in part."""
    most, stopped = [0], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.2):
            process = psutil.Process(pid)
            held = [one.memory_full_info().uss for one in (process, *process.children(recursive=True))]
            most[0] = max(most[0], sum(held))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stopped.set()
        thread.join()


def _prompts(
    folder: Path, model: kvtool.Model, documents: int, tokens: int, variants: Sequence[str]
) -> tuple[Path, list[list[int]]]:
    """A store of so many documents in all variants, and each document's tokens with a question after them."""
    store, names = prefilled_help(model, folder, documents, tokens)
    for variant in variants:
        if variant != "raw":
            kvtool.compress(store, recipe=variant, model=model)
    question = list(model.tokenizer(QUESTION, add_special_tokens=False).input_ids)
    cached = [[int(token) for part in store.parts(name) for token in part.token_ids] for name in names]
    return folder / "store", [ids + question for ids in cached]
