"""What each gate of a project measures, told by digests: a gate that was passed is measured again only if these differ."""

from __future__ import annotations

from kvtool.digest import Json, digest_json
from kvtool.pipeline.lock import Lock, PassedGate
from kvtool.pipeline.project import BlendSpec, Project
from kvtool.pipeline.source_state import SourceState
from kvtool.store.manifest import RAW, averaged_name, exact_name


def wanted_gates(project: Project, sources: SourceState, lock: Lock) -> dict[str, PassedGate]:
    """The gates that must be passed, by the names of their variants and blends."""
    blends = project.blends_by_name
    return {
        name: PassedGate(limits, _subject(project, sources, lock, blends.get(name, name)))
        for name, limits in project.gates.items()
    }


def _subject(project: Project, sources: SourceState, lock: Lock, measured: str | BlendSpec) -> str:
    """Digest of what is measured of a variant, or of a blend: the documents' segments, and how much of them."""
    artifacts = _of_documents(lock, *([RAW, measured] if isinstance(measured, str) else _read(measured)))
    how: list[Json] = [artifacts, project.measure.model_dump(mode="json"), sources.questions]
    return digest_json(how if isinstance(measured, str) else [*how, measured.given])


def _read(blend: BlendSpec) -> tuple[str, ...]:
    """The variants that a blend may read: its own, and the one made for moved documents."""
    exact = exact_name(blend.variant)
    return exact, averaged_name(exact)


def _of_documents(lock: Lock, *variants: str) -> dict[str, Json]:
    return {
        name: [
            [segment.identity, *(segment.artifacts.get(variant) for variant in variants)]
            for segment in entry.segments
        ]
        for name, entry in lock.documents.items()
    }
