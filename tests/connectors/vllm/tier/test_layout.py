"""What the tier loads lies where vLLM's workers copy it from, for each kind of model, and any division among them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import LookupResult

import kvtool
from kvtool.connectors.vllm.layers import rank_heads
from kvtool.store.local import LocalStore
from tests.connectors.vllm.tier.world import BLOCK, cells, engine_config, request, token_ids, world

CASES = {
    "llama": ("llama", {}),
    "chunks of three blocks": ("llama", {"blocks_per_chunk": 3}),
    "two workers": ("llama", {"tp": 2, "blocks_per_chunk": 2}),
    "more workers than heads": ("llama", {"tp": 4}),
    "canonical pages of two workers": ("llama", {"tp": 2, "canonical_layout": True, "blocks_per_chunk": 2}),
    "canonical page of one worker": ("llama", {"canonical_layout": True}),
    "windows": ("gemma3", {"blocks_per_chunk": 2}),
    "windows, two workers": ("gemma3", {"tp": 2}),
    "latent attention": ("deepseek-v3", {}),
    "latent attention, two workers": ("deepseek-v3", {"tp": 2, "blocks_per_chunk": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_workers_copy_the_cache_of_the_document(
    case: str, model_of: Callable[[str], kvtool.Model], store_of: Callable[[str], LocalStore]
) -> None:
    family, options = CASES[case]
    store = store_of(family)
    config = engine_config(model_of(family).directory, {"store": str(store.root)}, **options)
    parts = store.parts("a.md")
    ids, tp = token_ids(parts), options.get("tp", 1)
    with world(config) as engine:
        groups = engine.kv_cache.kv_cache_groups
        asked = request(ids, config)
        keys = [engine.keys(asked, group) for group in range(len(groups))]
        assert len(keys[0]) == len(ids) // (BLOCK * options.get("blocks_per_chunk", 1))
        engine.wait_for(keys[0][-1])
        results = engine.promote([key for group in keys for key in group])
        assert set(results) == {LookupResult.HIT}
        for rank in range(tp):
            blocks = engine.blocks(keys, rank)
            assert len(blocks) == len(parts[0].contents.geometry.layers)
            for index, layer in enumerate(cells(parts, in_pairs=config.model_config.use_mla)):
                heads = rank_heads(layer.shape[0], rank, tp)
                found = blocks[f"model.layers.{index}.self_attn.attn"]
                expected = layer[heads.start : heads.stop, : len(found) * BLOCK]
                shape = len(heads), -1, BLOCK, layer.shape[2]
                assert found.equal(expected.reshape(shape).transpose(0, 1)), (index, rank)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_scheduler_takes_all_whole_blocks_from_the_tier(
    family: str, model_of: Callable[[str], kvtool.Model], store_of: Callable[[str], LocalStore]
) -> None:
    store = store_of(family)
    config = engine_config(model_of(family).directory, {"store": str(store.root)})
    ids = token_ids(store.parts("a.md"))
    with world(config) as engine:
        asked = request([*ids, 1, 2, 3], config)
        engine.wait_for(engine.keys(asked, 0)[len(ids) // BLOCK - 1])
        engine.connector.on_new_request(asked)
        assert engine.matched(asked) == (len(ids) // BLOCK * BLOCK, True)
        other = request([9, *ids], config, request_id="other")
        engine.connector.on_new_request(other)
        assert engine.matched(other) == (0, False)
