"""What stages need beyond keys and values, measured by running the model over stored segments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from kvtool.artifact.read import Artifact
from kvtool.codecs import Inputs, Pipeline
from kvtool.errors import UsageError

if TYPE_CHECKING:
    from kvtool.model.model import Model

PROBED, REPLAYED = frozenset({"attention", "queries"}), frozenset({"importance"})
MEASURED = PROBED | REPLAYED
"""The inputs that kvtool can measure: with probes, and by a replay."""


def measure_inputs(model: Model, parts: Sequence[Artifact], needs: Collection[str]) -> Inputs:
    """Those of ``needs`` that can be measured, of the last of ``parts``, by name; ``engines.attention`` and
    ``engines.replay`` say what each is. The model runs for nothing else.

    Raises MismatchError, ArtifactError and ModelError as these do.
    """
    from kvtool.engines.attention.probe import observe
    from kvtool.engines.attention.replay import replay

    found: Inputs = {}
    if not PROBED.isdisjoint(needs):
        found = {**found, **observe(model, parts)}
    if not REPLAYED.isdisjoint(needs):
        found = {**found, **replay(model, parts)}
    return {name: tensors for name, tensors in found.items() if name in needs}


def refuse_unmeasurable(recipe: str, pipeline: Pipeline) -> None:
    """Raises ``UsageError`` for a pipeline that needs what kvtool cannot measure."""
    if unknown := pipeline.needs - MEASURED:
        raise UsageError(
            f"recipe {recipe!r}",
            f"needs {', '.join(sorted(unknown))}, which kvtool cannot measure",
            f"it can measure {', '.join(sorted(MEASURED))}",
        )


def refuse_unmet(recipe: str, pipeline: Pipeline, model: Model | None) -> None:
    """Raises ``UsageError`` as well for one that needs anything measured, without a model to measure it with."""
    refuse_unmeasurable(recipe, pipeline)
    if pipeline.needs and model is None:
        raise UsageError(
            (
                f"recipe {recipe!r} needs {' and '.join(sorted(pipeline.needs))}, which are measured by "
                "running the model that the documents were prefilled with"
            ),
            f"kvtool compress --recipe {recipe} --model MODEL, or compress(..., model=model)",
        )
