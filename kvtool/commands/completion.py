"""What a shell offers for options that name recipes, variants and presets, and for documents.

Who presses a key waits for it, so nothing here imports torch or asks a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kvtool.store.catalog.catalog import Catalog

PRESETS = ("near-lossless", "balanced", "small")


def recipe_names() -> list[str]:
    """kvtool's own recipes. Each is in a file of its name: to import them would take seconds."""
    stems = (path.stem for path in Path(str(files("kvtool"))).glob("recipes/*/**/*.py"))
    return sorted(stem.replace("_", "-") for stem in stems if stem != "__init__")


def complete_documents(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the store's documents; none where there is no store to look at."""
    catalog = _catalog(context)
    return [] if catalog is None else _beginning(catalog, incomplete)


def complete_variants(context: typer.Context, incomplete: str) -> list[str]:
    """Variants that the store's documents have."""
    return _beginning(_variants(context), incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes; after a plus, those that code what the first one leaves."""
    first, plus, last = incomplete.rpartition("+")
    return [f"{first}{plus}{name}" for name in _beginning(recipe_names(), last)]


def complete_recipes(context: typer.Context, incomplete: str) -> list[str]:
    """A list with commas: its last part is completed, by recipes and by variants."""
    first, comma, last = incomplete.rpartition(",")
    known = dict.fromkeys([*recipe_names(), *_variants(context)])
    return [f"{first}{comma}{name}" for name in _beginning(known, last)]


def complete_presets(incomplete: str) -> list[str]:
    return _beginning(PRESETS, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _variants(context: typer.Context) -> Sequence[str]:
    from kvtool.errors import KvtoolError

    found: dict[str, None] = {}
    catalog = _catalog(context)
    for name in catalog or ():
        try:
            found |= dict.fromkeys(catalog[name].variants if catalog is not None else ())
        except KvtoolError:
            # A broken manifest names none.
            continue
    return list(found)


def _catalog(context: typer.Context) -> Catalog | None:
    """The store that the command line names, where it is on this machine."""
    from kvtool.config import settings
    from kvtool.errors import KvtoolError
    from kvtool.store.catalog.open import open_catalog
    from kvtool.store.layout import scheme

    try:
        store = settings(store=context.params.get("store")).store
        # Nobody who presses a key expects a request to a server.
        return None if scheme(store) else open_catalog(store)
    except KvtoolError:
        return None
