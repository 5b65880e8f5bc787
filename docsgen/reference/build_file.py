"""The table ``build`` of kvtool.toml, key by key."""

from __future__ import annotations

from pydantic import BaseModel

from docsgen.markdown import code, table
from docsgen.markdown import page as whole_page
from docsgen.reference.settings import kind
from kvtool.pipeline.project import BlendLimits, BlendSpec, Limits, Measure, Project, VariantSpec

INTRO = """The table that `kvtool build` reads: `[build]` in `kvtool.toml`, or `[tool.kvtool.build]` in `pyproject.toml`.
`kvtool init` writes a first one. Beside it stand the [settings](settings.md), such as `model` and `store`.

A key that is not on this page is refused, with the nearest one that is."""

TABLES: dict[str, type[BaseModel]] = {
    "`[build]`": Project,
    "`[[build.variants]]`": VariantSpec,
    "`gate` of a variant": Limits,
    "`[[build.blends]]`": BlendSpec,
    "`gate` of a blend": BlendLimits,
    "`[build.measure]`": Measure,
}

NESTED = {
    "variants": "list of tables",
    "blends": "list of tables",
    "measure": "table",
    "gate": "table",
    "set": "table",
}


def page() -> str:
    parts: list[str] = []
    for title, model in TABLES.items():
        rows = [
            (code(key), code(NESTED.get(key) or kind(field.annotation)), field.description or "")
            for key, field in ((field.alias or name, field) for name, field in model.model_fields.items())
        ]
        parts += [f"## {title}", table(("key", "type", "meaning"), rows)]
    return whole_page("The build file", "kvtool/pipeline/project.py", INTRO, *parts)
