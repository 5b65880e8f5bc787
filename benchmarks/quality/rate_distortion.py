"""What a ratio costs, in KL and in retrieval, for many settings of each recipe, on documents that no calibration has seen.

python -m benchmarks rate_distortion [--model MODEL] [--calibration FILE …] [--recipes klt:step=0.03 kivi …]
    [--unfitted] [--write docs/results/klt.md]

Everything goes through files as kvtool writes them. rate_distortion.json in --out has all figures, two pictures are
beside it, and --write puts the tables between the page's markers and the pictures beside the page. What was measured
is kept: an interrupted run goes on, and one with more recipes measures those alone. Times are measured anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kvtool
from benchmarks.common.arguments import command, make_parser
from benchmarks.common.output import machine as machine_line
from benchmarks.corpora.prefilled import Prefilled
from benchmarks.corpora.sources import UNFITTED
from benchmarks.corpora.texts import Text, held_out
from benchmarks.pages import rate_page, rate_pictures, tables
from benchmarks.quality import retrieval
from kvtool.codecs import recipes
from kvtool.evaluation.candidates import Coded, Raw
from kvtool.evaluation.result import machine
from kvtool.evaluation.summary import Measured, candidate_summary
from kvtool.measurement.contexts import Context, text_contexts
from kvtool.measurement.scope import Scope

SETTINGS = {
    "klt": tuple(f"klt:step={step}" for step in (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12)),
    "kvtc": tuple(f"kvtc:ratio={ratio}" for ratio in (8, 16, 32, 64)),
    "cachegen": tuple(f"cachegen:level={level}" for level in (1, 2, 3, 4, 5)),
    "kivi": tuple(f"kivi:bits={bits}" for bits in (8, 4, 2)),
    "cachegen-lmcache": ("cachegen-lmcache",),
}
"""Of each recipe, from the most bits to the fewest."""

COMPARED = ("klt",)
"""Whose bytes are held against those of all others."""

FIELDS = ("bits_per_value", "ratio", "kl", "dnll", "top1")


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    if arguments.read:
        _show(json.loads(arguments.read.read_text()), arguments)
        return
    prefilled = Prefilled(kvtool.load_model(arguments.model))
    if arguments.write:
        # Before anything long: a page without the markers takes no tables.
        tables.replaced(arguments.write.read_text(), arguments.name, prefilled.model.name, "")
    print(machine_line(), flush=True)
    found = measure(prefilled, arguments)
    _show(found, arguments)


def measure(prefilled: Prefilled, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, as JSON."""
    scope = Scope(context=arguments.context, tokens=arguments.tokens)
    kinds = UNFITTED if arguments.unfitted else None
    texts = held_out(prefilled.model, scope.context + scope.tokens + 8, arguments.documents, kinds)
    documents = [text for some in texts.values() for text in some]
    places = prefilled.place(documents)
    predicted, short = text_contexts(prefilled.store, places, scope)
    assert not short, short
    needles = retrieval.haystack_contexts(
        prefilled.model,
        prefilled.prefix,
        lengths=arguments.lengths,
        haystacks=arguments.haystacks,
        number=arguments.keys,
    )
    compared = prefilled.candidates(arguments.recipes or _default(), arguments.calibration)
    measured = prefilled.measure([*predicted, *needles], compared, fresh=arguments.fresh)
    over_text, over_needles = measured[: len(predicted)], measured[len(predicted) :]
    timed = [
        _timed(prefilled, compared, tokens, arguments.repeats)
        for tokens in arguments.timed
        if arguments.repeats
    ]
    return {
        "command": arguments.command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(prefilled.model),
        "model": {"name": prefilled.model.name, "fingerprint": prefilled.model.fingerprint},
        "settings": {
            "context": scope.context,
            "tokens": scope.tokens,
            "lengths": arguments.lengths,
            "keys": arguments.keys,
        },
        "documents": [{"name": text.name, "kind": text.kind, "source": text.source} for text in documents],
        "values_per_token": over_text[0].records[0]["n_elements"] // scope.context,
        "compared": [family for family in COMPARED if family in {c.family for c in compared}],
        "candidates": [summary(n, c, over_text, documents) for n, c in enumerate(compared, 1)],
        "retrieval": [one.to_json() for one in retrieval.scores([Raw(), *compared], over_needles)]
        if needles
        else [],
        "times": timed,
    }


def summary(
    index: int, candidate: Coded, measured: Sequence[Measured], documents: Sequence[Text]
) -> dict[str, Any]:
    """A candidate's figures over all ``measured`` documents, and over each kind."""
    kinds: dict[str, list[Measured]] = {}
    for document, one in zip(documents, measured, strict=True):
        kinds.setdefault(document.kind, []).append(one)
    records = [one.records[index] for one in measured]
    return {
        "name": candidate.name,
        "family": candidate.family,
        **_figures(index, candidate, measured),
        "by_kind": {kind: _figures(index, candidate, some) for kind, some in kinds.items()},
        "bytes_per_token": sum(r["nbytes"] for r in records)
        / sum(len(one.context.token_ids) for one in measured),
        "calibration_nbytes": sum(calibration.nbytes for calibration in candidate.pipeline.calibrations),
    }


def _figures(index: int, candidate: Coded, measured: Sequence[Measured]) -> dict[str, Any]:
    whole = candidate_summary(index, candidate, measured)
    return {field: whole[field] for field in FIELDS}


def _timed(prefilled: Prefilled, compared: Sequence[Coded], tokens: int, repeats: int) -> Mapping[str, Any]:
    """On prose of that many tokens. Each candidate has one turn in each round."""
    text = held_out(prefilled.model, tokens, 1)["prose"][0]
    place = prefilled.place([text])[0]
    context = Context("text", text.name, tuple(prefilled.token_ids(place)), segment=place)
    about, each = prefilled.times(context, compared, repeats)
    names = ["raw", *(candidate.name for candidate in compared)]
    return {**about, "candidates": dict(zip(names, each, strict=True))}


def _default() -> list[str]:
    return [setting for recipe, settings in SETTINGS.items() if recipe in recipes() for setting in settings]


def _show(found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.read:
        (out / f"{arguments.name}.json").write_text(json.dumps(found, indent=1))
    rate_pictures.draw(found, out, arguments.name, ("svg", "png"))
    if arguments.write:
        page: Path = arguments.write
        model = found["model"]["name"]
        infix = "-unfitted" if arguments.unfitted else ""
        drawn = rate_pictures.draw(found, page.parent, f"{page.stem}{infix}-{model}")
        body = rate_page.body(found, [(shows, path.name) for shows, path in drawn])
        page.write_text(tables.replaced(page.read_text(), arguments.name, model, body))
    print(rate_page.body(found))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument(
        "--recipes", nargs="+", help="with parameters; default: many settings of " + ", ".join(SETTINGS)
    )
    parser.add_argument(
        "--calibration", type=Path, nargs="+", default=[], help="files of a store's calibrations/"
    )
    parser.add_argument(
        "--unfitted",
        action="store_true",
        help="kinds of text that the calibration which comes with kvtool lacks",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--write", type=Path, help="a page that has the markers")
    parser.add_argument("--read", type=Path, help="an earlier run's JSON: only draws and writes")
    parser.add_argument("--documents", type=int, default=4, help="of each kind")
    parser.add_argument("--context", type=int, default=1024, help="tokens that are cached")
    parser.add_argument("--tokens", type=int, default=256, help="tokens that are predicted behind them")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(retrieval.LENGTHS))
    parser.add_argument(
        "--haystacks", type=int, default=retrieval.HAYSTACKS, help="of each length; 0: no retrieval"
    )
    parser.add_argument("--keys", type=int, default=retrieval.KEYS, help="in each haystack")
    parser.add_argument(
        "--timed", type=int, nargs="+", default=[1024, 4096], help="tokens over which times are taken"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds of times; 0: no times")
    parser.add_argument("--fresh", action="store_true", help="measure anew what an earlier run has measured")
    arguments = parser.parse_args(argv)
    arguments.command = command("rate_distortion", argv)
    arguments.name = "unfitted" if arguments.unfitted else "rate_distortion"
    return arguments
