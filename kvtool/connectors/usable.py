"""Which variant of a document's segment an engine's model can load."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from kvtool.connectors.engine_model import EngineModel
from kvtool.errors import KvtoolError
from kvtool.store.base import Store
from kvtool.store.headers import headers_of
from kvtool.store.manifest import RAW, Document, Segment, Variant, exact_name

_log = logging.getLogger(__name__)


@dataclass
class Usable:
    """Chooses for a ``kvtool.store.prefix_index``: names the variant of a segment that ``model`` can load, or None.

    ``variant`` is the one that is loaded; None takes raw where it is, and else the largest. What other models made, and what
    lost tokens, is left out, with one line in the log for each model.
    """

    store: Store
    model: EngineModel
    variant: str | None = None
    _differences: dict[str, str | None] = field(default_factory=dict, init=False)
    _warned: set[str] = field(default_factory=set, init=False)

    def __call__(self, document: Document, segment: Segment) -> str | None:
        usable = {
            name: variant
            for name, variant in segment.variants.items()
            if name in document.variants
            and exact_name(name) == name
            and not variant.is_pruned
            and self.variant in (None, name)
        }
        if not usable:
            return None
        name = RAW if RAW in usable else max(usable, key=lambda name: usable[name].nbytes)
        return name if self._is_of_model(document, usable[name]) else None

    def _is_of_model(self, document: Document, variant: Variant) -> bool:
        fingerprint, name = document.model["fingerprint"], document.model["name"]
        if fingerprint not in self._differences:
            made_by = headers_of(self.store).open_artifact(variant).meta["model"]
            if made_by["fingerprint"] != fingerprint:
                # Only this document's manifest is wrong about it; the index says so, and leaves it out.
                return True
            try:
                difference = self.model.difference(made_by, name)
            except KvtoolError as error:
                # The engine's own model cannot be read now: that is no document's fault, and is tried again.
                self._warn_once(str(error), document, str(error))
                raise
            self._differences[fingerprint] = difference
            if difference is not None:
                self._warn_once(fingerprint, document, difference)
        return self._differences[fingerprint] is None

    def _warn_once(self, key: str, document: Document, reason: str) -> None:
        if key in self._warned:
            return
        self._warned.add(key)
        made_by = document.model["name"]
        _log.warning(
            "documents of %s that %s made, such as %s, are not used: %s",
            self.store,
            made_by,
            document.name,
            reason,
        )
