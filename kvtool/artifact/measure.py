"""Inputs of codec stages, measured over stored artifacts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.codecs import Inputs
from kvtool.engines.stage_inputs import MEASURED, measure_inputs
from kvtool.model.model import Model


def measure_artifact(model: Model, parts: Sequence[Artifact], needs: Collection[str]) -> Inputs:
    """``measure_inputs`` of the last of ``parts``, raw artifacts that follow one another.

    Nothing is loaded where none of ``needs`` can be measured. Raises ``MismatchError`` and ``ArtifactError`` as
    ``load_cache`` does, and ``ModelError`` as ``measure_inputs`` does.
    """
    if MEASURED.isdisjoint(needs):
        return {}
    return measure_inputs(model, load_cache(parts, model), parts[-1].token_ids, needs)
