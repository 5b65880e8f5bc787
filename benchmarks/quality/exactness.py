"""Greedy answers over a raw cache that equal those after a full prefill, token by token, for each dtype.

python -m benchmarks exactness [--dtypes float32 bfloat16 float16] [--documents 10]

Short documents share passes of the model, as in ``kvtool prefill``, or have one each (--pack-tokens 0). To compare with, the
prompt is also prefilled in two passes instead of one, without any stored cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.corpora.texts import Text, held_out, write
from kvtool.engines.generate import generate
from kvtool.engines.transformers import feed, new_cache
from kvtool.model.chat_template import question_tokens
from kvtool.prefilling.prefill import PACK_TOKENS

QUESTIONS = ("What is this text about?", "Which names or numbers does it mention?")

HEADER = ("dtype", "answers", "cached, shared passes", "cached, a pass each", "prefilled in two passes")


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--documents", type=int, default=10, help="of each of five kinds")
    parser.add_argument("--tokens", type=int, default=110, help="of each document")
    parser.add_argument("--answer-tokens", type=int, default=24)
    arguments = parser.parse_args(argv)
    print(machine(), flush=True)
    texts = list(chain(*held_out(kvtool.load_model(), arguments.tokens, arguments.documents).values()))
    for dtype in arguments.dtypes:
        model = kvtool.load_model(dtype=dtype)
        print_table(HEADER, [[dtype, *equal_answers(model, texts, arguments.answer_tokens)]])


def equal_answers(model: kvtool.Model, texts: Sequence[Text], answer_tokens: int) -> list[int]:
    """How many answers there are, and of each way to begin how many equal those of one full prefill."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write(texts, Path(folder) / "texts")
        shared, single = (
            _prefilled(model, paths, Path(folder) / f"store-{tokens}", tokens) for tokens in (PACK_TOKENS, 0)
        )
        ways: list[Callable[[str, list[int]], list[int]]] = [
            lambda name, ids: generate(model, ids, shared.load(name, model), max_tokens=answer_tokens),
            lambda name, ids: generate(model, ids, single.load(name, model), max_tokens=answer_tokens),
            lambda _, ids: _in_two_passes(model, ids, answer_tokens),
        ]
        equal, answers = [0] * len(ways), 0
        for name in shared:
            prefix = shared.prefix(name, model)
            for question in QUESTIONS:
                document = shared.open(name).token_ids.tolist()
                ids = [*prefix.token_ids, *document, *question_tokens(model, prefix, question)]
                expected = generate(model, ids, None, max_tokens=answer_tokens)
                answers += 1
                equal = [n + (way(name, ids) == expected) for n, way in zip(equal, ways, strict=True)]
    return [answers, *equal]


def _prefilled(model: kvtool.Model, paths: Sequence[Path], folder: Path, pack_tokens: int) -> kvtool.Store:
    store = kvtool.Store(folder)
    report = kvtool.prefill(paths, model=model, store=store, pack_tokens=pack_tokens)
    if report.problems:
        raise report.problems[0]
    return store


def _in_two_passes(model: kvtool.Model, ids: Sequence[int], answer_tokens: int) -> list[int]:
    cache = new_cache(model, len(ids) + answer_tokens)
    feed(model, ids[: len(ids) // 2], cache)
    return generate(model, ids, cache, max_tokens=answer_tokens)
