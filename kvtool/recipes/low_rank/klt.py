from __future__ import annotations

from typing import Literal

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.entropy.context import Context
from kvtool.codecs.entropy.wide import Wide
from kvtool.codecs.klt.basis import audible
from kvtool.codecs.klt.calibrate import fit
from kvtool.codecs.klt.coefficients import Coefficients
from kvtool.codecs.klt.learned import SINKS
from kvtool.codecs.klt.memory import fit_nbytes
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.quantize.deadzone import Deadzone
from kvtool.codecs.recipe import Between, Dial, Parameter, Preset, Recipe
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.klt import Klt
from kvtool.codecs.transform.sinks import Sinks
from kvtool.codecs.transform.unrope import Unrope

WHOLE_BELOW = 0.035
"""The step below which it pays to code the complement of the basis too. At 0.04 both ways come to the same."""

RATE = 0.6
"""Worth of a bit in rounding, relative to its worth at high rates; at most settings the best of 0, 0.6 and 1."""

SILENT = 0.06
"""Components whose mean magnitude is smaller than this share of the step are not worth the time of coding zeros."""

PRESETS = {
    "near-lossless": Preset(max_kl=0.002, min_retrieval=0.95, setting=0.012),
    "balanced": Preset(max_kl=0.03, min_retrieval=0.85, setting=0.075),
    "small": Preset(max_kl=0.07, min_retrieval=0.5, setting=0.15),
}
"""The KLs are near those of such settings on SmolLM2-135M (docs/results/klt.md). Few facts are asked for, so their shares leave
room for chance."""


CODERS: dict[str, type[Coefficients]] = {"wide": Wide, "context": Context}


def klt(calibration: Calibration, step: float, power: float, coder: str) -> Pipeline:
    """kvtool's own: transform coding, with errors weighted by their effect on the model's loss.

    Keys lose their rotation (RoPE). A prediction from each token and the one before it is subtracted, since token ids are
    stored anyway; the rest, of all layers at once, is written in a Karhunen-Loève basis under the weights of the loss's own
    gradients (Fisher information), found once for the model. One ``step`` for all components is then reverse
    water-filling: rank, bits for each component, layer and side all follow from it. Tokens that others look at
    get finer steps: a token's is ``step`` times the attention it gets to the power of ``-power``. Codes are entropy coded
    under a model of their neighbours. The first four positions of a context, which attention falls back on, are
    stored apart in 8 bits; under a shared prefix they belong to the prefix.

    docs/explanation/klt.md has what each part is worth, and what was tried and dropped.
    """

    whole = step < WHOLE_BELOW

    def side(name: Literal["keys", "values"]) -> tuple[Stage, ...]:
        kept = 0 if whole else audible(calibration, name, step * SILENT)
        transform = Klt(calibration, name, kept, whole)
        return transform, Deadzone(step=step, power=power, rate=RATE), CODERS[coder](calibration, name, step)

    return Pipeline(
        keys=(Sinks(SINKS), Unrope(), *side("keys")), values=(Sinks(SINKS), *side("values")), layers=0
    )


RECIPE = Recipe(
    name="klt",
    summary="all layers in one basis, errors weighted by the model's loss",
    make=klt,
    parameters={
        "step": Parameter(
            0.075,
            Between(1e-4, 10.0),
            "of every component, in units of its effect on the loss; balanced's, where it was measured",
        ),
        "power": Parameter(
            0.4, Between(0.0, 1.0), "how far attention to a token lowers its step; 0 for not at all"
        ),
        "coder": Parameter(
            "wide", tuple(CODERS), "decoded in parallel; or code after code, which takes 1 to 4 % fewer bytes"
        ),
    },
    calibration="klt",
    fit=fit,
    fit_nbytes=fit_nbytes,
    gradients=True,
    embedding=True,
    steps=True,
    dial=Dial("step", PRESETS, default="balanced"),
)
