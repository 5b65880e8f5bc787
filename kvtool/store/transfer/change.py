"""Changes of a manifest that others may change at the same time: read, change, replace if it is still what was read."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from kvtool.errors import StoreError
from kvtool.store.backends.writable import Conflict
from kvtool.store.manifest import Document

ATTEMPTS = 20
"""How often a manifest is read again that others keep changing."""

PAUSE = 0.2
"""Seconds at most before it is read again, by chance, so that two do not stay in step."""


def change_manifest(
    where: str,
    read: Callable[[], tuple[Document | None, str | None]],
    update: Callable[[Document | None], Document],
    swap: Callable[[Document, str | None], None],
) -> None:
    """Replaces a manifest by what ``update`` makes of it.

    ``read`` gives the document and its version, ``swap`` replaces that version or raises ``Conflict``.

    Raises ``StoreError`` if others were always faster.
    """
    for _ in range(ATTEMPTS):
        before, version = read()
        after = update(before)
        if after == before:
            return
        try:
            swap(after, version)
            return
        except Conflict:
            time.sleep(random.uniform(0, PAUSE))
    raise StoreError(where, f"was changed by others {ATTEMPTS} times meanwhile", "push again")
