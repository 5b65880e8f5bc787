"""Make the calibration of the embedded model that comes with kvtool, from texts of many kinds, and write it into the package.

python -m benchmarks bundle [--documents 200] [--presets]
python -m benchmarks bundle --out FILE [--model MODEL] [--recipe kvtc] [--documents 64]

Takes half an hour on two cores, and 8 GB of memory. With --out, a calibration of any model and recipe from the same texts goes
into a file, without presets, and the package stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import Lines
from benchmarks.corpora.bundled import TYPICAL, texts_for_bundle
from benchmarks.corpora.texts import Text
from kvtool.calibration.bundled_calibrations import FOLDER, INDEX
from kvtool.calibration.calibrate import RECIPE
from kvtool.calibration.held_back import HeldBack
from kvtool.calibration.learning import learned_from
from kvtool.calibration.pieces import Piece
from kvtool.calibration.presets import with_presets
from kvtool.codecs import Calibration
from kvtool.codecs.recipe_registry import recipe
from kvtool.model.chat_template import document_tokens, prefix_of

GRADIENTS = 1024 * len(TYPICAL)
"""Tokens with gradients."""

DTYPES = ("float32", "bfloat16", "float16")
"""A calibration serves a model in any of these: what they compute differs by less than what is rounded away."""


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--presets", action="store_true", help="only measure those of the one that is there")
    parser.add_argument("--documents", type=int, default=200, help="of 1,024 tokens each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help="with --out; default: the embedded model")
    parser.add_argument("--recipe", default=RECIPE, help="with --out")
    arguments = parser.parse_args(argv)
    if not arguments.out and (arguments.model or arguments.recipe != RECIPE):
        parser.error(
            "--model and --recipe need --out: kvtool comes with a calibration of one model and recipe"
        )
    model = kvtool.load_model(arguments.model)
    learned, held_back = (
        [_piece(model, text) for text in texts] for texts in texts_for_bundle(model, arguments.documents)
    )
    if arguments.out:
        method = recipe(arguments.recipe)
        made = learned_from(method, model, learned, [], Lines().calibrated, gradient_tokens=GRADIENTS)
        arguments.out.write_bytes(made.to_bytes())
        print(f"{arguments.out}: {made.nbytes:,} bytes, {made.digest}")
        return
    file = f"{RECIPE}-{model.name}.safetensors"
    if arguments.presets:
        there = Calibration.from_bytes((FOLDER / file).read_bytes())
        contexts = [HeldBack(model, piece, number) for number, piece in enumerate(held_back)]
        calibration = with_presets(recipe(RECIPE), there, contexts)
    else:
        calibration = learned_from(
            recipe(RECIPE),
            model,
            learned,
            held_back,
            Lines().calibrated,
            gradient_tokens=GRADIENTS,
        )
    (FOLDER / file).write_bytes(calibration.to_bytes())
    fingerprints = [replace(model.identity, dtype=dtype).fingerprint for dtype in DTYPES]
    entry = {"file": file, "method": calibration.method, "fingerprints": fingerprints}
    INDEX.write_text(json.dumps([entry], indent=2) + "\n")
    print(f"{FOLDER / file}: {calibration.nbytes:,} bytes, {calibration.digest}")


def _piece(model: kvtool.Model, text: Text) -> Piece:
    return Piece(text.name, prefix_of(model), tuple(document_tokens(model, text.text)[:1024]))
