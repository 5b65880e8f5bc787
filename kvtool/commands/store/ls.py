"""kvtool ls: list what a store holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvtool.commands import output
from kvtool.commands.options import AsJson, StoreFlags, with_settings
from kvtool.counts import counted
from kvtool.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.config import Settings
    from kvtool.store.catalog.catalog import Catalog
    from kvtool.store.manifest import Document


@dataclass(frozen=True)
class Listing:
    """The documents of a store. ``problems`` are those that cannot be read."""

    catalog: Catalog
    documents: list[Document] = field(default_factory=list)
    problems: list[KvtoolError] = field(default_factory=list)

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "name": document.name,
                "segments": len(document.segments),
                "tokens": document.n_tokens,
                "model": document.model["name"],
                "blend": document.is_blend,
                "variants": {variant: document.nbytes(variant) for variant in document.variants},
            }
            for document in self.documents
        ]


@with_settings(StoreFlags)
def run(*, settings: Settings, as_json: AsJson = False) -> int:
    """List the documents of a store, with tokens, variants and bytes."""
    from kvtool.store.catalog.open import open_catalog

    listing = Listing(open_catalog(settings.store))
    for name in listing.catalog:
        try:
            listing.documents.append(listing.catalog[name])
        except KvtoolError as error:
            listing.problems.append(error)
    output.emit(listing.to_json(), render(listing), as_json)
    return output.exit_code(listing.problems, len(listing.documents))


def render(listing: Listing) -> output.Lines:
    if not listing.documents:
        empty = f"{listing.catalog}: is empty; run kvtool prefill first"
        return output.Lines(notes=[] if listing.problems else [empty])
    rows = []
    for document in listing.documents:
        n_segments = len(document.segments)
        tokens = f"{counted(document.n_tokens, 'token'):>14}" + (
            f" in {n_segments} segments" if n_segments > 1 else ", blended" if document.is_blend else ""
        )
        sizes = [f"{variant} {output.size(document.nbytes(variant))}" for variant in document.variants]
        rows.append((document.name, tokens, "  ".join(sizes)))
    return output.Lines(output.table(rows))
