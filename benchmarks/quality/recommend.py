"""Recommendations on three corpora, each checked on documents of the corpus that it has not seen.

python -m benchmarks recommend [--documents 4] [--tokens 1280] [--calibration FILE …] [--write docs/results/recommendations.md]

Documents of each kind fall into two halves. ``kvtool.recommend`` sees one, and what it recommends is measured on the
other, with other haystacks. recommend.json in --out has all figures. What was measured is kept: an interrupted run goes
on. Without --calibration, klt and kvtc are calibrated first, on texts that share no source with the documents. --read
and --write make the page from an earlier run's JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.folders import BUILD
from benchmarks.common.output import Lines, machine
from benchmarks.corpora.prefilled import Prefilled
from benchmarks.corpora.sources import HELD_OUT
from benchmarks.corpora.texts import held_out
from benchmarks.pages.recommend_page import markdown
from kvtool.codecs import Calibration
from kvtool.measurement.scope import Scope
from kvtool.recommendation.recommend import CANDIDATES, SCOPE

FOLDER = BUILD / "recommended"

KINDS = ("prose", "source code", "tables")

CALIBRATED = ("klt", "kvtc")


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    if arguments.read:
        _show(json.loads(arguments.read.read_text()), arguments)
        return
    model = kvtool.load_model(arguments.model)
    print(machine(), flush=True)
    drawn = held_out(model, arguments.tokens, 2 * arguments.documents)
    texts = {kind: drawn[kind] for kind in arguments.kinds}
    prefilled = Prefilled(model, FOLDER)
    places = prefilled.place(text for some in texts.values() for text in some)
    names = dict(zip((text.name for some in texts.values() for text in some), places, strict=True))
    calibrations = _calibrations(prefilled, arguments)
    corpora: list[dict[str, Any]] = []
    for kind, some in texts.items():
        documents = [names[text.name].document for text in some]
        figures = _measured(prefilled, documents, arguments)
        sources = list(dict.fromkeys(text.source for text in some))
        corpora.append({"kind": kind, "sources": sources, "calibrations": calibrations, **figures})
        # A run that is stopped leaves the corpora that it has finished.
        measured = {
            "command": arguments.command,
            "machine": machine(),
            "model": model.name,
            "corpora": corpora,
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "recommend.json").write_text(json.dumps(measured, indent=1))
        _show(measured, arguments)


def _calibrations(prefilled: Prefilled, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What those calibrations are that the candidates need. They are in the store afterwards."""
    for path in arguments.calibration:
        prefilled.store.calibrations.put(Calibration.from_bytes(path.read_bytes()))
    families = {text.partition(":")[0] for text in arguments.recipes or CANDIDATES}
    used = [prefilled.calibrate(recipe, 1024) for recipe in CALIBRATED if recipe in families]
    return [{"method": one.method, "bytes": one.nbytes, "source": one.facts["source"]} for one in used]


def _measured(prefilled: Prefilled, names: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """A recommendation from the first half of the documents ``names``, and what it recommends measured on the second."""
    seen, unseen = names[: arguments.documents], names[arguments.documents :]
    scope = _scope(arguments)
    options: dict[str, Any] = {"model": prefilled.model, "fresh": arguments.fresh}
    recommendation = kvtool.recommend(
        prefilled.store, seen, recipes=arguments.recipes, scope=scope, on_progress=Lines().measured, **options
    )
    recipes = list(dict.fromkeys(one["candidate"] for one in recommendation["recommended"]))
    checked = kvtool.evaluate(
        prefilled.store,
        unseen,
        recipes=[recipe for recipe in recipes if recipe not in (None, "raw")] or ["lossless"],
        scope=replace(scope, seed=scope.seed + 1),
        on_progress=Lines().measured,
        **options,
    )
    return {"recommendation": recommendation, "unseen": checked}


def _scope(arguments: argparse.Namespace) -> Scope:
    return replace(
        SCOPE,
        documents=arguments.documents,
        context=arguments.tokens - arguments.predicted - 8,
        tokens=arguments.predicted,
        lengths=tuple(arguments.lengths),
        haystacks=arguments.haystacks,
        repeats=arguments.repeats,
    )


def _show(measured: dict[str, Any], arguments: argparse.Namespace) -> None:
    page = markdown(measured)
    print(page, flush=True)
    if arguments.write:
        arguments.write.write_text(page)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--kinds", nargs="+", choices=HELD_OUT, default=KINDS, help="of text, a corpus each")
    parser.add_argument("--recipes", nargs="+", help="default: the candidates of kvtool recommend")
    parser.add_argument("--documents", type=int, default=4, help="in each half of a corpus")
    parser.add_argument("--tokens", type=int, default=1280, help="of each document")
    parser.add_argument(
        "--predicted", type=int, default=256, help="of these, predicted after the cached ones"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024], help="of haystacks, in tokens")
    parser.add_argument("--haystacks", type=int, default=2, help="of each kind and length")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of times")
    parser.add_argument(
        "--calibration", type=Path, nargs="+", default=[], help="files of a store's calibrations/"
    )
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run has measured")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--read", type=Path, help="an earlier run's JSON: only writes the page")
    arguments = parser.parse_args(argv)
    arguments.command = command("recommend", argv)
    return arguments
