"""vLLM's tiered offloading: a tier after the CPU's that reads a store by block hash.

``{"type": "KvtoolTier", "module_path": "kvtool.connectors.vllm.tier", "store": …}`` among the ``secondary_tiers`` of an
``OffloadingConnector``. Written against vLLM 0.32, whose tiers need CUDA, ROCm or XPU.
"""

from kvtool.connectors.vllm.tier.manager import KvtoolTier

__all__ = ["KvtoolTier"]
