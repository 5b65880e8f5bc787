"""What decides whether there is anything to compress, read without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvtool.errors import KvtoolError, UsageError
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.layout import CALIBRATIONS
from kvtool.store.manifest import AVERAGED, AVERAGED_IN_RECORDS, INPUTS, RAW, averaged_name
from kvtool.system.files import file_state

DEFAULT_RECIPE, DEFAULT_PRUNING = "klt", "attention-matching"


def chosen_recipe(recipe: str | None, *, prunes: bool) -> str:
    """``recipe``, or the default: the best that leaves out tokens where that is asked for (``prunes``), or else ``klt``."""
    return recipe or (DEFAULT_PRUNING if prunes else DEFAULT_RECIPE)


def compress_inputs(store: Path, names: Iterable[str] | None, variant: str) -> dict[str, Any] | None:
    """What the store holds, as JSON: entries and calibrations; None where any cannot be read.

    Entries of all documents count, whatever ``names`` (default: all) are: documents that join a variant get its setting.
    """
    try:
        catalog = LocalCatalog(store)
        return {
            "names": list(names or catalog),
            "entries": {name: catalog.state(catalog[name], compared(variant)) for name in catalog},
            "calibrations": [file_state(path) for path in sorted((store / CALIBRATIONS).glob("*"))],
        }
    except (KvtoolError, OSError):
        return None


def compared(variant: str) -> tuple[str, ...]:
    """The variants that decide whether there is anything to do for ``variant``."""
    return RAW, AVERAGED, variant


def variant_name(recipe: str, name: str | None, source: str = RAW) -> str:
    """The variant's name. Raises ``UsageError`` for names that prefill uses, and for a source that it does not make."""
    if source not in (RAW, AVERAGED):
        raise UsageError(f"--source {source}", f"expected {RAW} or {AVERAGED}, which prefill makes")
    variant = name or recipe
    if variant in (RAW, AVERAGED, AVERAGED_IN_RECORDS, INPUTS):
        raise UsageError(f"--name {variant}", "is kept for what prefill made", "choose another")
    return variant if source == RAW else averaged_name(variant)
