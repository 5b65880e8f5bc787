"""A connection to a running LMCache server, through its SDK.

Of LMCache 0.5.6 it relies on ``lmcache.sdk.kvcache.connect(url, http_url, model_name, timeout)``, and on the context's
``store(kv, tokens, cache_salt)``, ``close()``, ``chunk_size`` and ``transfer_ctx``. ``store`` takes ``[2, L, T, H · D]`` and T
token ids, keeps whole chunks, and returns False both for what failed and for what is there already.
A look-up is what its ``retrieve`` begins with: ``maybe_submit_lookup_request(id, tokens, cache_salt)``, then
``check_lookup_result(id)``, which gives None until it knows how many of the first tokens are there, and ``end_session(id)``.
The server keeps what was found from being evicted until it is retrieved, or until ``_req_client.free_lookup_locks``, with a key
of ``_create_key``, says that it will not be.
Where the server's shared memory cannot be opened, the SDK falls back to sending pickles, which the server loads.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from torch import Tensor

from kvtool.connectors.lmcache.server_state import Address
from kvtool.errors import StoreError, first_line

SHARED_MEMORY = "EngineDrivenContextShm"
"""The SDK's class that writes to the server's shared memory. It stands in ``transfer_ctx`` under a private name."""

SECONDS = 60.0
"""For which an answer is waited for."""

POLL_SECONDS = 0.01
"""From one question for a look-up's result to the next."""

_log = logging.getLogger(__name__)


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
        """How many of the first tokens LMCache's own look-up finds, in whole chunks. No keys and values are fetched."""
        context, request = self._context, f"kvtool-{uuid4().hex}"
        whole = list(token_ids[: len(token_ids) // context.chunk_size * context.chunk_size])
        if not whole:
            return 0
        with self._errors():
            context.maybe_submit_lookup_request(request, whole, self.address.salt)
            try:
                found = self._found(request)
                if found > 0:
                    key = context._create_key(whole[:found], 0, found, request, self.address.salt)
                    context._req_client.free_lookup_locks(key, 1).result(timeout=SECONDS)
            finally:
                context.end_session(request)
        return found

    def store(self, kv: Tensor, token_ids: Sequence[int]) -> None:
        """Stores the whole chunks of ``kv`` [2, L, T, H · D] that are not there; ``held`` says what came of it."""
        with self._errors():
            self._context.store(kv, list(token_ids), self.address.salt)

    def close(self) -> None:
        """Raises nothing: what was stored is stored."""
        try:
            self._context.close()
        except Exception as error:
            _log.warning("%s: its connection was not closed (%s)", self.address, first_line(error))

    def _found(self, request: str) -> int:
        until = time.monotonic() + SECONDS
        while (found := self._context.check_lookup_result(request)) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"a look-up took more than {SECONDS:g} seconds")
            time.sleep(POLL_SECONDS)
        return int(found)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Those of the SDK, and of what it is made with: ZeroMQ, msgspec, gRPC.
            reason = f"cannot be used for {self.model} ({type(error).__name__}: {first_line(error)})"
            raise StoreError(self.address, reason, "its log says more") from error
