"""The recipes in the registry."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from docsgen.markdown import code, docstring, table
from docsgen.markdown import page as whole_page
from kvtool.codecs import Recipe, Stage, recipes
from kvtool.codecs.stage import BaseStage
from kvtool.codecs.stage_registry import FOLDERS

INTRO = """How a KV cache can be compressed. `kvtool compress --recipe NAME --set PARAMETER=VALUE` uses one; `kvtool recipes NAME`
shows it in the terminal. [Stages](stages.md) has the steps that recipes are made of.

*Needs* is what a recipe is given beside keys and values. *Bits* are nominal, per value of all tokens: those of 1,024 tokens of
a common model, before entropy coding. A recipe with a calibration has none, since what it learns decides."""

KEEPING = "These keep all tokens, in fewer bits:"
DROPPING = """These drop tokens. A plus joins one to a recipe above that codes what stays: `kvzip+kivi`."""


def page() -> str:
    listed = recipes().values()
    return whole_page(
        "Recipes",
        "kvtool/recipes/",
        INTRO,
        KEEPING,
        overview(recipe for recipe in listed if not recipe.prunes),
        DROPPING,
        overview(recipe for recipe in listed if recipe.prunes),
        *(block for recipe in listed for block in described(recipe)),
    )


def overview(some: Iterable[Recipe]) -> str:
    rows = [
        (
            f"[{recipe.name}](#{recipe.name})",
            paper(recipe, short=True),
            needs(recipe),
            bits(recipe),
            recipe.summary,
        )
        for recipe in some
    ]
    return table(("recipe", "paper", "needs", "bits", "what it does"), rows)


def described(recipe: Recipe) -> list[str]:
    parameters = [
        (code(name), code(parameter.default), parameter.choices, parameter.help)
        for name, parameter in recipe.parameters.items()
    ]
    facts = [f"Paper: {paper(recipe)}"] if recipe.paper else []
    facts += [*stages(recipe), f"Needs: {needs(recipe)}"]
    if recipe.calibration:
        facts.append(
            f"Calibration: `{recipe.calibration}`, made by `kvtool calibrate --recipe {recipe.name}`"
            + (", with the gradients of the model's loss" if recipe.gradients else "")
            + "".join(f"; none for `{name}={value}`" for name, value in recipe.uncalibrated.items())
        )
    if recipe.dial:
        facts.append(f"Dial: `{recipe.dial.parameter}`")
        facts += [f"Preset {name}: {preset.describe()}" for name, preset in recipe.dial.presets.items()]
    return [
        f"## {recipe.name}",
        docstring(recipe.make),
        "\n".join(f"- {fact}" for fact in facts),
        table(("parameter", "default", "allowed", "meaning"), parameters),
    ]


def paper(recipe: Recipe, *, short: bool = False) -> str:
    number, _, title = recipe.paper.partition(" ")
    return f"[{number if short else title}](https://arxiv.org/abs/{number})" if number else "–"


def needs(recipe: Recipe) -> str:
    if recipe.calibration:
        return "calibration"
    return ", ".join(sorted(recipe.build().needs)) or "–"


def bits(recipe: Recipe) -> str:
    return "–" if recipe.calibration else f"{recipe.nominal_bits():.2f}"


def stages(recipe: Recipe) -> list[str]:
    """The pipeline at the defaults; of a recipe that needs a calibration first, the stages that its module uses."""
    if recipe.calibration:
        used = [kind for kind in vars(inspect.getmodule(recipe.make)).values() if is_stage(kind)]
        used.sort(key=lambda stage: FOLDERS.index(stage.kind))
        return [f"Stages: {', '.join(map(linked, used))}"]
    pipeline = recipe.build()
    if pipeline.prune and not (pipeline.keys or pipeline.values):
        return [f"Stage: {linked(pipeline.prune)}"]
    if pipeline.keys == pipeline.values:
        return [f"Stages: {chain(pipeline.keys)}"]
    return [f"Stages of keys: {chain(pipeline.keys)}", f"Stages of values: {chain(pipeline.values)}"]


def is_stage(candidate: object) -> bool:
    return inspect.isclass(candidate) and issubclass(candidate, Stage) and not inspect.isabstract(candidate)


def chain(stages: tuple[Stage, ...]) -> str:
    return " → ".join(map(linked, stages)) or "none"


def linked(stage: BaseStage | type[BaseStage]) -> str:
    return f"[{stage.name}](stages.md#{stage.name}-{stage.version})"
