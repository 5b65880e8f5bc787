"""A document's entry, for what was just prefilled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.artifact.identity import prefix_identity
from kvtool.store.manifest import Document, Segment, Variant

if TYPE_CHECKING:
    from kvtool.model.chat_template import Prefix
    from kvtool.model.model import Model


def new_document(
    name: str,
    text_digest: str,
    model: Model,
    prefix: Prefix,
    prefix_artifact: Variant | None,
    segments: tuple[Segment, ...],
) -> Document:
    """The entry of a document that ``model`` prefilled after ``prefix``."""
    return Document(
        name=name,
        text_digest=text_digest,
        model={"name": model.name, "fingerprint": model.fingerprint},
        prefix={
            "identity": prefix_identity(model, prefix),
            "digest": prefix.digest,
            "tokens": len(prefix.token_ids),
            "origin": prefix.origin,
        },
        prefix_artifact=prefix_artifact,
        segments=segments,
    )
