"""One document's entry in a store: which segments it has, and which artifacts hold them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvtool.digest import canonical_json, digest, digest_json, is_digest
from kvtool.errors import StoreError
from kvtool.formats import FORMATS

FORMAT = FORMATS["manifest"].number
RAW = "raw"

AVERAGED = "averaged"
"""The variant that ``kvtool.blending.averaged`` makes, uncompressed as ``raw`` is."""

INPUTS = "inputs"
"""The variant that holds what stages need beside keys and values, which ``prefill --collect`` makes. It is no cache; its recipe
record names them, under "inputs"."""

AVERAGED_IN_RECORDS = "expected"
"""Name of ``AVERAGED`` in a variant's recipe record, under "of", and as a variant in manifests written before it was renamed."""


def averaged_name(variant: str) -> str:
    """The variant made from ``AVERAGED`` as ``variant`` is made from ``RAW``."""
    return AVERAGED if variant == RAW else f"{variant}-{AVERAGED}"


def exact_name(variant: str) -> str:
    """The variant whose ``averaged_name`` is ``variant``; other variants are their own."""
    return RAW if variant == AVERAGED else variant.removesuffix(f"-{AVERAGED}")


@dataclass(frozen=True)
class Variant:
    """One artifact of one segment: its digest, its file's bytes, and the recipe that made it."""

    artifact: str
    nbytes: int
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_pruned(self) -> bool:
        """Whether its recipe removes tokens."""
        return bool((self.recipe.get("pipeline") or {}).get("prune"))


@dataclass(frozen=True)
class Segment:
    """A run of the document's tokens. ``start`` and ``end`` are character offsets into its text."""

    identity: str
    n_tokens: int
    start: int
    end: int
    variants: Mapping[str, Variant]


@dataclass(frozen=True)
class Document:
    """A document as a store holds it. ``prefix_artifact`` is None if it was prefilled under no prefix.

    ``text_digest`` is that of its text, "" for a blend of other documents, which has no text of its own.
    ``signatures`` are in hexadecimal, by the variant that is signed and the key's id (``store.trust``).
    """

    name: str
    text_digest: str
    model: Mapping[str, Any]
    prefix: Mapping[str, Any]
    prefix_artifact: Variant | None
    segments: tuple[Segment, ...]
    signatures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def is_blend(self) -> bool:
        """Whether it was blended from other documents (``blending.record``)."""
        return not self.text_digest

    @property
    def n_tokens(self) -> int:
        return sum(segment.n_tokens for segment in self.segments)

    @property
    def variants(self) -> list[str]:
        """Names of the variants that every segment has and that are caches, raw first."""
        common = set.intersection(*(set(segment.variants) for segment in self.segments))
        return sorted(common - {INPUTS}, key=lambda name: (name != RAW, name))

    @property
    def artifacts(self) -> list[Variant]:
        prefix = [self.prefix_artifact] if self.prefix_artifact else []
        return prefix + [variant for segment in self.segments for variant in segment.variants.values()]

    def artifacts_of(self, segment: Segment, variant: str) -> tuple[Variant, ...]:
        """What a segment's cache is loaded from: the prefix, if there is one, and the segment itself."""
        prefix = (self.prefix_artifact,) if self.prefix_artifact else ()
        return (*prefix, segment.variants[variant])

    def nbytes(self, variant: str) -> int:
        return sum(segment.variants[variant].nbytes for segment in self.segments)

    def with_variant(self, index: int, name: str, variant: Variant) -> Document:
        segment = self.segments[index]
        changed = replace(segment, variants={**segment.variants, name: variant})
        segments = (*self.segments[:index], changed, *self.segments[index + 1 :])
        return replace(self, segments=segments).signed_as(self)

    def with_variants(self, variants: Collection[str]) -> Document:
        """Without all other variants."""
        segments = (
            replace(s, variants={name: v for name, v in s.variants.items() if name in variants})
            for s in self.segments
        )
        return replace(self, segments=tuple(segments)).signed_as(self)

    def signed_as(self, *others: Document) -> Document:
        """With those signatures of ``others`` that are of this document too, and no other."""
        signatures: dict[str, Mapping[str, str]] = {}
        for other in others:
            for name, signed in other.signatures.items():
                if name in self.every_variant and other.statement(name) == self.statement(name):
                    signatures[name] = {**signatures.get(name, {}), **signed}
        return replace(self, signatures=signatures)

    @property
    def every_variant(self) -> list[str]:
        """Names of all that any segment has, in order."""
        return sorted({name for segment in self.segments for name in segment.variants})

    def state(self, variants: Collection[str]) -> str:
        """Digest of the entry as if it had no variants but ``variants``."""
        return digest(replace(self.with_variants(variants), signatures={}).to_bytes())

    def statement(self, variant: str) -> bytes:
        """What is signed: all that the manifest says, but for other variants, so that these come and go.

        It begins as nothing else does that the key may sign.
        """
        body = replace(self, signatures={}).with_variants([variant])._body()
        return b"kvtool document\n" + digest_json(body).encode()

    def to_bytes(self) -> bytes:
        body = self._body()
        signatures = {name: dict(signed) for name, signed in self.signatures.items()}
        entry = {"signatures": signatures} if signatures else {}
        return canonical_json({**body, **entry, "digest": digest_json(body)}) + b"\n"

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "document": self.name,
            "text": self.text_digest,
            "model": dict(self.model),
            "prefix": dict(self.prefix),
            "prefix_artifact": self.prefix_artifact and _variant_json(self.prefix_artifact),
            "segments": [
                {
                    "identity": segment.identity,
                    "tokens": segment.n_tokens,
                    "start": segment.start,
                    "end": segment.end,
                    "variants": {name: _variant_json(v) for name, v in segment.variants.items()},
                }
                for segment in self.segments
            ],
        }

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Document:
        """Raises ``StoreError``, naming ``where``, unless ``data`` is a manifest of a known format, unchanged.

        Variants that were called otherwise when it was written have today's names.
        """
        remedy = "remove the file and run the same prefill again; artifacts that are whole are found and kept"
        try:
            body = json.loads(data)
            if body["format"] > FORMAT:
                reason = f"is a manifest of format {body['format']}, this kvtool reads up to {FORMAT}"
                raise StoreError(where, reason, "upgrade kvtool")
            prefix = body["prefix_artifact"]
            # What readers rely on, whatever the digest.
            _ = body["model"]["name"], body["model"]["fingerprint"]
            _ = body["prefix"]["identity"], body["prefix"]["digest"], body["prefix"]["origin"]["kind"]
            document = cls(
                name=body["document"],
                text_digest=body["text"],
                model=body["model"],
                prefix=body["prefix"],
                prefix_artifact=prefix and _variant(prefix),
                segments=tuple(map(_segment, body["segments"])),
                signatures=_signatures(body),
            )
            if not document.segments:
                raise ValueError("no segments")
            if document.to_bytes() != data:
                raise StoreError(where, "has been changed since it was written (digest differs)", remedy)
            return replace(document, segments=tuple(map(_with_todays_names, document.segments)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(where, f"is not a manifest ({type(error).__name__}: {error})", remedy) from error


def _signatures(body: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    signatures = {name: dict(signed) for name, signed in body.get("signatures", {}).items()}
    if not all(isinstance(text, str) for signed in signatures.values() for text in signed.values()):
        raise ValueError("a signature is no text")
    return signatures


def _segment(body: Mapping[str, Any]) -> Segment:
    start, end, n_tokens = int(body["start"]), int(body["end"]), int(body["tokens"])
    variants = {name: _variant(entry) for name, entry in body["variants"].items()}
    return Segment(body["identity"], n_tokens, start, end, variants)


def _with_todays_names(segment: Segment) -> Segment:
    variants: dict[str, Variant] = {}
    for name, variant in segment.variants.items():
        base, dash, end = name.rpartition("-")
        new = base + dash + AVERAGED
        is_renamed = end == AVERAGED_IN_RECORDS and new not in segment.variants
        variants[new if is_renamed else name] = variant
    return replace(segment, variants=variants)


def _variant_json(variant: Variant) -> dict[str, Any]:
    return {"artifact": variant.artifact, "bytes": variant.nbytes, "recipe": dict(variant.recipe)}


def _variant(body: Mapping[str, Any]) -> Variant:
    artifact = body["artifact"]
    if not is_digest(artifact):
        raise ValueError(f"artifact {artifact!r} is not a digest")
    return Variant(artifact, int(body["bytes"]), body["recipe"])
