"""Host pools with the attributes of SGLang's, for suites without it, and what a page of them should hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import kvtool
from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.sglang.pages import Pages, Shard
from kvtool.connectors.sglang.tier import Engine

PAGE = 8
N_PAGES = 40


class AttentionPool:
    """Keys and values, as ``MHATokenToKVPoolHost`` has them."""

    dcp_size, storage_format_tag = 1, None

    def __init__(
        self,
        layout: str,
        *,
        layers: range,
        heads: int,
        channels: int,
        dtype: torch.dtype = torch.float32,
        page: int = PAGE,
    ) -> None:
        self.layout, self.page_size, self.dtype = layout, page, dtype
        self.start_layer, self.layer_num, self.target_layer_num = layers.start, len(layers), len(layers)
        self.head_num, self.head_dim, self.v_head_dim = heads, channels, channels
        n, size = N_PAGES, N_PAGES * page
        shapes = {
            "layer_first": (2, len(layers), size, heads, channels),
            "page_first": (2, size, len(layers), heads, channels),
            "page_first_direct": (2, n, len(layers), page, heads, channels),
            "page_head": (2, n, heads, page, len(layers), channels),
        }
        self.kv_buffer = torch.full(shapes.get(layout, (1,)), torch.nan, dtype=dtype)

    def get_data_page(self, index: int, flat: bool = True) -> Tensor:
        page = {
            "layer_first": self.kv_buffer[:, :, index : index + self.page_size],
            "page_first": self.kv_buffer[:, index : index + self.page_size],
        }.get(self.layout, self.kv_buffer[:, index // self.page_size : index // self.page_size + 1])
        return page.flatten() if flat else page


def chain(token_ids: Sequence[int]) -> list[str]:
    """SGLang's page hashes: SHA-256 over the digest before and the token ids, 32 bits each."""
    digests, before = [], b""
    for start in range(0, len(token_ids) // PAGE * PAGE, PAGE):
        data = b"".join(token.to_bytes(4, "little") for token in token_ids[start : start + PAGE])
        before = hashlib.sha256(before + data).digest()
        digests.append(before.hex())
    return digests


def engine_of(model: kvtool.Model, **changes: Any) -> Engine:
    loaded = EngineModel.at(model.directory, dtype=changes.pop("dtype", "float32"), **changes)
    return Engine(loaded, chain)


def pages_of(model: kvtool.Model, layout: str = "layer_first", **changes: Any) -> Pages:
    config = model.text_config
    sizes = {
        "layers": range(config.num_hidden_layers),
        "heads": config.num_key_value_heads,
        "channels": config.hidden_size // config.num_attention_heads,
    }
    shard = changes.pop("shard", Shard())
    return Pages.of(AttentionPool(layout, **{**sizes, **changes}), shard)


def expected_rows(store: Any, name: str, variant: str = "raw") -> Tensor:
    """Keys and values [2, L, T, H, D] of a document after its prefix, read by the store itself."""
    parts = [part.kv() for part in store.parts(name, variant)]
    sides = [
        torch.stack(
            [torch.cat([getattr(kv.layers[n], side) for kv in parts], 1) for n in range(len(parts[0].layers))]
        )
        for side in ("keys", "values")
    ]
    return torch.stack(sides).transpose(2, 3)


def token_ids(store: Any, name: str) -> list[int]:
    return torch.cat([part.token_ids for part in store.parts(name)]).tolist()
