"""Learns a calibration from pieces of documents: the model runs them, the recipe fits itself, and its presets are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvtool.calibration.held_back import HeldBack
from kvtool.calibration.memory import needed_nbytes
from kvtool.calibration.pieces import Piece
from kvtool.calibration.presets import TRIES, with_presets
from kvtool.calibration.samples import GRADIENT_TOKENS, Samples
from kvtool.codecs import Calibration, Geometry, Recipe, Sample
from kvtool.digest import Json, digest_json
from kvtool.model.embedding import digest_of
from kvtool.model.model import Model


@dataclass
class Progress:
    """Tokens that the model has run, of those that it will. After the last one the recipe learns from the samples.

    That takes ``steps``, for recipes that say so. For one with presets, settings of its dial are then measured: ``settings``
    have been, of ``settings_total`` at most. Totals are 0 until then.
    """

    tokens_total: int
    documents: int
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    steps_total: int = 0
    settings: int = 0
    settings_total: int = 0
    nbytes: int = 0
    """Of memory that all this takes, beside the model: about, from the first sample on."""


OnProgress = Callable[[Progress], None]


def learned_from(
    recipe: Recipe,
    model: Model,
    pieces: Sequence[Piece],
    held_back: Sequence[Piece],
    on_progress: OnProgress = lambda _: None,
    *,
    gradient_tokens: int = GRADIENT_TOKENS,
    **options: Any,
) -> Calibration:
    """A calibration of ``recipe`` from ``pieces``, with presets as they are on those ``held_back``, if there are any.

    The first ``gradient_tokens`` tokens get gradients, if the recipe wants them. Raises CodecError as its ``fit`` does,
    with ``options``, and ``UsageError`` for more tokens than there is memory for.
    """
    assert recipe.fit is not None
    started = time.monotonic()
    progress = Progress(total_tokens(pieces), len({piece.source for piece in pieces}))

    def ran(sample: Sample) -> None:
        kv = sample.kv
        progress.nbytes = progress.nbytes or needed_nbytes(recipe, Geometry.of(kv), progress.tokens_total)
        progress.tokens += kv.n_tokens
        progress.seconds = time.monotonic() - started
        on_progress(progress)

    def step(done: int, total: int) -> None:
        progress.steps, progress.steps_total = done, total
        on_progress(progress)

    if recipe.embedding:
        weight = model.model.get_input_embeddings().weight.detach().cpu()
        _ = model.fingerprint  # Looking at its files remembers where the embedding lies.
        options |= {"embedding": weight.float(), "embedding_digest": digest_of(weight)}
    if recipe.steps:
        options |= {"on_step": step}
    samples = Samples(pieces, model, gradient_tokens if recipe.gradients else 0, ran)
    fitted = recipe.fit(samples, **options)
    if held_back:
        fitted = _measure(recipe, fitted, held_back, model, progress, on_progress)
    source: dict[str, Json] = {
        "tokens": progress.tokens_total,
        "documents": progress.documents,
        "text": digest_json([[piece.prefix_ids, piece.token_ids] for piece in pieces]),
    }
    if sampled := sampled_tokens(pieces):
        source["sampled"] = sampled
    return fitted.made(model=model.fingerprint, source=source)


def _measure(
    recipe: Recipe,
    fitted: Calibration,
    held_back: Sequence[Piece],
    model: Model,
    progress: Progress,
    on_progress: OnProgress,
) -> Calibration:
    """``fitted`` with what its presets come to on the pieces that were held back."""
    assert recipe.dial is not None
    progress.settings_total = TRIES * len(recipe.dial.presets)
    on_progress(progress)

    def advance() -> None:
        progress.settings += 1
        on_progress(progress)

    contexts = [HeldBack(model, piece, number) for number, piece in enumerate(held_back)]
    return with_presets(recipe, fitted, contexts, advance)


def total_tokens(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.token_ids) for piece in pieces)


def sampled_tokens(pieces: Sequence[Piece]) -> int:
    """Tokens of texts that come with kvtool."""
    return sum(len(piece.token_ids) for piece in pieces if piece.from_sample)
