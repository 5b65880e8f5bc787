"""The backend through SGLang's own classes: its factory, its host pools, its hashes, its controller's calls."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sglang")

from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_hash_str, get_storage_hash_str
from sglang.srt.runtime_context import get_context

from kvtool.codecs.klt import embeddings
from kvtool.model import embedding
from kvtool.store.local import LocalStore
from tests.connectors.sglang.pools import chain, expected_rows, token_ids
from tests.connectors.sglang.servers import PAGE, Served
from tests.connectors.sglang.stores import DOCUMENT, OTHER, VARIANTS
from tests.connectors.shown import shown

Serve = Callable[..., Served]

LAYOUTS = ["layer_first", "page_first", "page_first_direct", "page_head"]
FLAT = {
    "layer_first": lambda page: page,
    "page_first": lambda page: page.permute(0, 2, 1, 3, 4),
    "page_first_direct": lambda page: page,
    "page_head": lambda page: page.permute(0, 3, 2, 1, 4),
}
"""[2, L, T, H, D] → the order in which a page of the layout has its elements."""


def name_of(store: LocalStore, text: str = DOCUMENT) -> str:
    return next(name for name in store if name.endswith(text))


def flat_pages(rows: torch.Tensor, layout: str, n_pages: int) -> torch.Tensor:
    pages = [rows[:, :, n * PAGE : (n + 1) * PAGE] for n in range(n_pages)]
    return torch.cat([FLAT[layout](page).flatten() for page in pages])


def hashes(ids: list[int]) -> list[str]:
    return get_hash_str(ids[: len(ids) // PAGE * PAGE], None, PAGE)


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pool_holds_the_values_of_the_store(
    serve: Serve, layout: str, variant: str, zero_copy: bool
) -> None:
    served = serve(layout=layout, variant=variant, zero_copy=zero_copy)
    name = name_of(served.store)
    ids = token_ids(served.store, name)
    n_pages = len(ids) // PAGE
    assert served.fetch(ids, zero_copy=zero_copy) == (n_pages, n_pages)
    rows = expected_rows(served.store, name, variant)
    assert rows.std() > 0
    assert torch.equal(served.rows(n_pages), flat_pages(rows, layout, n_pages))
    shown("sglang", "Llama", variant)


@pytest.mark.parametrize("tp", [(0, 2), (1, 2), (0, 4), (1, 4), (2, 4), (3, 4)])
def test_each_rank_holds_its_heads(serve: Serve, tp: tuple[int, int]) -> None:
    served = serve(heads=1, tp=tp)
    ids = token_ids(served.store, name_of(served.store))
    n_pages = len(ids) // PAGE
    assert served.fetch(ids) == (n_pages, n_pages)
    head = tp[0] * 2 // tp[1]
    rows = expected_rows(served.store, name_of(served.store))[:, :, :, head : head + 1]
    assert torch.equal(served.rows(n_pages), flat_pages(rows, "layer_first", n_pages))
    shown("sglang", "Llama", "raw", ranks=tp[1])


def test_its_hash_is_the_one_that_the_other_tests_use(serve: Serve) -> None:
    ids = list(range(5 * PAGE))
    assert hashes(ids) == chain(ids)
    assert hashes(ids[: 2 * PAGE]) == hashes(ids)[:2]


def test_the_contract_of_single_pages(serve: Serve) -> None:
    served = serve()
    storage, ids = served.storage, token_ids(served.store, name_of(served.store))
    keys = hashes(ids)
    assert storage.exists(keys[0])
    assert storage.exists(keys[-1])
    assert not storage.exists("0" * 64)
    target = served.pool.get_dummy_flat_data_page()
    assert storage.get(keys[1], target) is target
    rows = expected_rows(served.store, name_of(served.store))
    assert torch.equal(target, rows[:, :, PAGE : 2 * PAGE].flatten())
    assert torch.equal(storage.get(keys[1]), target)
    assert storage.get("0" * 64, target) is None
    assert storage.batch_exists([*keys, "0" * 64, keys[0]]) == len(keys)
    assert storage.batch_exists(["0" * 64, *keys]) == 0
    assert storage.batch_exists([]) == 0
    targets = [served.pool.get_dummy_flat_data_page() for _ in range(3)]
    first, missing, after = storage.batch_get([keys[0], "0" * 64, keys[1]], targets)
    assert first is targets[0]
    assert missing is None
    assert after is None


def test_nothing_is_stored_and_what_is_there_counts_as_stored(serve: Serve) -> None:
    served = serve()
    storage, keys = served.storage, hashes(token_ids(served.store, name_of(served.store)))
    before = sorted(path.name for path in served.store.root.rglob("*"))
    page = served.pool.get_dummy_flat_data_page()
    assert storage.set("0" * 64, page) is False
    assert storage.exists("0" * 64) is False
    assert storage.set(keys[0], page) is True
    assert storage.batch_set([keys[0], "0" * 64], [page, page]) is False
    assert storage.batch_set_v1([keys[0], "0" * 64], torch.arange(2 * PAGE)) == [True, False]
    assert sorted(path.name for path in served.store.root.rglob("*")) == before
    storage.clear()
    assert storage.exists(keys[0])
    assert storage.get_stats() is None


def test_requests_with_an_adapter_or_a_salt_find_nothing(serve: Serve) -> None:
    served = serve()
    ids = token_ids(served.store, name_of(served.store))
    whole = ids[: len(ids) // PAGE * PAGE]
    assert (
        served.storage.batch_exists(get_storage_hash_str(RadixKey(whole), None, PAGE)) == len(whole) // PAGE
    )
    for named in (RadixKey(whole, extra_key="adapter"), RadixKey(whole, cache_salt="tenant")):
        assert served.storage.batch_exists(get_storage_hash_str(named, None, PAGE)) == 0


@pytest.mark.parametrize("zero_copy", [False, True])
def test_a_prompt_that_diverges_gets_the_pages_before(serve: Serve, zero_copy: bool) -> None:
    served = serve()
    ids = token_ids(served.store, name_of(served.store))
    for cut in (0, 3 * PAGE + 5, len(ids) // PAGE * PAGE - 1):
        prompt = [*ids[:cut], (ids[cut] + 1) % 200, *ids[cut + 1 :]]
        assert served.fetch(prompt, zero_copy=zero_copy) == (cut // PAGE, cut // PAGE)


REFUSED: dict[str, dict[str, Any]] = {
    "weights": {"name": "other", "store": "tiny-kv"},
    "dtype": {"dtype": torch.float16},
    "kv_cache_dtype": {"args": {"kv_cache_dtype": "fp8_e4m3"}},
    "quantization": {"args": {"quantization": "fp8"}},
    "load_format dummy": {"args": {"load_format": "dummy"}},
    "load_format presharded": {"args": {"load_format": "presharded"}},
    "load_format sharded_state": {"args": {"load_format": "sharded_state"}},
    "load_format pt": {"args": {"load_format": "pt"}},
    "load_format flash_rl": {"args": {"load_format": "flash_rl"}},
    "load_format private": {"args": {"load_format": "private"}},
    "weight_cache_mode client": {"args": {"weight_cache_mode": "client"}},
    "checkpoint_engine_wait_weights_before_ready": {
        "args": {"checkpoint_engine_wait_weights_before_ready": True}
    },
    "custom_weight_loader": {"args": {"custom_weight_loader": ["package.load"]}},
    "modelopt_checkpoint_restore_path": {"args": {"modelopt_checkpoint_restore_path": "/elsewhere"}},
    "download_dir": {"args": {"download_dir": "/elsewhere"}},
    "json_model_override_args": {"args": {"json_model_override_args": '{"rope_theta": 5}'}},
    "heads": {"heads": 3},
    "rope_type": {"name": "dynamic", "store": "tiny-kv"},
    "attn_cp_size": {"cp": 2},
}


@pytest.mark.parametrize("field", REFUSED)
def test_another_model_is_a_miss_and_one_line_that_names_the_field(
    serve: Serve, folder: Path, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    changes = dict(REFUSED[field])
    name = changes.pop("name", "tiny")
    if "store" in changes:
        changes["store"] = folder / changes["store"]
    served = serve(name, **changes)
    store = LocalStore(folder / "tiny-kv")
    ids = token_ids(store, name_of(store))
    before = served.rows(4).clone()
    for _ in range(3):
        assert served.fetch(ids)[1] == 0
    assert served.fetch(ids) == (0, 0)
    assert torch.equal(served.rows(4), before)
    (line,) = [record.message for record in caplog.records if record.name.startswith("kvtool")]
    assert field in line


@pytest.mark.parametrize("field", ["weight_version", "model_path", "load_format"])
def test_weights_that_are_replaced_end_it(serve: Serve, caplog: pytest.LogCaptureFixture, field: str) -> None:
    served = serve()
    ids = token_ids(served.store, name_of(served.store))
    assert served.fetch(ids)[1] > 0
    # As SGLang's model runner and scheduler do.
    get_context().override("test", **{field: "second"})
    assert served.fetch(ids) == (0, 0)
    assert [r for r in caplog.records if f"{field} second" in r.message]


@pytest.mark.parametrize("kind", ["safetensors", "fastsafetensors", "instanttensor", "runai_streamer"])
def test_other_ways_to_read_the_same_files_are_served(serve: Serve, kind: str) -> None:
    served = serve(args={"load_format": kind})
    assert served.fetch(token_ids(served.store, name_of(served.store)))[1] > 0


def test_a_model_with_other_state_than_keys_and_values_is_a_miss(serve: Serve) -> None:
    served = serve()
    keys = hashes(token_ids(served.store, name_of(served.store)))
    window = PoolTransfer(name=PoolName.SWA, keys=keys[-1:])
    assert served.storage.batch_exists_v2(keys).kv_hit_pages == len(keys)
    assert served.storage.batch_exists_v2(keys, [window]).kv_hit_pages == 0
    assert served.storage.batch_get_v2([window]) == {PoolName.SWA: [False]}
    assert served.storage.batch_set_v2([window]) == {PoolName.SWA: [False]}
    served.storage.register_mem_host_pool_v2(served.pool, PoolName.SWA)
    assert served.storage.batch_exists(keys) == 0


@pytest.mark.parametrize("zero_copy", [False, True])
def test_a_flipped_byte_is_a_miss(
    serve: Serve, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, zero_copy: bool
) -> None:
    shutil.copytree(folder / "tiny-kv", tmp_path / "kv")
    served = serve(store=tmp_path / "kv", variant="raw")
    path = served.store.open(name_of(served.store)).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ids = token_ids(served.store, name_of(served.store))
    before = served.rows(len(ids) // PAGE).clone()
    assert served.fetch(ids, zero_copy=zero_copy)[1] == 0
    assert torch.equal(served.rows(len(ids) // PAGE), before)
    assert [r.levelno for r in caplog.records if "digest differs" in r.message] == [logging.WARNING]
    # The other document does not suffer.
    others = token_ids(served.store, name_of(served.store, OTHER))
    assert served.fetch(others, zero_copy=zero_copy)[1] == len(others) // PAGE


def test_a_store_that_vanishes_is_a_miss(serve: Serve, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tiny-kv", tmp_path / "kv")
    served = serve(store=tmp_path / "kv")
    ids = token_ids(served.store, name_of(served.store))
    shutil.rmtree(tmp_path / "kv")
    assert served.fetch(ids)[1] == 0
    served.follow()
    assert served.fetch(ids) == (0, 0)


def test_zeroed_keys_and_values_are_told_apart(serve: Serve) -> None:
    """The comparisons above can fail."""
    served = serve()
    ids = token_ids(served.store, name_of(served.store))
    n_pages = served.fetch(ids)[1]
    rows = torch.zeros_like(expected_rows(served.store, name_of(served.store)))
    assert not torch.equal(served.rows(n_pages), flat_pages(rows, "layer_first", n_pages))


def test_klt_is_decoded_where_kvtool_never_ran_the_model(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(embedding, "_known", {})
    monkeypatch.setattr(embeddings, "_finders", [embedding.find])
    served = serve(variant="klt")
    ids = token_ids(served.store, name_of(served.store))
    n_pages = len(ids) // PAGE
    assert served.fetch(ids) == (n_pages, n_pages)
