"""What a project is built from, told by content: its documents, its model, and the settings of a prefill. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtool.config import Settings
from kvtool.digest import Json, digest
from kvtool.documents.find import find
from kvtool.documents.read import read_bytes
from kvtool.model.fingerprint import digest_files
from kvtool.model.locate import locate, model_files
from kvtool.pipeline.project import Project
from kvtool.prefilling.inputs import OPTIONS

DECIDING = ("dtype", "load_in", *(name for name in OPTIONS if name not in ("include", "exclude")))
"""Settings that decide what a prefill makes of a document."""


@dataclass(frozen=True)
class SourceState:
    """``documents`` are the digests of their files, by name; ``model`` has a name and a digest of all its files."""

    documents: Mapping[str, str]
    model: Mapping[str, Json]
    settings: Mapping[str, Json]

    @classmethod
    def of(cls, project: Project, settings: Settings) -> SourceState:
        """Reads all files. Raises KvtoolError for a document or a model that cannot be."""
        found, errors, _ = find(project.documents, include=settings.include, exclude=settings.exclude)
        if errors:
            raise errors[0]
        path, name = locate(settings.model)
        adapter = settings.adapter and digest_files(model_files(Path(settings.adapter)))
        values: dict[str, Any] = settings.model_dump(mode="json", include=set(DECIDING))
        values["prefix_file"] = settings.prefix_file and digest(read_bytes(settings.prefix_file))
        return cls(
            {one.name: digest(read_bytes(one.path)) for one in found},
            {"name": name, "files": digest_files(model_files(path)), "adapter": adapter},
            values,
        )
