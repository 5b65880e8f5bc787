"""What a recipe learns about a model, from the store's own documents or from given texts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtool.calibration.lookup import MakeCalibration
from kvtool.codecs import Calibration, CodecError, Recipe
from kvtool.codecs.registry import recipe as find_recipe
from kvtool.codecs.registry import recipes
from kvtool.digest import Json, digest_json
from kvtool.errors import MismatchError, UsageError
from kvtool.model.prefill_speed import recall
from kvtool.store.base import Store
from kvtool.store.local import writable

if TYPE_CHECKING:
    from kvtool.calibration.samples import Piece
    from kvtool.model.model import Model

log = logging.getLogger(__name__)

RECIPE, TOKENS = "klt", 16_384

GRADIENT_COST = 7.0
"""Times that computing a segment with its gradients takes as long as prefilling it."""


@dataclass
class Progress:
    """Tokens that the model ran, of those that it will. Then the recipe goes over what it gave."""

    tokens_total: int
    documents: int
    tokens: int = 0
    seconds: float = 0.0


OnProgress = Callable[[Progress], None]


def calibrate(
    store: Store,
    names: str | Sequence[str] | None = None,
    *,
    model: Model,
    recipe: str = RECIPE,
    tokens: int = TOKENS,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    on_progress: OnProgress = lambda _: None,
    **options: Json,
) -> Calibration:
    """Makes a calibration for ``recipe`` from about ``tokens`` tokens, and puts it into ``store``.

    They are drawn from the raw segments of ``names`` (default: all documents that ``model`` prefilled), evenly over
    documents and kinds, or from ``texts``, run under the store's prefix; always the same ones for a ``seed``. They
    are run through the model piece by piece, at most 1,024 tokens at a time, the first 16,384 with gradients if the recipe
    wants them. Their keys and values wait in memory, 2 bytes for each, at most 8 GiB. ``options`` are those of ``fit``.

    Raises ``UsageError`` for a recipe that takes no calibration, for a store or texts without tokens, and for too few
    of them; ``MismatchError`` for documents of another model; ``ModelError`` for one without gradients.
    """
    # Not for those who only ask for a maker: it imports all that runs a model.
    from kvtool.calibration.samples import Samples

    store = writable(store)
    chosen = calibrated_recipe(recipe)
    assert chosen.fit is not None
    if tokens < 1:
        raise UsageError(f"--tokens {tokens}", "expected at least 1")
    pieces = _pieces(store, names, model, tokens, texts, seed)
    started = time.monotonic()
    progress = Progress(
        sum(len(piece.token_ids) for piece in pieces), len({piece.source for piece in pieces})
    )

    def advance(done: int) -> None:
        progress.tokens += done
        progress.seconds = time.monotonic() - started
        on_progress(progress)

    if chosen.embedding:
        options["embedding"] = model.model.get_input_embeddings().weight.detach().float().cpu()
    try:
        fitted = chosen.fit(Samples(pieces, model, chosen.gradients, advance), **options)
    except CodecError as error:
        raise UsageError(
            None,
            f"{error}. It was given {progress.tokens_total} tokens of {progress.documents} documents",
            f"raise --tokens (now {tokens}), prefill more documents, give more --text, or compress with --recipe kivi, "
            "which needs no calibration",
        ) from error
    source: dict[str, Json] = {
        "tokens": progress.tokens_total,
        "documents": progress.documents,
        "text": digest_json([[piece.prefix_ids, piece.token_ids] for piece in pieces]),
    }
    made = fitted.made(model=model.fingerprint, source=source)
    with store.writing():
        store.put_calibration(made)
    return made


def calibrated_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ``UsageError`` for one that learns nothing."""
    try:
        found = find_recipe(name)
    except CodecError as error:
        raise UsageError(None, error) from error
    if found.fit is None:
        learning = ", ".join(sorted(name for name, recipe in recipes().items() if recipe.fit)) or "none"
        raise UsageError(f"--recipe {name}", "takes no calibration", f"those that do: {learning}")
    return found


def maker(
    store: Store,
    model: Model | None,
    say: Callable[[str], None] = log.info,
    on_progress: OnProgress = lambda _: None,
) -> MakeCalibration | None:
    """What makes a calibration that the store does not have, from all documents of ``model``; None without a model."""
    if model is None:
        return None

    def make(recipe: Recipe, fingerprint: str, name: str) -> Calibration:
        if fingerprint != model.fingerprint:
            raise MismatchError(
                f"recipe {recipe.name!r}",
                f"needs a calibration for {name} (model {fingerprint[:12]}…), which prefilled the documents, and "
                f"{model.name} is {model.fingerprint[:12]}…",
                f"give --model {name}",
            )
        from kvtool.calibration.samples import pieces_of_store

        pieces = pieces_of_store(store, None, model, TOKENS)
        tokens = sum(len(piece.token_ids) for piece in pieces)
        seconds = estimated_seconds(recipe, model, tokens)
        about = "" if seconds is None else f"; about {max(1, round(seconds / 60))} minutes"
        say(
            f"no calibration for {model.name} yet: making one from {tokens:,} tokens of the store's documents (once{about})"
        )
        return calibrate(store, model=model, recipe=recipe.name, on_progress=on_progress)

    return make


def estimated_seconds(recipe: Recipe, model: Model, tokens: int) -> float | None:
    """How long the model will run, from how fast it prefilled on this machine; None if it never did."""
    from kvtool.calibration.samples import SLOPED_TOKENS

    speed = recall(model.fingerprint)
    sloped = min(tokens, SLOPED_TOKENS) if recipe.gradients else 0
    return None if speed is None else (tokens + (GRADIENT_COST - 1) * sloped) / speed


def _pieces(
    store: Store,
    names: str | Sequence[str] | None,
    model: Model,
    tokens: int,
    texts: Sequence[str] | None,
    seed: int,
) -> list[Piece]:
    from kvtool.calibration.samples import pieces_of_store, pieces_of_texts

    if texts is not None:
        if names is not None:
            raise UsageError("documents of the store and --text", "exclude each other", "give one")
        found = pieces_of_texts([texts] if isinstance(texts, str) else texts, store, model, tokens, seed)
        if not found:
            raise UsageError("--text", "has no tokens", "give text of the kind that will be compressed")
        return found
    if not store:
        raise UsageError(
            str(store),
            "is empty, so that there is nothing to calibrate on",
            "run kvtool prefill first, or give --text",
        )
    return pieces_of_store(store, [names] if isinstance(names, str) else names, model, tokens, seed)
