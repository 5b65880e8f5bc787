"""The first use of a decoder, which compiles it, before any request waits for it."""

from __future__ import annotations

import logging
from itertools import islice

from kvtool.connectors.reading import steps
from kvtool.errors import KvtoolError
from kvtool.store.base import Store

DOCUMENTS = 50
"""Among which one of each variant is looked for."""

_log = logging.getLogger(__name__)


def warm_up(store: Store, variant: str | None) -> list[str]:
    """Decodes the last layers of each variant, or of the one that is named; returns which.

    What cannot be read is left to those who load it.
    """
    warm: list[str] = []
    for name in islice(store, DOCUMENTS):
        try:
            document = store[name]
            for kind in document.variants:
                if kind not in warm and variant in (None, kind):
                    parts = store.parts(name, kind)
                    n_tokens = sum(part.contents.geometry.n_tokens for part in parts)
                    steps(parts, range(n_tokens))[-1].spans()
                    warm.append(kind)
        except KvtoolError as error:
            _log.debug("%s is not decoded ahead of time: %s", name, error)
    return warm
