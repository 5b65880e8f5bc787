"""What is measured: which variants, at which lengths, of which text. Checked as a whole before anything long starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import cycle, islice

from kvtool.breakeven.link import Link
from kvtool.calibration.lookup import MissingCalibration, finder_for
from kvtool.engines import transformers as engine
from kvtool.errors import UsageError
from kvtool.evaluation.candidates import Coded, Raw, candidate, candidates
from kvtool.measurement.scope import LEAST_CACHED
from kvtool.model.chat_template import Prefix, document_tokens, prefix_of
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW

RECIPE = "klt"
"""The recipe that is measured where none is named: the one that compress takes."""

TOKENS = (256, 1024, 4096)
"""Lengths where none are named, as far as the model's context goes."""

OWN_TEXTS = ("demo/handbook.md", "samples/harbour.md", "samples/bakery.md", "samples/railway.md")
"""Texts that come with kvtool, and that its calibrations have not seen."""


@dataclass
class Plan:
    """``variants`` of caches of the first tokens of ``token_ids``, at each of ``lengths``, ascending, after ``prefix``.

    Times are the shortest of up to ``repeats`` rounds. ``leaves_out_unusable``: a recipe that cannot be used with the model is
    left out, with a note, and not refused.
    """

    model: Model
    prefix: Prefix
    variants: list[Raw | Coded]
    lengths: tuple[int, ...]
    token_ids: list[int]
    link: Link | None
    repeats: int
    leaves_out_unusable: bool
    notes: list[str] = field(default_factory=list)


def plan(
    model: Model,
    store: Store,
    recipes: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    texts: Sequence[str] = (),
    link: Link | None = None,
    repeats: int = 3,
) -> Plan:
    """Plans what ``measure`` measures: the raw cache and ``recipes``, by default klt, at ``lengths`` of ``texts``.

    Calibrations are the store's, or those that come with kvtool; none is made. Raises ``UsageError`` for lengths that the
    model's context does not have room for, for unknown recipes, and for one that is named and has no calibration.
    """
    engine.windows(model)
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}", "expected at least 1")
    prefix, notes = prefix_of(model), []
    fitting = _fitting(model, prefix, lengths)
    find = finder_for(store, model)
    try:
        coded = [candidate(RECIPE, find)] if recipes is None else candidates(_named(recipes), find)
    except MissingCalibration as error:
        if recipes is not None:
            raise
        coded = []
        notes.append(f"{RECIPE} is left out: {error.reason}. Run kvtool calibrate --recipe {RECIPE} first.")
    token_ids, repeated = _tokens(model, texts or _own_texts(), fitting[-1])
    if repeated:
        notes.append("The text is shorter than the longest length, and is repeated.")
    variants: list[Raw | Coded] = [Raw(), *coded]
    return Plan(model, prefix, variants, fitting, token_ids, link, repeats, recipes is None, notes)


def _named(recipes: Sequence[str]) -> list[str]:
    """``recipes`` without the raw cache, which is measured anyway."""
    return [text for text in recipes if text != RAW]


def _fitting(model: Model, prefix: Prefix, lengths: Sequence[int] | None) -> tuple[int, ...]:
    most = model.context - len(prefix.token_ids)
    if lengths is None:
        lengths = [tokens for tokens in TOKENS if tokens <= most] or [most]
    if not lengths:
        raise UsageError("--tokens", "is empty, expected numbers as in 256,1024", "or leave it out")
    if min(lengths) < LEAST_CACHED:
        raise UsageError(f"--tokens {min(lengths)}", f"expected at least {LEAST_CACHED}")
    if max(lengths) > most:
        raise UsageError(
            f"--tokens {max(lengths)}",
            f"{model.name} has a context of {model.context:,}, which leaves {most:,} tokens after a prefix of "
            f"{len(prefix.token_ids)}",
            "give smaller numbers",
        )
    return tuple(sorted(set(lengths)))


def _own_texts() -> list[str]:
    return [files("kvtool").joinpath(name).read_text("utf-8") for name in OWN_TEXTS]


def _tokens(model: Model, texts: Sequence[str], count: int) -> tuple[list[int], bool]:
    """The first ``count`` tokens of ``texts``, and whether they had to be repeated for that."""
    token_ids: list[int] = []
    for text in texts:
        if len(token_ids) < count:
            token_ids += document_tokens(model, text)
    if not token_ids:
        raise UsageError("the documents", "have no text", "name others, or none")
    return list(islice(cycle(token_ids), count)), len(token_ids) < count
