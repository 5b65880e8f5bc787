"""The engine that a tier serves.

vLLM 0.32 builds a tier in the scheduler's process, within the constructors of ``OffloadingConnector(vllm_config, role,
kv_cache_config)`` and ``OffloadingConnectorScheduler(spec, vllm_config, kv_cache_config)``, and hands it an ``OffloadingSpec``.
That says nothing of the model's revision, its own dtype, how it is quantized or overridden, and what its layers are, without
which a cache could be another model's. So the two configurations are taken from those who call.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from kvtool.errors import UsageError

_NAMES = ("vllm_config", "kv_cache_config")


@dataclass(frozen=True)
class Engine:
    """``spec`` is the tier's ``OffloadingSpec``, ``config`` a ``VllmConfig``, ``kv_cache`` the scheduler's ``KVCacheConfig``."""

    spec: Any
    config: Any
    kv_cache: Any

    @classmethod
    def calling(cls, spec: Any) -> Engine:
        """The one that is building a tier of ``spec``. Raises ``UsageError`` if no caller has its configurations."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            config, kv_cache = (frame.f_locals.get(name) for name in _NAMES)
            transfer = getattr(config, "kv_transfer_config", None)
            if kv_cache is not None and getattr(transfer, "engine_id", None) == spec.config.engine_id:
                return cls(spec, config, kv_cache)
            frame = frame.f_back
        reason = "is built by something that does not know the engine's configuration"
        raise UsageError("KvtoolTier", reason, "take it as a secondary tier of vLLM's OffloadingConnector")
