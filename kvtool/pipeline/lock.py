"""``kvtool.lock``: what a build made, and of what, as digests. It is checked in beside the documents.

It has no times, no paths and no measured numbers: two builds of the same sources on like machines write the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kvtool.digest import digest_json
from kvtool.errors import UsageError
from kvtool.formats import FORMATS
from kvtool.pipeline.project import Project
from kvtool.pipeline.source_state import SourceState
from kvtool.prefilling.inputs import PREFILLED
from kvtool.store.catalog.catalog import Catalog
from kvtool.store.manifest import Document
from kvtool.system.files import write_atomic

LOCK = Path("kvtool.lock")
FORMAT = FORMATS["lock"].number


@dataclass(frozen=True)
class LockedSegment:
    """A segment's identity, and its artifacts by variant."""

    identity: str
    artifacts: Mapping[str, str]


@dataclass(frozen=True)
class LockedDocument:
    """A document: the digest of its file and of its text, and what its store's manifest names, in the manifest's terms.

    A file without text is no document of the store, and has only a ``source``.
    """

    source: str
    text: str | None = None
    prefix: str | None = None
    segments: tuple[LockedSegment, ...] = ()

    @classmethod
    def of(cls, source: str, document: Document | None, variants: Collection[str]) -> LockedDocument:
        """``variants`` are those that are the build's: a document may have others."""
        if document is None:
            return cls(source)
        segments = tuple(
            LockedSegment(
                segment.identity,
                {
                    name: variant.artifact
                    for name, variant in sorted(segment.variants.items())
                    if name in variants
                },
            )
            for segment in document.segments
        )
        prefix = document.prefix_artifact
        return cls(source, document.text_digest, prefix.artifact if prefix else None, segments)

    def only(self, variants: Collection[str]) -> LockedDocument:
        """The same with some of its variants."""
        segments = (
            replace(
                one, artifacts={name: digest for name, digest in one.artifacts.items() if name in variants}
            )
            for one in self.segments
        )
        return replace(self, segments=tuple(segments))

    @property
    def artifacts(self) -> set[str]:
        """Digests of all that it names."""
        own = {digest for segment in self.segments for digest in segment.artifacts.values()}
        return own | ({self.prefix} if self.prefix else set())


@dataclass(frozen=True)
class LockedVariant:
    """The project's words for a variant, and the calibrations that it needs."""

    options: Mapping[str, Any]
    calibrations: tuple[str, ...]


@dataclass(frozen=True)
class PassedGate:
    """Limits that were kept. ``of`` is the digest of what was measured: the documents' artifacts, and how much of them."""

    limits: Mapping[str, float]
    of: str


@dataclass(frozen=True)
class Lock:
    """The state that a build left. ``pushed`` has the ``built`` of what was copied to an address."""

    model: Mapping[str, str | None]
    settings: Mapping[str, Any]
    documents: Mapping[str, LockedDocument]
    variants: Mapping[str, LockedVariant]
    gates: Mapping[str, PassedGate] = field(default_factory=dict)
    pushed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Project, sources: SourceState, catalog: Catalog) -> Lock:
        """What is built now, without gates."""
        wanted = project.by_name
        names = {*PREFILLED, *wanted}
        documents: dict[str, LockedDocument] = {}
        calibrations: dict[str, set[str]] = {name: set() for name in wanted}
        fingerprint: str | None = None
        for name, source in sources.documents.items():
            document = catalog.get(name)
            documents[name] = LockedDocument.of(source, document, names)
            if document is None:
                continue
            fingerprint = document.model["fingerprint"]
            for variant, used in calibrations.items():
                used |= _calibrations(document, variant)
        return cls(
            {**sources.model, "fingerprint": fingerprint},
            sources.settings,
            dict(sorted(documents.items())),
            {
                name: LockedVariant(one.given, tuple(sorted(calibrations[name])))
                for name, one in wanted.items()
            },
        )

    @property
    def built(self) -> str:
        """Digest of all documents."""
        return digest_json({name: _json(entry) for name, entry in self.documents.items()})

    def with_gates(self, gates: Mapping[str, PassedGate]) -> Lock:
        return replace(self, gates=dict(sorted(gates.items())))

    def write(self, path: Path = LOCK) -> None:
        """Raises ``StoreError`` where the file cannot be written."""
        body = {"format": FORMAT, **_json(self)}
        write_atomic(path, [json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"])


def read_lock(path: Path = LOCK) -> Lock | None:
    """The lock of the last build; None if there is none. Raises ``UsageError`` for what is no lock, or a newer one."""
    remedy = "take the file of your version control, or remove it and run kvtool build"
    try:
        body = json.loads(path.read_bytes())
        if body.pop("format") > FORMAT:
            raise UsageError(path, "is of a newer kvtool", "upgrade kvtool")
        return TypeAdapter(Lock).validate_python(body)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(path, f"is no lock ({field}: {first['msg'].lower()})", remedy) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(path, f"is no lock ({type(error).__name__}: {error})", remedy) from error


def _json(value: Any) -> Any:
    """A dataclass as JSON has it, which knows no tuples."""
    return json.loads(json.dumps(asdict(value)))


def _calibrations(document: Document, variant: str) -> set[str]:
    """Digests of the calibrations that a document's variant needs."""
    configs = [s.variants[variant].recipe.get("pipeline") for s in document.segments if variant in s.variants]
    return set().union(*map(_digests, configs))


def _digests(config: Any) -> set[str]:
    if isinstance(config, Mapping):
        own = {config["calibration"]} if isinstance(config.get("calibration"), str) else set()
        return own.union(*map(_digests, config.values()))
    return set().union(*map(_digests, config)) if isinstance(config, (list, tuple)) else set()
