"""``kvtool.lock``: what a build made, and of what, as digests. It is checked in beside the documents.

It has no times, no paths and no measured numbers: two builds of the same sources on like machines write the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kvtool.digest import Json, digest_json
from kvtool.errors import UsageError
from kvtool.pipeline.project import Project
from kvtool.pipeline.source_state import SourceState
from kvtool.store.catalog.catalog import Catalog
from kvtool.store.manifest import Document
from kvtool.system.files import write_atomic

LOCK = Path("kvtool.lock")
FORMAT = 1


@dataclass(frozen=True)
class LockedDocument:
    """A document: the digest of its file and of its text, and what its store's manifest names, in the manifest's terms.

    A file without text is no document of the store, and has only a ``source``.
    """

    source: str
    text: str | None = None
    prefix: str | None = None
    segments: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, source: str, document: Document | None, variants: Collection[str]) -> LockedDocument:
        """``variants`` are those that are the build's: a document may have others."""
        if document is None:
            return cls(source)
        segments = tuple(
            {
                "identity": segment.identity,
                "artifacts": {
                    name: variant.artifact
                    for name, variant in sorted(segment.variants.items())
                    if name in variants
                },
            }
            for segment in document.segments
        )
        prefix = document.prefix_artifact
        return cls(source, document.text_digest, prefix.artifact if prefix else None, segments)

    @property
    def artifacts(self) -> set[str]:
        """Digests of all that it names."""
        own = {digest for segment in self.segments for digest in segment["artifacts"].values()}
        return own | ({self.prefix} if self.prefix else set())


@dataclass(frozen=True)
class Lock:
    """``variants`` have the project's words for each, and the calibrations that it needs; ``gates`` the limits that were kept.

    A gate names what was measured: a digest of the documents' entries and of how much was measured. ``pushed`` has the
    ``built`` of what was copied to an address.
    """

    model: Mapping[str, Json]
    settings: Mapping[str, Json]
    documents: Mapping[str, LockedDocument]
    variants: Mapping[str, Mapping[str, Json]]
    gates: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    pushed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Project, sources: SourceState, catalog: Catalog) -> Lock:
        """What is built now, without gates."""
        wanted = project.by_name
        names = {"raw", *wanted}
        entries: dict[str, LockedDocument] = {}
        calibrations: dict[str, set[str]] = {name: set() for name in wanted}
        fingerprint: Json = None
        for name, source in sources.documents.items():
            document = catalog.get(name)
            entries[name] = LockedDocument.of(source, document, names)
            if document is None:
                continue
            fingerprint = document.model["fingerprint"]
            for variant, used in calibrations.items():
                used |= _calibrations(document, variant)
        return cls(
            {**sources.model, "fingerprint": fingerprint},
            sources.settings,
            dict(sorted(entries.items())),
            {
                name: {"options": one.given, "calibrations": sorted(calibrations[name])}
                for name, one in wanted.items()
            },
        )

    @property
    def built(self) -> str:
        """Digest of all documents."""
        return digest_json({name: asdict(entry) for name, entry in self.documents.items()})

    def with_gates(self, gates: Mapping[str, Mapping[str, Json]]) -> Lock:
        return replace(self, gates=dict(sorted(gates.items())))

    def write(self, path: Path = LOCK) -> None:
        """Raises ``StoreError`` where the file cannot be written."""
        body = {"format": FORMAT, **asdict(self)}
        write_atomic(path, [json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"])


def read_lock(path: Path = LOCK) -> Lock | None:
    """The lock of the last build; None if there is none. Raises ``UsageError`` for what is no lock, or a newer one."""
    remedy = "take the file of your version control, or remove it and run kvtool build"
    try:
        body = json.loads(path.read_bytes())
        if body.pop("format") > FORMAT:
            raise UsageError(path, "is of a newer kvtool", "upgrade kvtool")
        entries = {name: LockedDocument(**entry) for name, entry in body.pop("documents").items()}
        # JSON has no tuples.
        documents = {name: replace(entry, segments=tuple(entry.segments)) for name, entry in entries.items()}
        lock = Lock(documents=documents, **body)
        _ = [entry.artifacts for entry in documents.values()], lock.model["files"]
        return lock
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(path, f"is no lock ({type(error).__name__}: {error})", remedy) from error


def _calibrations(document: Document, variant: str) -> set[str]:
    """Digests of the calibrations that a document's variant needs."""
    configs = [s.variants[variant].recipe.get("pipeline") for s in document.segments if variant in s.variants]
    return set().union(*map(_digests, configs))


def _digests(config: Any) -> set[str]:
    if isinstance(config, Mapping):
        own = {config["calibration"]} if isinstance(config.get("calibration"), str) else set()
        return own.union(*map(_digests, config.values()))
    return set().union(*map(_digests, config)) if isinstance(config, (list, tuple)) else set()
