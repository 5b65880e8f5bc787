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
from kvtool.errors import DocumentError
from kvtool.model.fingerprint import digest_files
from kvtool.model.locate import locate, model_files
from kvtool.pipeline.project import Project
from kvtool.prefilling.inputs import OPTIONS

DECIDING = ("dtype", "load_in", *(name for name in OPTIONS if name not in ("include", "exclude")))
"""Settings that decide what a prefill makes of a document."""


@dataclass(frozen=True)
class SourceState:
    """``documents`` are the digests of their files, by name; ``model`` has a name and a digest of all its files.

    ``questions`` is the digest of the file of questions, None if there is none.
    """

    documents: Mapping[str, str]
    model: Mapping[str, Json]
    settings: Mapping[str, Json]
    questions: str | None

    @classmethod
    def of(cls, project: Project, settings: Settings, *, download: bool = True) -> SourceState:
        """Reads all files.

        Raises KvtoolError for a document or a model that cannot be read, and where there is no document: an empty project would
        remove all that was built. A hub's model is downloaded, or refused without ``download``.
        """
        found, errors, passed_over = find(
            project.documents, include=settings.include, exclude=settings.exclude
        )
        if errors:
            raise errors[0]
        if not found:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(passed_over.items()))
            raise DocumentError(
                f"build.documents {', '.join(project.documents)}",
                f"no document is there{f' (passed over: {reasons})' if reasons else ''}",
                "check the paths, the ignore rules and --exclude; kvtool rm removes documents on purpose",
            )
        path, name = locate(settings.model, download=download)
        adapter = settings.adapter and digest_files(model_files(Path(settings.adapter)))
        values: dict[str, Any] = settings.model_dump(mode="json", include=set(DECIDING))
        values["prefix_file"] = settings.prefix_file and digest(read_bytes(settings.prefix_file))
        questions = project.measure.questions
        return cls(
            {one.name: digest(read_bytes(one.path)) for one in found},
            {"name": name, "files": digest_files(model_files(path)), "adapter": adapter},
            values,
            digest(read_bytes(questions)) if questions else None,
        )
