"""The door by which LMCache loads kvtool's serde: an L2 adapter of its type ``plugin``.

LMCache 0.5.6 imports ``module_path`` and calls ``class_name(adapter_params, l1_memory_desc=…)`` before it looks up the serde
that the same entry of ``--l2-adapter`` names. The serde wrapper hands an adapter buffers of the estimated size to load into.
``FSL2Adapter`` counts a file that does not fill its buffer as missing, so that chunks of different sizes never hit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface, L2TaskId
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2Adapter, FSL2AdapterConfig
from lmcache.v1.memory_management import MemoryObj

from kvtool.connectors.lmcache import serde
from kvtool.errors import UsageError

assert serde.NAME  # Registered by its import.


class Files(FSL2Adapter):
    """LMCache's own files, of any size up to the buffer's."""

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        for key, memory in zip(keys, objects, strict=True):
            try:
                nbytes = self._key_to_path(key).stat().st_size
            except OSError:
                continue  # It is missing, as loading it will find.
            if nbytes < memory.get_size():
                memory.set_used_size(nbytes)
        return super().submit_load_task(keys, objects)


class Adapter(L2AdapterInterface):
    """Any adapter of LMCache's: ``adapter_params`` are what ``--l2-adapter`` takes without kvtool, ``type`` included."""

    def __new__(cls, params: Mapping[str, Any], **given: Any) -> L2AdapterInterface:
        if "serde" in params:
            expected = "put it beside adapter_params, not into it"
            raise UsageError("adapter_params: serde", "would not be used", expected)
        if params.get("type") == "fs":
            return Files(FSL2AdapterConfig.from_dict(dict(params)))
        arguments = argparse.Namespace(l2_adapter=[json.dumps(dict(params))])
        (config,) = parse_args_to_l2_adapters_config(arguments).adapters
        return create_l2_adapter(config, given.get("l1_memory_desc"))
