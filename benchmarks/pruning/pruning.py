"""What fewer tokens cost: every recipe that prunes at several shares, and combinations with klt beside klt alone.

python -m benchmarks pruning [--rows kvzip kvzip+klt …] [--keep 0.3 0.1] [--haystacks 10] [--out build/benchmarks]
    [--write docs/results/pruning.md] [--read build/benchmarks/pruning.json]

KL, answers about needles, which nobody knows when the cache is pruned, stored and resident bytes, and the seconds that
collecting, encoding and loading take. Everything goes through files as kvtool writes them. pruning.json in --out has all
figures; --write writes the page, with two pictures beside it. What was measured is kept, its times too: an interrupted run
goes on, and one with more rows measures those alone. A row that fails is named, and the others go on.
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
from benchmarks.corpora.texts import held_out
from benchmarks.pages import pruning_pictures
from benchmarks.pages.evaluation import show
from benchmarks.pages.pruning_page import markdown
from benchmarks.peers.environments import FOLDER
from benchmarks.pruning.costs import costs
from benchmarks.pruning.rows import differs, keep_of, rows, without_keep
from benchmarks.quality import retrieval
from benchmarks.quality.compared import Row
from benchmarks.quality.measured_rows import Compared, measure
from kvtool.calibration.lookup import FindCalibration
from kvtool.codecs import Calibration
from kvtool.evaluation.candidates import Raw
from kvtool.measurement.contexts import Context, text_contexts
from kvtool.measurement.scope import Scope

CHOSEN_ON = 1
"""Of each kind the texts that are not measured, nor haystacks of them: on those a score's weight was chosen."""

CALIBRATION_TOKENS = 1024
"""Of each text that klt is calibrated with. These texts share no source with what is measured."""


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    if arguments.read:
        show(json.loads(arguments.read.read_text()), arguments, "pruning", markdown, pruning_pictures.draw)
        return
    chosen = rows(arguments.rows, arguments.keep)
    print(machine(), flush=True)
    prefilled = Prefilled(kvtool.load_model())
    result = measured(prefilled, chosen, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "pruning.json").write_text(json.dumps(result, indent=1))
    show(result, arguments, "pruning", markdown, pruning_pictures.draw)


def measured(prefilled: Prefilled, chosen: Sequence[Row], arguments: argparse.Namespace) -> dict[str, Any]:
    """The result of an evaluation, and what the page says of each row beside it."""
    metrics = ("kl", "retrieval") if arguments.haystacks else ("kl",)
    scope = Scope(
        metrics, context=arguments.context, tokens=arguments.tokens, lengths=tuple(arguments.lengths)
    )
    texts = held_out(prefilled.model, scope.context + scope.tokens + 8, CHOSEN_ON + arguments.documents)
    segments = prefilled.place(chain.from_iterable(some[CHOSEN_ON:] for some in texts.values()))
    contexts, short = text_contexts(prefilled.store, segments, scope)
    assert not short, short
    timed = _timed(prefilled, arguments.timed)
    contexts += retrieval.haystack_contexts(
        prefilled.model,
        prefilled.prefix,
        lengths=arguments.lengths,
        haystacks=arguments.haystacks,
        number=arguments.keys,
        first=CHOSEN_ON * len(texts),
    )
    find = _find(prefilled)
    with ExitStack() as stack:
        compared = Compared.of(chosen, find, find, stack, FOLDER)
    runner = prefilled.runner([Raw()])
    result = measure(runner, compared, segments, contexts, scope, arguments.command, Lines().measured)
    candidates = [one for name, one in compared.candidates.items() if name not in compared.failed]
    pruned = [part for part in dict.fromkeys(row.family.partition("+")[0] for row in chosen) if part != "klt"]
    return result | {
        "haystacks": {
            "lengths": arguments.lengths,
            "number": arguments.haystacks,
            "keys": arguments.keys,
        },
        "failed": compared.failed,
        "rows": {
            row.name: {"keep": keep_of(row.name), "method": without_keep(row.name), "what": row.advice}
            for row in chosen
        },
        "differs": {recipe: differs(recipe) for recipe in pruned},
        "timed": {"tokens": len(timed.token_ids)},
        "costs": costs(runner, timed, [Raw(), *candidates]),
    }


def _timed(prefilled: Prefilled, tokens: int) -> Context:
    """Prose of that many tokens."""
    (place,) = prefilled.place(held_out(prefilled.model, tokens, 1)["prose"])
    return Context("text", f"{tokens} tokens", tuple(prefilled.token_ids(place)), segment=place)


def _find(prefilled: Prefilled) -> FindCalibration:
    """Finds, or makes, calibrations from texts that share no source with what is measured."""

    @cache
    def calibration(recipe: str) -> Calibration:
        # A combination has the calibration of what codes.
        return prefilled.calibrate(recipe.rpartition("+")[2], CALIBRATION_TOKENS)

    return lambda recipe: calibration(recipe.name)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=[], help="settings or recipes; default: all")
    parser.add_argument("--keep", nargs="+", type=float, default=[], help="shares; default: all")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--write", type=Path, help="the page")
    parser.add_argument("--read", type=Path, help="an earlier run's JSON: only draws and writes")
    parser.add_argument("--documents", type=int, default=2, help="of each of five kinds")
    parser.add_argument("--context", type=int, default=1024, help="tokens of each that are cached")
    parser.add_argument("--tokens", type=int, default=256, help="tokens after them that are predicted")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=list(retrieval.LENGTHS), help="of haystacks, in tokens"
    )
    parser.add_argument(
        "--haystacks", type=int, default=retrieval.HAYSTACKS, help="of each length; 0: no retrieval"
    )
    parser.add_argument("--keys", type=int, default=retrieval.KEYS, help="in each haystack")
    parser.add_argument("--timed", type=int, default=3000, help="tokens of what bytes and times are of")
    arguments = parser.parse_args(argv)
    arguments.command = command("pruning", argv)
    return arguments
