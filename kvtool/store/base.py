"""What every store can be asked for: documents by name, their artifacts, and caches loaded from these."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.errors import StoreError, UsageError
from kvtool.store.backends.backend import without_secrets
from kvtool.store.calibrations import Calibrations
from kvtool.store.layout import address, artifact_file, manifest_file, scheme
from kvtool.store.manifest import AVERAGED, RAW, Document, Variant

if TYPE_CHECKING:
    from kvtool.codecs import KV
    from kvtool.engines.cache import DocumentCache
    from kvtool.model.model import Model


class Store(Mapping[str, Document]):
    """Documents by name, to be read. ``Store(address)`` opens the store there.

    A subclass names the schemes of the addresses that it opens: ``class S3Store(Store, schemes=["s3"])``, and "" for
    directories. ``kvtool.store.open`` lists kvtool's own. Methods that raise ``NotImplementedError`` are for subclasses to
    write. The class is not abstract, since type checkers would refuse ``Store(address)`` then.

    Raises ``UsageError`` for an address that no class opens.
    """

    _by_scheme: ClassVar[dict[str, type[Store]]] = {}

    def __init_subclass__(cls, *, schemes: Iterable[str] = ()) -> None:
        super().__init_subclass__()
        Store._by_scheme |= dict.fromkeys(schemes, cls)

    # Without an address it is called by copy and pickle.
    def __new__(cls, root: str | Path = "", *_: Any, **__: Any) -> Store:
        return super().__new__(store_class(root) if cls is Store else cls)

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

    def __getitem__(self, name: str) -> Document:
        """The document's manifest. Raises ``DocumentMissing`` for a name that the store does not hold."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        """The documents' names, in order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def calibrations(self) -> Calibrations:
        """Those that are on this machine, by digest."""
        raise NotImplementedError

    def committed(self, name: str) -> float:
        """When the document was last committed, in seconds since 1970."""
        raise NotImplementedError

    def holds(self, variant: Variant) -> bool:
        """Whether the artifact is there, as far as is known without reading it."""
        raise NotImplementedError

    def open_artifact(self, variant: Variant) -> Artifact:
        """The artifact, its header checked."""
        raise NotImplementedError

    def locate_artifact(self, digest: str) -> Path:
        """The artifact's file on this machine. Raises ``NotThere`` if the store has none of that digest."""
        raise NotImplementedError

    def locate_calibration(self, digest: str) -> Path:
        """The calibration's file on this machine. Raises ``NotThere`` if the store has none of that digest."""
        raise NotImplementedError

    def discard(self, variant: Variant) -> None:
        """Removes a broken artifact's file from this machine, so that it will be made or fetched again."""
        raise NotImplementedError

    def check_name(self, name: str) -> None:
        """Raises ``StoreError`` for what cannot be a document's name."""
        manifest_file(name)

    def size(self, name: str, variant: str = RAW) -> int:
        """Bytes of the variant's files: every segment's artifact, whole."""
        document = self[name]
        return sum(self._variant(document, i, variant).nbytes for i in range(len(document.segments)))

    def open(self, name: str, variant: str = RAW, segment: int = 0) -> Artifact:
        """The artifact of one segment, its header checked."""
        return self.open_artifact(self._variant(self[name], segment, variant))

    def read(self, name: str, variant: str = RAW, segment: int = 0) -> KV:
        """One segment's KV, every byte checked, without its prefix; needs no model."""
        return self.open(name, variant, segment).kv()

    def load(self, name: str, model: Model, variant: str = RAW, segment: int = 0) -> DocumentCache:
        """A transformers cache of one segment after its prefix, ready for ``model``.

        Raises ``MismatchError``, naming the field, if the artifact belongs to another model.
        """
        return load_cache(self.parts(name, variant, segment), model)

    def parts(self, name: str, variant: str = RAW, segment: int = 0) -> list[Artifact]:
        """What one segment's cache is loaded from: its prefix, if it has one, and itself."""
        document = self[name]
        parts = [document.prefix_artifact] if document.prefix_artifact else []
        return [self.open_artifact(part) for part in (*parts, self._variant(document, segment, variant))]

    def readable(self) -> list[Document]:
        """All documents but those whose manifests are broken."""
        documents = []
        for name in self:
            try:
                documents.append(self[name])
            except StoreError:
                continue
        return documents

    def known(self) -> dict[str, Variant]:
        """Identity → artifact, for all raw ones that readable manifests name and the store holds."""
        return self._known(self.readable())

    def _known(self, documents: Iterable[Document]) -> dict[str, Variant]:
        artifacts: dict[str, Variant] = {}
        for document in documents:
            raw = {s.identity: s.variants[RAW] for s in document.segments if RAW in s.variants}
            if document.prefix_artifact:
                raw[document.prefix["identity"]] = document.prefix_artifact
            artifacts |= {identity: variant for identity, variant in raw.items() if self.holds(variant)}
        return artifacts

    def _variant(self, document: Document, segment: int, variant: str) -> Variant:
        if not 0 <= segment < len(document.segments):
            raise StoreError(
                document.name, f"has no segment {segment}", f"it has {len(document.segments)}, counted from 0"
            )
        variants = document.segments[segment].variants
        if variant not in variants:
            remedy = _how_to_make(document.name, variant)
            raise StoreError(document.name, f"has no variant {variant!r}, only {', '.join(variants)}", remedy)
        if not self.holds(variants[variant]):
            raise StoreError(
                document.name,
                f"its artifact {self}/{artifact_file(variants[variant].artifact)} is missing",
                "run the same prefill or compress again",
            )
        return variants[variant]

    def _missing(self, name: str) -> DocumentMissing:
        names = list(self)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "kvtool ls shows what is there"
        if not names:
            hint = "the store is empty: run kvtool prefill first"
        return DocumentMissing(name, f"is not in the store {self}", hint)


class DocumentMissing(StoreError, KeyError):
    """A name, the ``subject``, that the store does not hold."""


def store_class(root: str | Path) -> type[Store]:
    """The class that opens stores at addresses like ``root``. Raises ``UsageError`` if there is none."""
    try:
        return Store._by_scheme[scheme(root)]
    except KeyError:
        raise UsageError(
            f"store {without_secrets(address(root))}",
            "expected http://HOST:PORT, s3://BUCKET/PREFIX, another of "
            f"{', '.join(sorted(filter(None, Store._by_scheme)))}, or a directory",
        ) from None


def _how_to_make(document: str, variant: str) -> str:
    if variant == RAW:
        return "prefill it again"
    if variant == AVERAGED:
        return "prefill with --neighbours"
    recipe = variant.removesuffix(f"-{AVERAGED}")
    source = f" --source {AVERAGED}" if recipe != variant else ""
    return f"run kvtool compress {document} --recipe {recipe}{source}"
