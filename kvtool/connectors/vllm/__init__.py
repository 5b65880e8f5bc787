"""vLLM: a connector that loads a store's caches into its blocks.

``vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvtoolConnector", "kv_connector_module_path":
"kvtool.connectors.vllm", …}'``; ``kvtool connector vllm`` prints the whole line. Written against vLLM 0.32.
"""

from typing import Any

__all__ = ["KvtoolConnector"]


def __getattr__(name: str) -> Any:
    """The connector, once vLLM asks for it: what prints the line needs no vLLM."""
    if name == "KvtoolConnector":
        from kvtool.connectors.vllm.connector import KvtoolConnector

        return KvtoolConnector
    raise AttributeError(name)
