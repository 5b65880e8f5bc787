"""What decides the outcome of a prefill, read without torch, transformers or the documents' text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvtool.config import Settings
from kvtool.digest import digest
from kvtool.documents.find import find
from kvtool.errors import KvtoolError
from kvtool.model.locate import model_state
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.manifest import AVERAGED, RAW

PREFILLED = (RAW, AVERAGED)
"""The variants that a prefill makes."""


def prefill_inputs(paths: Iterable[str | Path], settings: Settings) -> dict[str, Any] | None:
    """The files to prefill, the model's, and what the store holds for them, as JSON; None where any cannot be read.

    Equal inputs give equal results.
    """
    try:
        catalog = LocalCatalog(settings.store)
        documents, errors, passed_over = find(paths, include=settings.include, exclude=settings.exclude)
        if errors:
            return None
        return {
            "model": model_state(settings.model, settings.adapter),
            "documents": [[d.name, str(d.path), d.walked, digest(d.path.read_bytes())] for d in documents],
            "passed_over": dict(passed_over),
            "prefix_file": settings.prefix_file and digest(settings.prefix_file.read_bytes()),
            "entries": {d.name: catalog.state(d.name, PREFILLED) for d in documents},
            "others": _others(catalog, settings, [document.name for document in documents]),
        }
    except (KvtoolError, OSError):
        return None


def _others(catalog: LocalCatalog, settings: Settings, names: list[str]) -> list[Any] | None:
    """Entries of the whole store, where the documents' own do not decide alone.

    They choose a document's neighbours, and the time that a chat template prints.
    """
    documents = [catalog[name] for name in names if name in catalog]
    if not settings.neighbours and not any("now" in document.prefix["origin"] for document in documents):
        return None
    return [[name, catalog.state(name, PREFILLED)] for name in catalog]
