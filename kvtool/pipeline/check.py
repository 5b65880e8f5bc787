"""Checks a project before a build begins, so that hours of work do not end in a mistake that could be known."""

from __future__ import annotations

from inspect import signature

from kvtool.codecs import CodecError
from kvtool.codecs.recipe_registry import recipe as find_recipe
from kvtool.compression.compress import compress
from kvtool.compression.inputs import chosen_recipe
from kvtool.compression.request import make_request
from kvtool.errors import UsageError
from kvtool.measurement.scope import Scope
from kvtool.pipeline.project import Project, VariantSpec
from kvtool.report.page import require
from kvtool.store.transfer.push import refuse_unwritable


def check_project(project: Project) -> None:
    """Raises ``UsageError`` for what no build could do, and ``KvtoolError`` for a report without what draws it."""
    for name, wanted in project.by_name.items():
        try:
            _check_variant(wanted)
        except (CodecError, UsageError) as error:
            raise UsageError(f"build.variants: {name}", error) from error
    Scope(**project.measure.given)
    asks = any(wanted.gate.min_answers is not None for wanted in project.variants)
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
