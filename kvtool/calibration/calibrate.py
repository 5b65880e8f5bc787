"""Makes calibrations, which a recipe learns about a model from the store's documents or from other texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvtool.calibration.held_back import at_most, hold_back
from kvtool.calibration.learning import OnProgress, learned_from, sampled_tokens, total_tokens
from kvtool.calibration.lookup import MakeCalibration
from kvtool.calibration.memory import KEPT_BYTES
from kvtool.calibration.pieces import Piece, in_turn, pieces_of_store, pieces_of_texts
from kvtool.calibration.sample_texts import sample_texts
from kvtool.calibration.samples import GRADIENT_TOKENS
from kvtool.codecs import Calibration, CodecError, Recipe
from kvtool.codecs.recipe import PRESETS
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.codecs.recipe_registry import recipes
from kvtool.counts import counted
from kvtool.errors import KvtoolError, MismatchError, UsageError
from kvtool.model.model import Model
from kvtool.model.prefill_speed import recall
from kvtool.store.base import Store
from kvtool.store.local import writable

log = logging.getLogger(__name__)

RECIPE, TOKENS = "klt", 16_384

GRADIENT_COST = 7.0
"""How many times longer a segment takes with its gradients than a prefill of it."""


@dataclass(frozen=True)
class Report:
    """A calibration that was made. ``problems`` are the texts that could not be read, ``warnings`` those not read wholly."""

    calibration: Calibration
    file: str
    model: Model
    seconds: float
    problems: Sequence[KvtoolError] = field(default=())
    warnings: Sequence[KvtoolError] = field(default=())

    @property
    def source(self) -> dict[str, Any]:
        """The numbers of tokens and documents that it was made from, and a digest of them.

        Where some came with kvtool, also how many tokens are theirs: ``sampled``.
        """
        return dict(self.calibration.facts["source"])  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.calibration.method,
            "digest": self.calibration.digest,
            "file": self.file,
            "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
            "tokens": self.source["tokens"],
            "documents": self.source["documents"],
            "bytes": self.calibration.nbytes,
            "presets": self.calibration.facts.get(PRESETS, {}),
            "seconds": round(self.seconds, 3),
            "problems": [error.to_json() for error in self.problems],
            "warnings": [warning.to_json() for warning in self.warnings],
        }


@dataclass(frozen=True)
class Plan:
    """What a calibration would be made from: ``held_back`` pieces are for presets. ``seconds`` are None where nothing tells."""

    recipe: Recipe
    model: Model
    pieces: Sequence[Piece]
    held_back: Sequence[Piece]

    @property
    def tokens(self) -> int:
        return total_tokens(self.pieces)

    @property
    def documents(self) -> int:
        return len({piece.source for piece in self.pieces})

    @property
    def seconds(self) -> float | None:
        return estimated_seconds(self.recipe, self.model, self.tokens + total_tokens(self.held_back))

    def to_json(self) -> dict[str, Any]:
        return {
            "dry_run": True,
            "method": self.recipe.calibration,
            "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
            "tokens": self.tokens,
            "documents": self.documents,
            "seconds": self.seconds and round(self.seconds, 3),
        }


def plan_calibration(
    store: Store,
    names: str | Sequence[str] | None = None,
    *,
    model: Model,
    recipe: str = RECIPE,
    tokens: int | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Plan:
    """What ``calibrate`` would learn from, for the same arguments. Raises what it raises before the model runs."""
    store = writable(store)
    chosen = calibrated_recipe(recipe)
    tokens = default_tokens(model) if tokens is None else tokens
    if tokens < 1:
        raise UsageError(f"--tokens {tokens}", "expected at least 1")
    sample = _sample(chosen, model, tokens, lambda most: _pieces(store, names, model, most, texts, seed))
    return Plan(chosen, model, *sample)


def calibrate(
    store: Store,
    names: str | Sequence[str] | None = None,
    *,
    model: Model,
    recipe: str = RECIPE,
    tokens: int | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    on_progress: OnProgress = lambda _: None,
    **options: Any,
) -> Calibration:
    """Makes a calibration for ``recipe`` from about ``tokens`` tokens, by default ``default_tokens``, and puts it into ``store``.

    They are drawn from the raw segments of ``names``, evenly over documents and kinds, or from ``texts``, which get the
    store's prefix. By default they are of all documents that ``model`` prefilled and, where these have fewer tokens, of the
    texts that come with kvtool. A ``seed`` always gives the same ones. The model runs them piece by piece, at most 1,024
    tokens at a time, the first 4,096 with gradients if the recipe wants them. Their keys and values wait in memory, 2 bytes
    for each, at most 8 GiB, beside what the recipe takes to learn (``Progress.nbytes``). ``options`` are those of the
    recipe's ``fit``.

    For a recipe with presets, the settings that keep what they promise are found on up to 2,048 further tokens, and stored
    in the calibration with what was measured (``Recipe.dial``). Where there are no further ones, an eighth of the tokens is
    held back for that; where that is too little text, nothing is measured.

    Raises ``UsageError`` for a recipe that takes no calibration, for a store or texts without tokens, for too few of them,
    for more than there is memory for, and for a path in place of a text; ``MismatchError`` for documents of another model;
    ``ModelError`` for a model without gradients.
    """
    store = writable(store)
    tokens = default_tokens(model) if tokens is None else tokens
    plan = plan_calibration(store, names, model=model, recipe=recipe, tokens=tokens, texts=texts, seed=seed)
    try:
        calibration = learned_from(plan.recipe, model, plan.pieces, plan.held_back, on_progress, **options)
    except CodecError as error:
        raise UsageError(
            None,
            f"{error}. It was given {counted(plan.tokens, 'token')} of {counted(plan.documents, 'document')}",
            f"raise --tokens (now {tokens}), prefill more documents, give more --text, or compress with --recipe kivi, "
            "which needs no calibration",
        ) from error
    with store.writing():
        store.put_calibration(calibration)
    return calibration


def default_tokens(model: Model) -> int:
    """16,384, or as many as all layers together have channels of keys, as far as these are kept in memory."""
    config = model.text_config
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = key_heads * size * (getattr(config, "num_hidden_layers", None) or 0)
    return max(TOKENS, min(width, KEPT_BYTES // max(4 * width, 1)))


def _sample(
    recipe: Recipe, model: Model, tokens: int, draw: Callable[[int], list[Piece]]
) -> tuple[list[Piece], list[Piece]]:
    """The pieces to learn from, and those that are held back for presets."""
    if recipe.dial is None or not recipe.dial.presets:
        return draw(tokens), []
    return hold_back(draw(tokens + at_most(tokens)), tokens, model)


def calibrated_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ``UsageError`` for one that takes no calibration."""
    try:
        recipe = find_recipe(name)
    except CodecError as error:
        raise UsageError(None, error) from error
    if recipe.fit is None:
        calibrated = ", ".join(sorted(name for name, other in recipes().items() if other.fit)) or "none"
        raise UsageError(f"--recipe {name}", "takes no calibration", f"those that do: {calibrated}")
    return recipe


def maker(
    store: Store,
    model: Model | None,
    say: Callable[[str], None] = log.info,
    on_progress: OnProgress = lambda _: None,
) -> MakeCalibration | None:
    """A function that makes a missing calibration, from all documents of ``model``; None without a model.

    ``say`` gets a line first, with an estimate of the time.
    """
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
        pieces, _ = _sample(
            recipe, model, default_tokens(model), lambda tokens: _pieces(store, None, model, tokens)
        )
        tokens, sampled = total_tokens(pieces), sampled_tokens(pieces)
        seconds = estimated_seconds(recipe, model, tokens)
        time_needed = "" if seconds is None else f"; about {max(1, round(seconds / 60))} minutes"
        source = f"{tokens - sampled:,} tokens of the store's documents"
        source += f" and {sampled:,} of texts that come with kvtool" if sampled else ""
        say(f"no calibration for {model.name} yet: making one from {source} (once{time_needed})")
        return calibrate(store, model=model, recipe=recipe.name, on_progress=on_progress)

    return make


def estimated_seconds(recipe: Recipe, model: Model, tokens: int) -> float | None:
    """How long the model will run, from how fast it prefilled on this machine; None if it never did."""
    tokens_per_second = recall(model.fingerprint)
    if tokens_per_second is None:
        return None
    with_gradients = min(tokens, GRADIENT_TOKENS) if recipe.gradients else 0
    return (tokens + (GRADIENT_COST - 1) * with_gradients) / tokens_per_second


def _pieces(
    store: Store,
    names: str | Sequence[str] | None,
    model: Model,
    tokens: int,
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Piece]:
    if texts is not None:
        if names is not None:
            raise UsageError("documents of the store and --text", "exclude each other", "give one")
        texts = [texts] if isinstance(texts, (str, os.PathLike)) else texts
        for text in texts:
            if _is_path(text):
                reason = "is a path, expected the text itself"
                raise UsageError(
                    f"text {str(text)!r}", reason, "read the file, or use kvtool calibrate --text"
                )
        pieces = pieces_of_texts(texts, store, model, tokens, seed)
        if not pieces:
            raise UsageError("--text", "has no tokens", "give text of the kind that will be compressed")
        return pieces
    if not store:
        reason = "is empty, so that there is nothing to calibrate on"
        raise UsageError(str(store), reason, "run kvtool prefill first, or give --text")
    pieces = pieces_of_store(store, [names] if isinstance(names, str) else names, model, tokens, seed)
    missing = tokens - total_tokens(pieces)
    if names is not None or missing <= 0:
        return pieces
    others = pieces_of_texts(sample_texts(), store, model, missing, seed)
    return list(in_turn([pieces, [replace(piece, from_sample=True) for piece in others]]))


def _is_path(text: str) -> bool:
    """Whether ``text`` names a file or a folder."""
    try:
        return isinstance(text, os.PathLike) or (bool(text) and Path(text).exists())
    except (OSError, ValueError):
        return False  # Too long for a name, or with a null byte: a text.
