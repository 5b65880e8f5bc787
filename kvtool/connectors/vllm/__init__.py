"""vLLM: a connector that loads a store's caches into its blocks.

``vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvtoolConnector", "kv_connector_module_path":
"kvtool.connectors.vllm", …}'``; ``kvtool connector vllm`` prints the whole line. Written against vLLM 0.32.
"""

from kvtool.connectors.vllm.connector import KvtoolConnector

__all__ = ["KvtoolConnector"]
