"""What decides the outcome of a prefill, read without torch, transformers or the documents' text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvtool.config import Settings
from kvtool.digest import digest
from kvtool.documents.find import find
from kvtool.documents.load import NamedBytes
from kvtool.documents.read import read_bytes, read_text
from kvtool.errors import DocumentError, KvtoolError
from kvtool.model.locate import model_state
from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.manifest import AVERAGED, INPUTS, RAW, Document

PREFILLED = (RAW, AVERAGED, INPUTS)
"""The variants that a prefill makes."""


OPTIONS = (
    "system",
    "no_prefix",
    "include",
    "exclude",
    "encoding",
    "segment_tokens",
    "step_tokens",
    "pack_tokens",
    "neighbours",
    "collect",
)
"""Settings that are arguments of ``prefill``, as they are."""


def prefill_inputs(paths: Sequence[str | NamedBytes], settings: Settings) -> dict[str, Any] | None:
    """The files to prefill, the model's, and what the store holds for them, as JSON; None where any cannot be read.

    Equal inputs give equal results.
    """
    try:
        catalog = LocalCatalog(settings.store)
        sent = [source for source in paths if isinstance(source, NamedBytes)]
        files = [source for source in paths if isinstance(source, str)]
        documents, errors, passed_over = find(files, include=settings.include, exclude=settings.exclude)
        if errors:
            return None
        names = [*(d.name for d in documents), *(source.name for source in sent)]
        held = {name: catalog[name] for name in names if name in catalog}
        states = {name: catalog.state(document, PREFILLED) for name, document in held.items()}
        return {
            "model": model_state(settings.model, settings.adapter),
            "documents": [[d.name, str(d.path), d.walked, digest(read_bytes(d.path))] for d in documents],
            "sent": [[source.name, digest(source.data)] for source in sent],
            "passed_over": dict(passed_over),
            "prefix_file": settings.prefix_file and digest(read_bytes(settings.prefix_file)),
            "entries": {name: states.get(name) for name in names},
            "others": _others(catalog, settings, held.values()),
        }
    except (KvtoolError, OSError):
        return None


def prefill_options(settings: Settings) -> tuple[dict[str, Any], list[DocumentError]]:
    """The arguments of ``prefill`` that settings have, and warnings about the file of the prefix."""
    warnings: list[DocumentError] = []
    file = settings.prefix_file
    options = {name: getattr(settings, name) for name in OPTIONS}
    return {**options, "prefix_text": read_text(file, warnings) if file else None}, warnings


def _others(catalog: LocalCatalog, settings: Settings, documents: Iterable[Document]) -> list[Any] | None:
    """Entries of the whole store, where the documents' own do not decide alone.

    They choose a document's neighbours, and the time that a chat template prints.
    """
    if not settings.neighbours and not any("now" in document.prefix["origin"] for document in documents):
        return None
    return [[name, catalog.state(document, PREFILLED)] for name, document in catalog.items()]
