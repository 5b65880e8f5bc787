"""Finds how many tokens to keep, and how finely to code them, for a size that is asked for.

Sizes are measured on the first tokens of a few segments, as for other targets. Where several settings meet them, because both
parameters are open, KL and facts that are still found are measured as for presets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from kvtool.calibration.held_back import Quality, measuring_cost
from kvtool.calibration.pieces import Piece
from kvtool.calibration.remembered import held_back_pieces, remembered_quality
from kvtool.codecs import Pipeline
from kvtool.compression.joint.choice import Choice, choose
from kvtool.compression.joint.settings import Finder, Measure
from kvtool.compression.joint.space import Space, Wanted
from kvtool.engines.stage_inputs import measuring_cost as inputs_cost
from kvtool.errors import UsageError
from kvtool.measurement.trials import Starts, Trial, bits_trial, resident_trial, sample_segments
from kvtool.model.model import Model
from kvtool.model.prefill_speed import time_needed
from kvtool.store.base import Store
from kvtool.store.segments import holds_inputs

OnSetting: TypeAlias = Callable[[int, int], None]
"""Called with how many settings have been measured, of how many."""


def find_choice(
    wanted: Wanted,
    space: Space,
    build: Callable[..., Pipeline],
    store: Store,
    names: Sequence[str],
    model: Model | None,
    say: Callable[[str], None],
    on_setting: OnSetting = lambda done, total: None,
) -> Choice:
    """Finds the setting of ``space`` that meets ``wanted`` on a few segments of ``names`` and loses least.

    ``build`` gives the pipeline for a setting. Where several meet it, they are measured on text that was held back;
    ``on_setting`` gets the progress. ``say`` gets a line before each step, with an estimate of the time. Raises ``UsageError``
    where none meets it, and where two parameters are open and there is no model, or no text, to measure with.
    """
    pieces = _pieces(wanted, space, store, model) if space.is_joint else []
    refs = sample_segments(store, names)
    needs = build(**space.first).needs
    starts = Starts(store, refs, model, needs)
    cost = sum(ref.n_tokens(store) for ref in refs if not holds_inputs(store, ref, needs))
    say(
        f"{space.recipe}: finding settings for {wanted.options} on {len(refs)} segments"
        f"{time_needed(model.fingerprint, cost * inputs_cost(needs)) if model else ''}"
    )
    candidates = Finder(
        space,
        wanted,
        _measured_once(build, bits_trial(starts)),
        _measured_once(build, resident_trial(starts)),
    ).candidates()
    if len(candidates) == 1:
        return Choice(candidates[0])
    assert model is not None
    tokens = sum(len(piece.token_ids) for piece in pieces)
    cost = (len(candidates) + 1) * sum(map(measuring_cost, pieces)) + round(tokens * inputs_cost(needs))
    say(
        f"{space.recipe}: measuring {len(candidates)} settings of that size on {tokens:,} tokens held back from the "
        f"documents, once{time_needed(model.fingerprint, cost)}"
    )
    measure = remembered_quality(model, pieces)
    qualities: list[Quality] = []
    for candidate in candidates:
        on_setting(len(qualities), len(candidates))
        qualities.append(measure(build(**candidate.parameters)))
    return choose(candidates, qualities)


def _pieces(wanted: Wanted, space: Space, store: Store, model: Model | None) -> list[Piece]:
    """The text on which settings are told apart."""
    if model is None:
        reason = "settings of that size are told apart by running the documents' model"
        raise UsageError(wanted.options, reason, "give --model, or compress(..., model=model)")
    if pieces := held_back_pieces(store, model):
        return pieces
    reason = "the store has too little text to tell settings of that size apart"
    remedy = f"prefill longer documents, or say how finely to code: --set {space.name}=VALUE"
    raise UsageError(wanted.options, reason, remedy)


def _measured_once(build: Callable[..., Pipeline], trial: Trial) -> Measure:
    """Measures the pipelines of settings by ``trial``, each once."""
    known: dict[tuple[tuple[str, float], ...], float] = {}

    def measure(setting: Mapping[str, float]) -> float:
        key = tuple(sorted(setting.items()))
        if key not in known:
            known[key] = trial(build(**setting))
        return known[key]

    return measure
