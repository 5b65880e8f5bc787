"""A connection to a running LMCache server, through its SDK.

Of LMCache 0.5.6 it relies on ``lmcache.sdk.kvcache.connect(url, http_url, model_name, timeout)``, and on the context's
``store(kv, tokens, cache_salt)``, ``retrieve(tokens, cache_salt)``, ``close()`` and ``transfer_ctx``. ``store`` takes
``[2, L, T, H · D]`` and T token ids, keeps whole chunks, and returns False both for what failed and for what is there already.
``retrieve`` looks the tokens up as an engine does, and gives None or ``[2, L, T', H · D]`` of the first T' that were found.
Where the server's shared memory cannot be opened, the SDK falls back to sending pickles, which the server loads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from kvtool.connectors.lmcache.server_state import Address
from kvtool.errors import StoreError, first_line

SHARED_MEMORY = "EngineDrivenContextShm"
"""The SDK's class that writes to the server's shared memory. It stands in ``transfer_ctx`` under a private name."""

SECONDS = 60.0
"""For which an answer is waited for."""


def sdk(address: Address) -> Any:
    """The SDK's module for keys and values. Raises ``StoreError`` where LMCache is not installed."""
    os.environ.setdefault("LMCACHE_LOG_LEVEL", "WARNING")
    # It tells its makers how it is used, unless this says not to.
    os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
    try:
        from lmcache.sdk import kvcache
    except ImportError as error:
        remedy = (
            "pip install lmcache==0.5.6 into the environment that kvtool runs in (docs/how-to/lmcache.md)"
        )
        raise StoreError(
            address, f"needs LMCache's SDK, which cannot be imported ({error})", remedy
        ) from error
    return kvcache


class Session:
    """Stores and looks up caches of one model. All methods raise ``StoreError``, naming the address."""

    def __init__(self, address: Address, model: str) -> None:
        """Raises ``StoreError`` where LMCache is not installed, and where it would send pickles."""
        self.address, self.model = address, model
        kvcache = sdk(address)
        with self._errors():
            self._context: Any = kvcache.connect(
                address.requests_url, address.http_url, model, timeout=SECONDS
            )
        transport = type(getattr(self._context.transfer_ctx, "_context", None)).__name__
        if transport != SHARED_MEMORY:
            self.close()
            remedy = "push on the machine that the server runs on, with the same /dev/shm"
            raise StoreError(
                address, f"shares no memory with this process ({transport}, which sends pickles)", remedy
            )

    def held(self, token_ids: Sequence[int]) -> int:
        """How many of the first tokens LMCache's own look-up finds, in whole chunks."""
        with self._errors():
            found = self._context.retrieve(list(token_ids), self.address.salt)
        return 0 if found is None else int(found.shape[2])

    def store(self, kv: Tensor, token_ids: Sequence[int]) -> None:
        """Stores the whole chunks of ``kv`` [2, L, T, H · D] that are not there; ``held`` says what came of it."""
        with self._errors():
            self._context.store(kv, list(token_ids), self.address.salt)

    def close(self) -> None:
        self._context.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            # LMCacheSDKError is a RuntimeError, LMCacheTimeoutError an OSError.
            reason = f"cannot be used for {self.model} ({first_line(error)})"
            raise StoreError(self.address, reason, "its log says more") from error
