"""Checks a project before a build begins, so that hours of work do not end in a mistake that could be known."""

from __future__ import annotations

from collections.abc import Sized
from inspect import signature

from kvtool.blending.blend import BlendOptions
from kvtool.codecs import CodecError
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.compression.compress import compress
from kvtool.compression.inputs import chosen_recipe
from kvtool.compression.request import make_request
from kvtool.errors import UsageError
from kvtool.measurement.scope import Scope
from kvtool.pipeline.project import BlendSpec, Project, VariantSpec
from kvtool.report.page import require
from kvtool.store.transfer.push import refuse_unwritable


def check_project(project: Project, documents: Sized) -> None:
    """Raises ``UsageError`` for what no build of ``documents`` could do, ``KvtoolError`` for a report without what draws it."""
    for name, wanted in project.by_name.items():
        try:
            _check_variant(wanted)
        except (CodecError, UsageError) as error:
            raise UsageError(f"build.variants: {name}", error) from error
    for name, blend in project.blends_by_name.items():
        _check_blend(name, blend, project, documents)
    Scope(**project.measure.given)
    asks = any("min_answers" in limits for limits in project.gates.values())
    if asks and project.measure.questions is None:
        raise UsageError(
            "gate min_answers", "needs questions to answer", "name a file: [build.measure] questions"
        )
    if project.push is not None:
        refuse_unwritable(project.push)
    if project.report is not None:
        require()
        if not project.report.absolute().parent.is_dir():
            raise UsageError(
                f"build.report {project.report}", "is in no directory", "name a file in an existing one"
            )


def _check_blend(name: str, blend: BlendSpec, project: Project, documents: Sized) -> None:
    if len(documents) < 2:
        reason = "cannot be measured: build.documents is one document, and a blend has several"
        raise UsageError(f"gate of {name}", reason, "leave it out")
    options = BlendOptions(**blend.given)
    variant = project.by_name.get(blend.variant)
    if variant is not None and _prunes(variant) and not options.takes_pruned:
        reason = f"cannot be measured: {blend.variant} leaves out tokens, and so none can be recomputed"
        raise UsageError(f"gate of {name}", reason, "write recompute = 0, or name another variant")


def _prunes(wanted: VariantSpec) -> bool:
    is_told = wanted.keep is not None or wanted.resident is not None
    parts = chosen_recipe(wanted.recipe, prunes=is_told).split("+")
    return is_told or any(find_recipe(part).prunes for part in parts)


def _check_variant(wanted: VariantSpec) -> None:
    options = wanted.given
    named = {
        name: options.pop(name)
        for name in ("keys", "values", "calibration", "name", "source")
        if name in options
    }
    recipe = chosen_recipe(
        options.pop("recipe", None), prunes=not options.keys().isdisjoint(("keep", "resident"))
    )
    for key in wanted.parameters:
        if key in signature(compress).parameters:
            raise UsageError(
                f"set.{key}", "is no parameter of a recipe", f"kvtool recipes {recipe} lists them"
            )
    find_recipe(recipe)
    make_request(recipe, options, **named)
