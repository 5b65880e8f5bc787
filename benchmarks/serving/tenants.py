"""Whether a tenant's times tell what another tenant has: each of two requests is of something that only the other has, or of
something that nobody has.

python -m benchmarks tenants [--tokens 2000] [--texts 4] [--repeats 3] [--small 400]

One server process, two tenants. The first has texts cached, asks about them, and so has them in memory too. The second asks
about the same texts and about as many that nobody has, looks both up, and asks for artifacts of the first and for digests
that are nobody's. "Words" are prompts refused for the answer they want, once they are tokenized: of words that the first has
just sent, and of such that nobody has. Each pair is asked in random order. AUC is the share of pairs in which the first's took
longer, 0.5 where they cannot be told apart, with its 95 % bootstrap interval.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.server import served
from benchmarks.corpora.help_text import text_of
from kvtool.model.conversation import Message, chat_tokens

TOKENS = {"first": "token-of-the-first-one", "second": "token-of-the-second-one"}
QUESTION = "\n\nWhich of these statements can raise an exception?"
WORDS, KEPT = 50, 8000
"""Words of a prompt; about as many a tokenizer remembers, the first that it meets."""


@dataclass
class Pairs:
    """Seconds for what the first tenant has, and for what nobody has."""

    firsts: list[float] = field(default_factory=list)
    nobodys: list[float] = field(default_factory=list)

    def take(self, first: Callable[[], float], nobody: Callable[[], float]) -> None:
        turns = [(first, self.firsts), (nobody, self.nobodys)]
        random.shuffle(turns)
        for run, found in turns:
            found.append(run())

    def row(self, name: str) -> list[object]:
        auc, low, high = overlap(np.array(self.firsts), np.array(self.nobodys))
        medians = [f"{float(np.median(seconds)) * 1000:.2f}" for seconds in (self.firsts, self.nobodys)]
        return [name, len(self.firsts), *medians, f"{auc:.2f}", f"{low:.2f} to {high:.2f}"]


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float, float]:
    """How often one of ``a`` is larger than one of ``b``, ties counting half, and the ends of its 95 % interval."""
    chosen = np.random.default_rng(0)

    def auc(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        difference = a[:, None] - b[None, :]
        return float((difference > 0).mean() + (difference == 0).mean() / 2)

    again = [auc(chosen.choice(a, len(a)), chosen.choice(b, len(b))) for _ in range(1000)]
    low, high = np.quantile(again, [0.025, 0.975])
    return auc(a, b), float(low), float(high)


@dataclass(frozen=True)
class Client:
    http: httpx.Client
    model: str

    def ask(self, text: str, status: int = 200, **more: object) -> tuple[float, int]:
        """Seconds to an answer of one token, and how many of the prompt's were cached."""
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        seconds, answer = self._send("POST", "chat/completions", status, json=body | {"max_tokens": 1} | more)
        usage = answer.json().get("usage")
        return seconds, usage["prompt_tokens_details"]["cached_tokens"] if usage else 0

    def look_up(self, token_ids: list[int]) -> float:
        seconds, answer = self._send("POST", "lookup", json={"model": self.model, "token_ids": token_ids})
        assert answer.json() is None
        return seconds

    def artifact(self, method: str, digest: str) -> float:
        return self._send(method, f"artifacts/{digest}", 404)[0]

    def _send(
        self, method: str, path: str, status: int = 200, **given: object
    ) -> tuple[float, httpx.Response]:
        request = self.http.build_request(method, path, **given)  # type: ignore[arg-type]
        started = time.perf_counter()
        answer = self.http.send(request)
        seconds = time.perf_counter() - started
        assert answer.status_code == status, answer.text
        return seconds, answer


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=4, help="of the first tenant, and of nobody")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of prompts, each over all texts")
    parser.add_argument("--small", type=int, default=400, help="requests of each other kind")
    arguments = parser.parse_args(argv)
    print(machine(), flush=True)
    model = kvtool.load_model()
    texts = [text_of(model, arguments.tokens, skip=n * arguments.tokens) for n in range(2 * arguments.texts)]
    random.shuffle(texts)
    firsts, nobodys = texts[: arguments.texts], texts[arguments.texts :]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = _prefilled(model, root / "store/tenants/first", firsts)
        (root / "tokens.txt").write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()))
        with served("--store", str(root / "store"), "--tokens", str(root / "tokens.txt")) as (_, url):
            first, second = (
                Client(
                    httpx.Client(
                        base_url=url, timeout=600, headers={"Authorization": f"Bearer {TOKENS[name]}"}
                    ),
                    model.name,
                )
                for name in TOKENS
            )
            words = _words(first, second)
            rows = _prompts(first, second, firsts, nobodys, arguments.repeats)
            rows += _small(first, second, store, model, firsts, nobodys, arguments.small)
            rows.append(words)
    print_table(["", "requests", "the first's, ms", "nobody's, ms", "AUC", "95 %"], rows)


def _prefilled(model: kvtool.Model, root: Path, texts: list[str]) -> kvtool.Store:
    root.mkdir(parents=True)
    store = kvtool.Store(root)
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            (Path(folder) / f"{number}.txt").write_text(text)
        kvtool.prefill([Path(folder)], model=model, store=store)
    return store


def _prompts(
    first: Client, second: Client, firsts: list[str], nobodys: list[str], repeats: int
) -> list[list[object]]:
    hits, misses = Pairs(), Pairs()
    for _ in range(repeats):
        for has, none in zip(firsts, nobodys, strict=True):
            seconds, cached = first.ask(has + QUESTION)
            assert cached, "the first tenant's own text is no hit"
            hits.firsts.append(seconds)
            misses.take(lambda: _missed(second, has), lambda: _missed(second, none))  # noqa: B023
    hits.nobodys = misses.nobodys
    return [hits.row("first token, the first tenant itself"), misses.row("first token, the second tenant")]


def _missed(second: Client, text: str) -> float:
    seconds, cached = second.ask(text + QUESTION)
    assert not cached, "the second tenant's request was a hit"
    return seconds


def _small(
    first: Client,
    second: Client,
    store: kvtool.Store,
    model: kvtool.Model,
    firsts: list[str],
    nobodys: list[str],
    repeats: int,
) -> list[list[object]]:
    looked, got, headed = Pairs(), Pairs(), Pairs()
    artifacts = [variant.artifact for name in store for variant in store[name].artifacts]
    # As many as the first tenant has: the system remembers for some time what was not there.
    unknown = [random.randbytes(32).hex() for _ in artifacts]
    has, none = (
        [chat_tokens(model, [Message("user", text)]) for text in texts] for texts in (firsts, nobodys)
    )
    for n in range(repeats):
        one, other = has[n % len(has)], none[n % len(none)]
        looked.take(lambda: second.look_up(one), lambda: second.look_up(other))  # noqa: B023
        there, absent = artifacts[n % len(artifacts)], unknown[n % len(unknown)]
        got.take(lambda: second.artifact("GET", there), lambda: second.artifact("GET", absent))  # noqa: B023
        headed.take(lambda: second.artifact("HEAD", there), lambda: second.artifact("HEAD", absent))  # noqa: B023
    return [
        looked.row("/v1/lookup, the second tenant"),
        got.row("GET of an artifact"),
        headed.row("HEAD of an artifact"),
    ]


def _words(first: Client, second: Client) -> list[object]:
    words = Pairs()
    for _ in range(KEPT // (2 * WORDS)):
        sent, new = _text(), _text()
        _refused(first, sent)
        words.take(lambda: _refused(second, sent), lambda: _refused(second, new))  # noqa: B023
    return words.row("words, the second tenant")


def _text() -> str:
    return " ".join("".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(WORDS))


def _refused(client: Client, text: str) -> float:
    return client.ask(text, 400, max_tokens=1 << 30)[0]
