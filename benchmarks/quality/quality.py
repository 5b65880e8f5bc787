"""Quality, size and times of every recipe and of other tools, at two settings or more, on the same tensors.

python -m benchmarks quality [--rows klt kivi:bits=4 …] [--peers build/peers] [--out build/benchmarks]
    [--write docs/results/recipes.md] [--read build/benchmarks/quality.json]

quality.json and quality.html in --out have all figures; --write writes the page, with two pictures beside it. Peers are
the tools whose environments `make peers` has made. They get each context's raw keys and values, and the same questions
are asked of what they give back. What was measured is kept: an interrupted run goes on, and one with more rows measures
those alone. Times are always measured. A row that fails is named on the page, and the others go on.

A row takes about 85 s of one core for its 400 questions, and its KL and times as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import Lines, machine
from benchmarks.corpora.prefilled import Prefilled
from benchmarks.corpora.sources import HELD_OUT
from benchmarks.corpora.texts import held_out
from benchmarks.pages.evaluation import show
from benchmarks.pages.quality_page import markdown
from benchmarks.peers.environments import FOLDER
from benchmarks.quality import retrieval
from benchmarks.quality.compared import Row, differs, rows
from benchmarks.quality.measured_rows import Compared, measure
from kvtool.calibration.calibrate import TOKENS, maker
from kvtool.calibration.lookup import FindCalibration, finder
from kvtool.codecs import Calibration
from kvtool.evaluation.candidates import Raw
from kvtool.measurement.contexts import text_contexts
from kvtool.measurement.scope import Scope
from kvtool.report.page import page

CALIBRATION_TOKENS = 1024
"""Of each text that recipes are calibrated with. These texts share no source with what is measured."""

LENGTHS, HAYSTACKS, KEYS = (512, 1024), (20, 10), (10, 20)
"""Of each length, in tokens, the number of haystacks and the keys in each: 400 questions."""


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    if arguments.read:
        show(json.loads(arguments.read.read_text()), arguments, "quality", markdown)
        return
    print(machine(), flush=True)
    chosen = rows(arguments.rows)
    prefilled = Prefilled(kvtool.load_model())
    with ExitStack() as stack:
        result = _measured(prefilled, chosen, stack, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "quality.json").write_text(json.dumps(result, indent=1))
    (arguments.out / "quality.html").write_text(page(result))
    show(result, arguments, "quality", markdown)


def _measured(
    prefilled: Prefilled, chosen: Sequence[Row], stack: ExitStack, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The result of ``kvtool eval``, and what the page says of each row beside it."""
    scope = Scope(
        ("kl", "retrieval", "times"),
        context=arguments.context,
        tokens=arguments.tokens,
        lengths=tuple(arguments.lengths),
        repeats=arguments.repeats,
    )
    each = scope.context + scope.tokens + 8
    texts = held_out(prefilled.model, each, arguments.documents)
    segments = prefilled.place(chain.from_iterable(texts.values()))
    contexts, short = text_contexts(prefilled.store, segments, scope)
    assert not short, short
    for length, number, keys in _haystacks(arguments):
        contexts += retrieval.haystack_contexts(
            prefilled.model, prefilled.prefix, lengths=[length], haystacks=number, number=keys
        )
    find, find_own = _find(prefilled), _find_own(prefilled, each, arguments.documents)
    compared = Compared.of(chosen, find, find_own, stack, arguments.peers)
    runner = prefilled.runner([Raw()])
    result = measure(runner, compared, segments, contexts, scope, arguments.command, Lines().measured)
    calibrations = dict(compared.calibrations())
    return result | {
        "haystacks": [
            {"length": length, "number": number, "keys": keys}
            for length, number, keys in _haystacks(arguments)
        ],
        "values_per_token": _values_per_token(prefilled),
        "failed": compared.failed,
        "rows": {
            row.name: {"advised": row.advised, "advice": row.advice, "calibration": calibrations[row.name]}
            for row in chosen
            if row.name in calibrations
        },
        "differs": {row.family: differs(row.family) for row in chosen},
    }


def _haystacks(arguments: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Length, number and keys."""
    return list(zip(arguments.lengths, arguments.haystacks, arguments.keys, strict=True))


def _find(prefilled: Prefilled) -> FindCalibration:
    """Finds, or makes, the calibrations from texts that share no source with what is measured."""

    @cache
    def calibration(recipe: str) -> Calibration:
        return prefilled.calibrate(recipe, CALIBRATION_TOKENS)

    return lambda recipe: calibration(recipe.name)


def _find_own(prefilled: Prefilled, tokens: int, documents: int) -> FindCalibration:
    """Finds, or makes as ``kvtool compress`` does, the calibrations from a store's own documents.

    The store has enough of them for a whole calibration, of ``tokens`` tokens each, the ``documents`` of each kind that
    are measured among them.
    """
    enough = -(-TOKENS // (len(HELD_OUT) * documents * tokens))

    @cache
    def store() -> FindCalibration:
        own = Prefilled(prefilled.model, prefilled.folder.parent / f"own-{documents}-{tokens}")
        own.place(chain.from_iterable(held_out(own.model, tokens, enough * documents).values()))
        return finder(own.store, list(own.store), make=maker(own.store, own.model, say=print))

    return lambda recipe: store()(recipe)


def _values_per_token(prefilled: Prefilled) -> int:
    geometry = prefilled.store.open(next(iter(prefilled.store))).contents.geometry
    return sum(heads * size for layer in geometry.layers for heads, size in (layer.keys, layer.values))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=[], help="settings or methods; default: all")
    parser.add_argument("--peers", type=Path, default=FOLDER, help="where `make peers` made environments")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--write", type=Path, help="the page")
    parser.add_argument("--read", type=Path, help="an earlier run's JSON: only draws and writes")
    parser.add_argument("--documents", type=int, default=1, help="of each of five kinds")
    parser.add_argument("--context", type=int, default=1024, help="tokens of each that are cached")
    parser.add_argument("--tokens", type=int, default=256, help="tokens after them that are predicted")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=list(LENGTHS), help="of haystacks, in tokens"
    )
    parser.add_argument("--haystacks", type=int, nargs="+", default=list(HAYSTACKS), help="of each length")
    parser.add_argument(
        "--keys", type=int, nargs="+", default=list(KEYS), help="in each haystack of a length"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds of times")
    arguments = parser.parse_args(argv)
    arguments.command = command("quality", argv)
    return arguments
