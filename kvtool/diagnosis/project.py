"""What the settings name: the model and the store."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kvtool.config import Settings
from kvtool.counts import counted
from kvtool.diagnosis.finding import Finding
from kvtool.errors import KvtoolError
from kvtool.model.locate import locate, model_files
from kvtool.store.catalog.open import open_catalog
from kvtool.store.layout import scheme


def project(settings: Settings) -> Iterator[Finding]:
    yield _model(settings)
    yield _store(settings)


def _model(settings: Settings) -> Finding:
    try:
        path, name = locate(settings.model, download=False)
    except KvtoolError as error:
        return Finding("model", "broken", f"{error.subject}: {error.reason}", error.remedy)
    nbytes = sum(file.stat().st_size for file in model_files(path))
    return Finding("model", "ok", f"{name}, {nbytes / 1e9:.2f} GB at {path}")


def _store(settings: Settings) -> Finding:
    if not scheme(settings.store) and not settings.store.exists():
        return Finding(
            "store",
            "missing",
            f"{settings.store} is not there yet",
            "kvtool prefill or kvtool build makes it",
        )
    try:
        names = list(open_catalog(settings.store))
    except KvtoolError as error:
        return Finding("store", "broken", f"{error.subject}: {error.reason}", error.remedy)
    detail = f"{settings.store}, {counted(len(names), 'document')}"
    if not scheme(settings.store) and not os.access(settings.store, os.W_OK):
        return Finding("store", "broken", f"{detail}, cannot be written to", "check its permissions")
    return Finding("store", "ok", detail)
