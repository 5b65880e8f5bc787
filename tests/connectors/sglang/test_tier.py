"""Pages out of a store, against what the store itself reads; faults and refusals are misses."""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.thread import _threads_queues
from pathlib import Path
from typing import Any

import pytest
import torch

import kvtool
from kvtool.connectors import avoided
from kvtool.connectors.block_index import Source
from kvtool.connectors.reading import Step
from kvtool.connectors.sglang.pages import Pages, Shard
from kvtool.connectors.sglang.settings import Settings
from kvtool.connectors.sglang.tier import Tier
from kvtool.store import prefix_index
from kvtool.store.local import LocalStore
from kvtool.store.open import open_store
from tests.connectors.sglang.pools import N_PAGES, PAGE, chain, engine_of, expected_rows, pages_of, token_ids

NAME = "long.txt"
LAYOUTS = ["layer_first", "page_first", "page_first_direct", "page_head"]


@pytest.fixture(scope="module")
def source(tiny: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """Two documents under one prefix, raw and as kivi."""
    folder = tmp_path_factory.mktemp("source")
    (folder / NAME).write_text("Seven ships left the harbour, and six came back to it. " * 3)
    (folder / "other.txt").write_text("The baker opens at six; his rye loaf is the best of all. " * 2)
    store = LocalStore(folder / "kv")
    kvtool.prefill([folder / NAME, folder / "other.txt"], model=tiny, store=store)
    kvtool.compress(store, list(store), recipe="kivi")
    return store


@pytest.fixture
def store(source: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    monkeypatch.setattr(prefix_index, "FRESH", 0.0)
    shutil.copytree(source.root, tmp_path / "kv")
    return LocalStore(tmp_path / "kv")


@pytest.fixture
def make(store: LocalStore, tiny: kvtool.Model) -> Iterator[Callable[..., Tier]]:
    made: list[Tier] = []

    def make(pages: Pages | None = None, *, engine: Any = None, **settings: Any) -> Tier:
        chosen = Settings.of({"kvtool": {"store": str(store.root), **settings}})
        made.append(Tier(store, engine or engine_of(tiny), pages or pages_of(tiny), chosen))
        follow(made[-1])
        return made[-1]

    yield make
    for tier in made:
        tier.close()


def follow(tier: Tier) -> None:
    """Waits until the index has seen the store as it is now."""
    before = tier.index._refreshed
    deadline = time.monotonic() + 10
    while tier.index._refreshed == before and time.monotonic() < deadline:
        tier.index.follow()
        time.sleep(0.005)


def read_pages(tier: Tier, keys: list[str]) -> tuple[int, torch.Tensor]:
    """Reads ``keys`` into the pool's pages from its third on; gives them as [2, L, T, H, D]."""
    places = [tier.pages.at((2 + n) * PAGE) for n in range(len(keys))]
    return tier.read(keys, places), torch.cat([place.clone() for place in places], 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["raw", "kivi"])
def test_every_page_has_the_values_of_the_store(
    make: Callable[..., Tier], store: LocalStore, tiny: kvtool.Model, layout: str, variant: str
) -> None:
    tier = make(pages_of(tiny, layout), variant=variant)
    keys = chain(token_ids(store, NAME))
    assert len(keys) > 8
    assert tier.held([*keys, "0" * 64]) == len(keys)
    n, rows = read_pages(tier, keys)
    assert n == len(keys)
    assert torch.equal(rows, expected_rows(store, NAME, variant)[:, :, : n * PAGE])


def test_a_flat_page_is_in_the_order_of_the_pool(
    make: Callable[..., Tier], store: LocalStore, tiny: kvtool.Model
) -> None:
    key = chain(token_ids(store, NAME))[3]
    for layout in LAYOUTS:
        tier = make(pages_of(tiny, layout))
        flat = torch.zeros_like(tier.pages.pool.get_data_page(0))
        assert tier.read([key], [tier.pages.flat(flat)]) == 1
        assert tier.read([key], [tier.pages.at(0)]) == 1
        assert torch.equal(flat, tier.pages.pool.get_data_page(0))


@pytest.mark.parametrize(("n_ranks", "held"), [(1, 2), (2, 1), (4, 1)])
def test_ranks_share_the_heads_out(
    make: Callable[..., Tier], store: LocalStore, tiny: kvtool.Model, n_ranks: int, held: int
) -> None:
    keys = chain(token_ids(store, NAME))
    whole = expected_rows(store, NAME)
    assert whole.shape[3] == 2
    for rank in range(n_ranks):
        tier = make(pages_of(tiny, heads=held, shard=Shard(rank, n_ranks)))
        n, rows = read_pages(tier, keys)
        first = rank * 2 // n_ranks
        assert n == len(keys)
        assert torch.equal(rows, whole[:, :, : n * PAGE, first : first + held])


def test_stages_of_a_pipeline_hold_their_layers(
    make: Callable[..., Tier], store: LocalStore, tiny: kvtool.Model
) -> None:
    keys = chain(token_ids(store, NAME))
    n_layers = tiny.text_config.num_hidden_layers
    for layers, is_last in ((range(1), False), (range(1, n_layers), True)):
        tier = make(pages_of(tiny, layers=layers, shard=Shard(is_last=is_last)))
        n, rows = read_pages(tier, keys)
        assert n == len(keys)
        assert torch.equal(rows, expected_rows(store, NAME)[:, layers.start : layers.stop, : n * PAGE])


def test_a_prompt_that_diverges_has_the_pages_before(make: Callable[..., Tier], store: LocalStore) -> None:
    ids = token_ids(store, NAME)
    tier = make()
    for cut in (0, PAGE - 1, PAGE, 5 * PAGE + 3):
        changed = [*ids[:cut], (ids[cut] + 1) % 200, *ids[cut + 1 :]]
        assert tier.held(chain(changed)) == cut // PAGE
        assert read_pages(tier, chain(changed))[0] == cut // PAGE
    # A page in the middle is found by its key alone, as SGLang asks when it has those before.
    assert tier.held(chain(ids)[4:6]) == 2


def test_it_follows_the_store(make: Callable[..., Tier], store: LocalStore) -> None:
    tier = make()
    keys, others = chain(token_ids(store, NAME)), chain(token_ids(store, "other.txt"))
    common = sum(a == b for a, b in zip(keys, others, strict=False))
    store.remove(NAME)
    follow(tier)
    assert tier.held(keys) == common
    assert tier.held(others) == len(others)


MISFITS = {
    "dtype": {"dtype": torch.float16},
    "layers": {"layers": range(1)},
    "heads": {"heads": 3},
    "channels": {"channels": 4},
}


@pytest.mark.parametrize("field", MISFITS)
def test_other_sizes_than_the_pools_are_a_miss(
    make: Callable[..., Tier],
    store: LocalStore,
    tiny: kvtool.Model,
    caplog: pytest.LogCaptureFixture,
    field: str,
) -> None:
    tier = make(pages_of(tiny, **MISFITS[field]))
    keys = chain(token_ids(store, NAME))
    assert read_pages(tier, keys)[0] == read_pages(tier, keys)[0] == 0
    assert tier.held(keys) == 0
    assert [record.message for record in caplog.records if NAME in record.message and field in record.message]


def test_another_models_store_is_a_miss(
    make: Callable[..., Tier],
    make_model: Callable[..., Path],
    tiny: kvtool.Model,
    store: LocalStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = chain(token_ids(store, NAME))
    other = kvtool.load_model(make_model(tmp_path / "other", seed=7), device="cpu")
    for field, engine in (
        ("weights", engine_of(other)),
        ("dtype", engine_of(tiny, dtype="bfloat16")),
        ("quantization", engine_of(tiny, quantization="fp8")),
    ):
        caplog.clear()
        assert make(engine=engine).held(keys) == 0
        (line,) = [record.message for record in caplog.records]
        assert f"are not used: {field} is" in line


def test_a_model_whose_weights_are_gone_is_a_miss_and_one_line(
    make: Callable[..., Tier],
    make_model: Callable[..., Path],
    store: LocalStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = engine_of(kvtool.load_model(make_model(tmp_path / "copy"), device="cpu"))
    (tmp_path / "copy" / "model.safetensors").unlink()
    tier = make(engine=engine)
    follow(tier)
    assert tier.held(chain(token_ids(store, NAME))) == 0
    assert ["has no model.safetensors" in record.message for record in caplog.records] == [True]


def test_a_flipped_byte_is_a_miss_and_one_line(
    make: Callable[..., Tier], store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    tier = make(variant="raw")
    path = store.open(NAME).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    keys = chain(token_ids(store, NAME))
    assert tier.held(keys) == len(keys)
    assert read_pages(tier, keys)[0] == 0
    assert tier.held(keys) < len(keys)
    assert [r.levelno for r in caplog.records if "digest differs" in r.message] == [logging.WARNING]
    # Others under the same prefix are still served.
    others = chain(token_ids(store, "other.txt"))
    assert read_pages(tier, others)[0] == len(others)


def test_a_store_that_vanishes_is_a_miss(make: Callable[..., Tier], store: LocalStore) -> None:
    keys = chain(token_ids(store, NAME))
    tier = make()
    shutil.rmtree(store.root)
    assert read_pages(tier, keys)[0] == 0
    follow(tier)
    assert tier.held(keys) == 0


def test_a_slow_store_is_a_miss_after_its_time(
    make: Callable[..., Tier],
    store: LocalStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tier, keys = make(max_load_seconds=0.05), chain(token_ids(store, NAME))
    come = threading.Event()
    load = tier.loads.load
    tier.loads.load = lambda source: (come.wait(10), load(source))[1]
    began = time.monotonic()
    assert read_pages(tier, keys)[0] == 0
    assert time.monotonic() - began < 5
    assert tier.held(keys) < len(keys)
    assert re.search(r"long\.txt is not loaded: it was not loaded within 0\.0[45]\d* seconds", caplog.text)
    come.set()
    # It came too late for that request, and in time for the next.
    deadline = time.monotonic() + 10
    while tier.held(keys) < len(keys) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read_pages(tier, keys)[0] == len(keys)


def test_one_call_waits_no_longer_than_one_load_may_take(
    make: Callable[..., Tier], store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, keys = make(), [key for name in (NAME, "other.txt") for key in chain(token_ids(store, name))]
    waited: dict[str, float] = {}
    get = tier.loads.get

    def noted(source: Source, until: float | None = None) -> Any:
        assert until is not None
        waited.setdefault(source.document, until)
        return get(source, until)

    monkeypatch.setattr(tier.loads, "get", noted)
    latest = time.monotonic() + tier.settings.max_load_seconds
    own = pages_of(tiny_of(tier))
    places = [own.at(n % N_PAGES * PAGE) for n in range(len(keys))]
    assert tier.read(keys, places) == len(keys)
    first, second = waited.values()
    assert latest <= first == second <= time.monotonic() + tier.settings.max_load_seconds


def test_no_thread_that_reads_for_it_keeps_the_process_from_ending(
    make: Callable[..., Tier], store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    come, hangs = threading.Event(), threading.Event()
    monkeypatch.setattr(Step, "spans", lambda step: (hangs.set(), come.wait(10), [])[2])
    tier, keys = make(max_load_seconds=0.05, threads=3), chain(token_ids(store, NAME))
    before = set(threading.enumerate())
    tier.loads.clear()
    assert read_pages(tier, keys)[0] == 0
    assert hangs.wait(10)
    hung = set(threading.enumerate()) - before
    assert len(hung) > 1
    assert all(thread.daemon for thread in hung)
    # Those that Python itself waits for.
    assert not hung & set(_threads_queues)
    come.set()


def test_what_is_asked_for_at_once_is_loaded_once(make: Callable[..., Tier], store: LocalStore) -> None:
    tier, keys = make(), chain(token_ids(store, NAME))
    loaded = []
    load = tier.loads.load
    tier.loads.load = lambda source: (loaded.append(source), time.sleep(0.05), load(source))[2]
    counts: list[int] = []
    pages = [pages_of(tiny_of(tier)) for _ in range(6)]

    def ask(own: Pages) -> None:
        counts.append(tier.read(keys, [own.at(n * PAGE) for n in range(len(keys))]))

    threads = [threading.Thread(target=ask, args=(own,)) for own in pages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [len(keys)] * 6
    assert len(loaded) == 1


def tiny_of(tier: Tier) -> kvtool.Model:
    return tier.engine.model.model


def test_memory_is_bounded(
    make: Callable[..., Tier], store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    keys, others = (chain(token_ids(store, name)) for name in (NAME, "other.txt"))
    size = expected_rows(store, NAME).nbytes
    tier = make(memory_gib=size * 1.2 / 2**30)
    for asked in (keys, others, keys):
        assert read_pages(tier, asked)[0] == len(asked)
        assert 0 < tier.loads.nbytes <= tier.settings.memory
    tier.loads.clear()
    assert tier.loads.nbytes == 0
    small = make(memory_gib=size * 0.9 / 2**30)
    assert read_pages(small, keys)[0] == 0
    assert [r for r in caplog.records if "more than kvtool.memory_gib" in r.message]


def test_a_failure_is_tried_again_after_a_while(
    make: Callable[..., Tier], store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(avoided, "AVOIDED_SECONDS", 0.0)
    tier, keys = make(variant="raw"), chain(token_ids(store, NAME))
    path = store.open(NAME).path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert read_pages(tier, keys)[0] == 0
    path.write_bytes(data)
    assert read_pages(tier, keys)[0] == len(keys)


def test_a_store_that_lies_elsewhere(store: LocalStore, tiny: kvtool.Model) -> None:
    address = f"file://{store.root.resolve()}"
    settings = Settings.of({"kvtool": {"store": address, "variant": "kivi"}})
    tier = Tier(open_store(address), engine_of(tiny), pages_of(tiny), settings)
    follow(tier)
    keys = chain(token_ids(store, NAME))
    n, rows = read_pages(tier, keys)
    assert n == tier.held(keys) == len(keys)
    assert torch.equal(rows, expected_rows(store, NAME, "kivi")[:, :, : n * PAGE])
    tier.close()
    assert read_pages(tier, keys)[0] == 0
