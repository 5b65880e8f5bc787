"""The contract of stores: documents by name, their artifacts, and caches loaded from these."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kvtool.artifact.load import load_cache
from kvtool.artifact.read import Artifact
from kvtool.errors import StoreError
from kvtool.model.chat_template import Prefix, stored_prefix
from kvtool.store.backends.open import unknown_scheme
from kvtool.store.calibrations import Calibrations
from kvtool.store.catalog.catalog import Catalog
from kvtool.store.layout import artifact_file, scheme
from kvtool.store.manifest import AVERAGED, RAW, Document, Variant

if TYPE_CHECKING:
    from kvtool.codecs import KV
    from kvtool.engines.cache import DocumentCache
    from kvtool.model.model import Model


class Store(Catalog):
    """Documents by name, to be read. ``Store(address)`` opens the store there.

    A subclass names the schemes of the addresses that it opens: ``class S3Store(Store, schemes=["s3"])``, and "" for
    directories. ``kvtool.store.open`` lists kvtool's own.

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

    @property
    def calibrations(self) -> Calibrations:
        """Those that are on this machine, by digest."""
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

    def size(self, name: str, variant: str = RAW) -> int:
        """Bytes of the variant's files: every segment's artifact, whole."""
        document = self[name]
        return sum(self.variant_of(document, i, variant).nbytes for i in range(len(document.segments)))

    def open(self, name: str, variant: str = RAW, segment: int = 0) -> Artifact:
        """The artifact of one segment, its header checked."""
        return self.open_artifact(self.variant_of(self[name], segment, variant))

    def read(self, name: str, variant: str = RAW, segment: int = 0) -> KV:
        """One segment's KV, every byte checked, without its prefix; needs no model."""
        return self.open(name, variant, segment).kv()

    def load(self, name: str, model: Model, variant: str = RAW, segment: int = 0) -> DocumentCache:
        """A transformers cache of one segment after its prefix, ready for ``model``.

        Raises ``MismatchError``, naming the field, if the artifact belongs to another model.
        """
        with self.using(name):
            return load_cache(self.parts(name, variant, segment), model)

    def parts(self, name: str, variant: str = RAW, segment: int = 0) -> list[Artifact]:
        """The artifacts that one segment's cache is loaded from: its prefix, if it has one, and itself."""
        document = self[name]
        parts = [document.prefix_artifact] if document.prefix_artifact else []
        return [self.open_artifact(part) for part in (*parts, self.variant_of(document, segment, variant))]

    def prefix(self, name: str, model: Model) -> Prefix:
        """The prefix that ``name`` was prefilled under, as it is stored.

        Raises ``StoreError`` if its tokens are not those that the document says.
        """
        document = self[name]
        variant = document.prefix_artifact
        token_ids = self.open_artifact(variant).token_ids.tolist() if variant else []
        prefix = stored_prefix(model, document.prefix["origin"], token_ids)
        if prefix.digest != document.prefix["digest"]:
            raise StoreError(
                name, "its prefix's tokens are not those it was prefilled under", "prefill it again"
            )
        return prefix

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

    def variant_of(self, document: Document, segment: int, variant: str) -> Variant:
        """A segment's artifact, as ``document`` names it. Raises ``StoreError`` if there is none."""
        if not 0 <= segment < len(document.segments):
            count = f"it has {len(document.segments)}, counted from 0"
            raise StoreError(document.name, f"has no segment {segment}", count)
        variants = document.segments[segment].variants
        if variant not in variants:
            remedy = _how_to_make(document.name, variant)
            reason = f"has no variant {variant!r}, only {', '.join(variants)}"
            raise VariantMissing(document.name, reason, remedy)
        if not self.holds(variants[variant]):
            file = f"{self}/{artifact_file(variants[variant].artifact)}"
            reason = f"its artifact {file} is missing"
            raise StoreError(document.name, reason, "run the same prefill or compress again")
        return variants[variant]


class VariantMissing(StoreError):
    """A variant that the document has not, the ``subject``."""


def store_class(root: str | Path) -> type[Store]:
    """The class that opens stores at addresses like ``root``. Raises ``UsageError`` if there is none."""
    if scheme(root) not in Store._by_scheme:
        raise unknown_scheme(root, Store._by_scheme)
    return Store._by_scheme[scheme(root)]


def _how_to_make(document: str, variant: str) -> str:
    if variant == RAW:
        return "prefill it again"
    if variant == AVERAGED:
        return "prefill with --neighbours"
    recipe = variant.removesuffix(f"-{AVERAGED}")
    source = f" --source {AVERAGED}" if recipe != variant else ""
    return f"run kvtool compress {document} --recipe {recipe}{source}"
