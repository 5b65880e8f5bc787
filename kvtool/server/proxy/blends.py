"""The stored blends of a store, by the documents that they are made of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.blending.layout import Cached
from kvtool.blending.record import BlendRecord, record_of
from kvtool.errors import KvtoolError
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import Document
from kvtool.store.prefix_index import Followed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class FoundBlend:
    """A blend by ``name``; ``identity`` is that of its one segment. They are ordered by the share that was recomputed."""

    recompute: float
    name: str
    identity: str


class Blends(Followed):
    """The blends of a store that have a record, by name."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.headers = headers_of(store)
        self._records: dict[str, BlendRecord] = {}

    def add(self, document: Document) -> None:
        """Takes a document in if it is a blend with a record."""
        if record := record_of(self.headers, document.name):
            self._records[document.name] = record

    def forget(self, name: str) -> None:
        """Leaves a document out."""
        self._records.pop(name, None)

    def of(self, documents: Sequence[Cached], token_ids: Sequence[int]) -> FoundBlend | None:
        """The blend of exactly ``documents``, as they are now, that ``token_ids`` begin with.

        Of several, the one of which most was recomputed; where there is none, the first of ``documents`` if that is a blend.
        """
        self.follow()
        names = [name for name, record in list(self._records.items()) if _is_of(record, documents)]
        found = (self._usable(name, token_ids) for name in names)
        return max(filter(None, found), default=None) or self._usable(documents[0].name, token_ids)

    def _usable(self, name: str, token_ids: Sequence[int]) -> FoundBlend | None:
        """The blend, if it is of the documents that the store has now, and its tokens begin the prompt."""
        try:
            document, record = self.headers[name], record_of(self.headers, name)
            if not document.is_blend or (record and record.outdated(self.headers)):
                return None
            variant = next(iter(document.variants))
            ids = [token for part in self.headers.parts(name, variant) for token in part.token_ids.tolist()]
        except (KvtoolError, StopIteration) as error:
            _log.warning("blend %s was not used: %s", name, error)
            return None
        if len(document.segments) > 1 or list(token_ids[: len(ids)]) != ids:
            return None
        return FoundBlend(record.recompute if record else 0.0, name, document.segments[0].identity)


def _is_of(record: BlendRecord, documents: Sequence[Cached]) -> bool:
    """Whether ``record`` has exactly ``documents``, whole, in this order; of the variant that is asked for by name."""
    if any(part.document is None or part.segment is not None for part in record.parts):
        return False
    if len(record.parts) != len(documents):
        return False
    return all(
        part.document == one.name and one.variant in (None, part.variant or record.variant)
        for part, one in zip(record.parts, documents, strict=True)
    )
