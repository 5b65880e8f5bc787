"""The stages in the registry."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields

from docsgen.markdown import code, docstring, table
from docsgen.markdown import page as whole_page
from kvtool.codecs import Stage, stages
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.stage_registry import FOLDERS, prune_stages

INTRO = """The steps that [recipes](recipes.md) are made of. An artifact names each stage with its version and its fields, so a
version stays readable for good: a change of what it writes is a new version.

*Shapes*: H heads, T tokens, D channels, L layers."""

KINDS = {
    "prune": "leave tokens out",
    "transform": "change keys or values into numbers that are easier to code",
    "quantize": "turn numbers into codes of a few bits",
    "entropy": "write codes as bytes",
}


def page() -> str:
    registered: list[tuple[tuple[str, int], type[Stage] | type[Prune]]] = sorted(
        [*stages().items(), *prune_stages().items()], key=lambda one: one[0]
    )
    overview = [
        (f"[{name}](#{name}-{version})", version, stage.kind, needs(stage))
        for (name, version), stage in sorted(registered, key=lambda one: FOLDERS.index(one[1].kind))
    ]
    kinds = "\n".join(f"- **{kind}** stages {KINDS[kind]}." for kind in FOLDERS)
    return whole_page(
        "Stages",
        "codecs/",
        INTRO,
        kinds,
        table(("stage", "version", "kind", "needs"), overview),
        *(block for _, stage in registered for block in described(stage)),
    )


def described(stage: type[Stage] | type[Prune]) -> list[str]:
    rows = [(code(field.name), code(field.type), default(field)) for field in fields(stage)]
    return [
        f"## {stage.name} {stage.version}",
        f"Kind: {stage.kind}. Class: `{stage.__module__}.{stage.__name__}`.",
        docstring(stage),
        table(("field", "type", "default"), rows),
    ]


def needs(stage: type[Stage] | type[Prune]) -> str:
    """In any configuration: some stages need more or less by what their fields say."""
    return ", ".join(sorted({name for example in stage.examples() for name in example.needs})) or "–"


def default(field: Field[object]) -> str:
    if field.default is not MISSING:
        return code(field.default)
    return "must be given" if field.default_factory is MISSING else code(field.default_factory())
