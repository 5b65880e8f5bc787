"""What the tier finds and loads: by vLLM's hashes, of the engine's own model, and never from a broken store."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from safetensors.torch import load_file, save_file
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_offload.base import LookupResult, ReqContext

import kvtool
from kvtool.connectors.reading import Step
from kvtool.store.local import LocalStore
from tests.connectors.vllm.tier.world import adapter, cells, engine_config, request, token_ids, world

MISS, HIT = LookupResult.MISS, LookupResult.HIT
LOG = "kvtool.connectors"


@pytest.fixture
def store(store_of: Callable[[str], LocalStore], tmp_path: Path) -> LocalStore:
    """A copy, to break."""
    return LocalStore(Path(shutil.copytree(store_of("llama").root, tmp_path / "copied")))


@pytest.fixture
def config_of(tiny: kvtool.Model, store: LocalStore) -> Callable[..., Any]:
    return lambda **tier: engine_config(tiny.directory, {"store": str(store.root), **tier})


def first_and_last(engine: Any, store: LocalStore, name: str = "a.md") -> list[Any]:
    return engine.keys(request(token_ids(store.parts(name)), engine.config))


def flip(store: LocalStore, name: str) -> None:
    """Changes one byte of a document's last layer."""
    (segment,) = store[name].segments
    path = store.locate_artifact(segment.variants["raw"].artifact)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["sha256", "sha256_cbor", "xxhash_cbor"])
def test_hashes_are_those_of_requests(name: str, tiny: kvtool.Model, store: LocalStore) -> None:
    if name.startswith("xxhash"):
        pytest.importorskip("xxhash")
    config = engine_config(tiny.directory, {"store": str(store.root)}, hash_name=name)
    with world(config) as engine:
        keys = first_and_last(engine, store)
        engine.wait_for(keys[-1])
        assert engine.promote(keys) == [HIT] * len(keys)


def test_another_seed_of_hashes_is_followed(config_of: Any, store: LocalStore, monkeypatch: Any) -> None:
    with world(config_of()) as engine:
        before = first_and_last(engine, store)
        engine.wait_for(before[-1])
        monkeypatch.setenv("PYTHONHASHSEED", "7")
        kv_cache_utils.init_none_hash(engine.tier._reader._promoter.blocks.hashing.function)
        after = first_and_last(engine, store)
        assert set(after).isdisjoint(before)
        engine.wait_for(after[-1])
        assert engine.tier.lookup(before[-1], ReqContext("r")) is MISS
    monkeypatch.delenv("PYTHONHASHSEED")


def test_a_prompt_that_goes_another_way_has_the_chunks_before(config_of: Any, store: LocalStore) -> None:
    ids = token_ids(store.parts("a.md"))
    ids[40] ^= 1
    with world(config_of()) as engine:
        engine.wait_for(first_and_last(engine, store)[-1])
        results = engine.promote(engine.keys(request(ids, engine.config)))
        assert results[:2] == [HIT, HIT]
        assert set(results[2:]) == {MISS}


@pytest.mark.parametrize("extra", ["lora_request", "cache_salt"])
def test_blocks_with_extra_keys_are_not_found(
    extra: str, config_of: Any, store: LocalStore, tmp_path: Path
) -> None:
    value = {"lora_request": adapter(tmp_path), "cache_salt": "salt"}[extra]
    with world(config_of()) as engine:
        engine.wait_for(first_and_last(engine, store)[-1])
        asked = request(token_ids(store.parts("a.md")), engine.config, **{extra: value})
        assert set(engine.promote(engine.keys(asked))) == {MISS}


def test_a_variant_is_decoded(config_of: Any, store: LocalStore) -> None:
    kvtool.compress(store, recipe="kivi")
    with world(config_of(variant="kivi")) as engine:
        keys = first_and_last(engine, store)
        engine.wait_for(keys[-1])
        assert set(engine.promote(keys)) == {HIT}
        blocks = engine.blocks([keys])
        expected = cells(store.parts("a.md", "kivi"))[1][:, : 16 * len(keys)]
        raw = cells(store.parts("a.md"))[1][:, : 16 * len(keys)]
        found = blocks["model.layers.1.self_attn.attn"].transpose(0, 1).flatten(1, 2)
        assert found.equal(expected)
        assert not found.equal(raw)


def test_a_new_document_is_found(
    config_of: Any, store: LocalStore, tiny: kvtool.Model, tmp_path: Path
) -> None:
    (tmp_path / "new.md").write_text("Seven ships left the harbour of the town. " * 3)
    with world(config_of()) as engine:
        engine.wait_for(first_and_last(engine, store)[-1])
        kvtool.prefill([tmp_path / "new.md"], model=tiny, store=store)
        (name,) = [name for name in store if name.endswith("new.md")]
        keys = first_and_last(engine, store, name)
        assert len(keys) > 2
        engine.wait_for(keys[-1])
        assert set(engine.promote(keys)) == {HIT}


def test_nothing_is_stored(config_of: Any, store: LocalStore) -> None:
    with world(config_of()) as engine:
        context = ReqContext("r")
        engine.manager.on_new_request(context)
        keys = engine.keys(request(range(100, 164), engine.config))
        assert engine.manager.prepare_store(keys, context).keys_to_store == keys
        engine.manager.complete_store(keys, context)
        results = list(engine.tier.get_finished_jobs())
        assert [(result.success, result.transfer_bytes) for result in results] == [(True, 0)]
        assert {engine.tier.lookup(key, context) for key in keys} == {MISS}


# What bad input gets


def test_another_models_store_is_refused_by_field(
    tiny: kvtool.Model, store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Path(shutil.copytree(tiny.directory, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = engine_config(other, {"store": str(store.root)})
    with caplog.at_level(logging.WARNING, LOG), world(config) as engine:
        engine.tier._reader._promoter.blocks.follow(20)
        keys = first_and_last(engine, store)
        assert set(engine.promote(keys)) == {MISS}
    (line,) = [r.getMessage() for r in caplog.records if "not used" in r.getMessage()]
    assert "weights is" in line


def test_a_flipped_byte_is_a_miss(
    config_of: Any, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    flip(store, "a.md")
    with caplog.at_level(logging.WARNING, LOG), world(config_of()) as engine:
        keys = first_and_last(engine, store)
        engine.wait_for(keys[-1])
        results = engine.promote(keys)
        assert results[-1] is MISS
        # What both documents begin with comes from the other.
        other = first_and_last(engine, store, "b.md")
        assert set(engine.promote(other)) == {HIT}
        shared = [key for key in keys if key in other]
        assert shared
        assert set(engine.promote(shared)) == {HIT}
    (line,) = [r.getMessage() for r in caplog.records if "is prefilled" in r.getMessage()]
    assert line.startswith("a.md is prefilled")


def test_a_store_that_vanishes_is_a_miss(config_of: Any, store: LocalStore) -> None:
    with world(config_of()) as engine:
        keys = first_and_last(engine, store)
        engine.wait_for(keys[-1])
        shutil.rmtree(store.root)
        assert set(engine.promote(keys)) == {MISS}


def test_a_slow_store_is_a_miss_and_writes_nothing_afterwards(
    config_of: Any, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, read = threading.Event(), Step.spans
    done = threading.Semaphore(0)

    def slow(step: Step) -> Any:
        gate.wait(20)
        done.release()
        return read(step)

    with world(config_of(max_load_seconds=0.3)) as engine:
        keys = first_and_last(engine, store)
        engine.wait_for(keys[-1])
        monkeypatch.setattr(Step, "spans", slow)
        began = time.monotonic()
        assert set(engine.promote(keys)) == {MISS}
        assert time.monotonic() - began < 10
        rows = engine.tier._reader.memory.rows
        rows.fill_(7)
        gate.set()
        assert done.acquire(timeout=20)
        time.sleep(0.2)
        assert rows.eq(7).all()
        del rows


def test_a_tier_that_does_not_know_its_engine_finds_nothing(
    config_of: Any, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    from kvtool.connectors.vllm.tier import KvtoolTier

    with world(config_of()) as engine:
        keys = first_and_last(engine, store)
        engine.wait_for(keys[-1])
        view = memoryview(torch.zeros(4, 4096, dtype=torch.int8).numpy())
        with caplog.at_level(logging.ERROR, LOG):
            alone = KvtoolTier(engine.spec, view, "KvtoolTier", store=str(store.root))
        assert "does not know the engine's configuration" in caplog.text
        assert alone.lookup(keys[0], ReqContext("r")) is MISS
        alone.shutdown()
