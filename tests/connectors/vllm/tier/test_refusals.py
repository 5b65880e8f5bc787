"""An engine into whose CPU tier the tier cannot write with certainty gets nothing, and one line that names the field."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import KVCacheGroupSpec, KVQuantMode, MLAAttentionSpec
from vllm.v1.kv_offload.base import LookupResult, ReqContext

import kvtool
from kvtool.errors import UsageError
from kvtool.store.local import LocalStore
from tests.connectors.vllm.tier.world import engine_config, groups_of, request, world

LOG = "kvtool.connectors"


def of_config(section: str, field: str, value: object) -> Callable[[Any], None]:
    return lambda config: setattr(getattr(config, section), field, value)


CONFIGS = {
    "kv_cache_layout": of_config("cache_config", "kv_cache_layout", "LBHNC"),
    "pipeline_parallel_size": of_config("parallel_config", "pipeline_parallel_size", 2),
    "world_size": of_config("parallel_config", "world_size", 2),
    "load_format dummy": of_config("load_config", "load_format", "dummy"),
    "hf_overrides": of_config("model_config", "hf_overrides", {"rope_theta": 1.0}),
}


def spec_with(**fields: Any) -> Callable[[list[KVCacheGroupSpec]], list[KVCacheGroupSpec]]:
    def changed(groups: list[KVCacheGroupSpec]) -> list[KVCacheGroupSpec]:
        (group,) = groups
        return [KVCacheGroupSpec(group.layer_names, replace(group.kv_cache_spec, **fields))]

    return changed


def with_layer(name: str) -> Callable[[list[KVCacheGroupSpec]], list[KVCacheGroupSpec]]:
    return lambda groups: [KVCacheGroupSpec([*groups[0].layer_names, name], groups[0].kv_cache_spec)]


GROUPS = {
    "dtype": spec_with(dtype=torch.bfloat16),
    "num_head_slots": spec_with(num_head_slots=2, state_content_bytes=128),
    "kv_quant_mode": spec_with(kv_quant_mode=KVQuantMode.FP8_PER_TENSOR),
    "tokens_per_state": spec_with(tokens_per_state=2),
    "page_size_padded": spec_with(page_size_padded=8192),
    "is one of several caches of layer 1": with_layer("model.layers.1.self_attn.indexer"),
    "is not the cache of one numbered layer": with_layer("model.norm"),
    "is_eagle_group": lambda groups: [
        KVCacheGroupSpec(groups[0].layer_names, groups[0].kv_cache_spec, is_eagle_group=True)
    ],
}


@pytest.mark.parametrize("field", [*CONFIGS, *GROUPS])
def test_nothing_is_found_for_another_engine(
    field: str, tiny: kvtool.Model, store_of: Callable[[str], LocalStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of("llama")
    config = engine_config(tiny.directory, {"store": str(store.root)})
    groups = groups_of(config)
    if field in CONFIGS:
        CONFIGS[field](config)
    else:
        groups = GROUPS[field](groups)
    with caplog.at_level(logging.ERROR, LOG), world(config, groups) as engine:
        assert (
            engine.tier.lookup(engine.keys(request(range(64), config))[0], ReqContext("r"))
            is LookupResult.MISS
        )
        assert engine.tier._reader._promoter is None
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith(LOG)]
    assert line.startswith(f"no block is loaded from {store.root}: ")
    assert field in line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda spec: replace(spec, num_kv_heads=1),
            "a cache has 2 heads, the engine 2, 1 on each of 1 workers",
        ),
        (lambda spec: replace(spec, head_size=4, head_size_v=4), "the layer's head sizes are 4 and 4"),
        (
            lambda spec: MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float32),
            "a cache has 2 heads, the engine 1",
        ),
    ],
)
def test_caches_of_other_sizes_are_not_loaded(
    change: Any,
    reason: str,
    tiny: kvtool.Model,
    store_of: Callable[[str], LocalStore],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = store_of("llama")
    config = engine_config(tiny.directory, {"store": str(store.root)})
    (group,) = groups_of(config)
    groups = [KVCacheGroupSpec(group.layer_names, change(group.kv_cache_spec))]
    ids = [int(token) for part in store.parts("a.md") for token in part.token_ids]
    with caplog.at_level(logging.WARNING, LOG), world(config, groups) as engine:
        keys = engine.keys(request(ids, config))
        engine.wait_for(keys[-1])
        assert LookupResult.HIT not in engine.promote(keys[2:])
    assert reason in caplog.text


@pytest.mark.parametrize(
    "settings",
    [{}, {"store": "x", "min_tokens": 3}, {"store": "x", "threads": 0}, {"store": "x", "colour": 1}],
)
def test_settings_are_checked_when_the_engine_starts(settings: dict[str, Any], tiny: kvtool.Model) -> None:
    config = engine_config(tiny.directory, settings)
    with pytest.raises(UsageError), world(config):
        pass
