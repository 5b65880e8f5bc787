"""Requests from their arrival to their last token, through vLLM's own scheduler: matching, block tables, faults."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from kvtool.codecs.rope import value_ropes
from kvtool.connectors.lookup import CachedPrefix
from kvtool.connectors.vllm import worker
from kvtool.store.local import LocalStore
from tests.connectors.shown import shown
from tests.connectors.vllm.conftest import COMPRESSED, Case
from tests.connectors.vllm.harness import BLOCK, Harness, PlainLayer, held
from tests.connectors.vllm.models import FAMILIES, MODELS, WINDOW

HARBOUR, BAKERY = "harbour.md", "bakery.md"


@pytest.fixture
def qwen3(case: Callable[[str], Case], tmp_path: Path) -> Case:
    """The tiny Qwen3 with a store of its own, to be damaged."""
    made = case("qwen3")
    return replace(made, store=LocalStore(Path(shutil.copytree(made.store.root, tmp_path / "store"))))


@pytest.fixture(autouse=True)
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """The worker's place among those that share each layer's heads: alone, unless a test says otherwise."""

    def place(rank: int, n_ranks: int) -> None:
        monkeypatch.setattr(worker, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(worker, "get_tensor_model_parallel_world_size", lambda: n_ranks)

    place(0, 1)
    return place


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="kvtool"):
        yield caplog


def stored(made: Case, name: str, layer: int, variant: str = "raw") -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [H, T, D] and values [H, T, Dv] that the store has; rotated values as vLLM has them."""
    parts = made.store.parts(name, variant)
    layers = [part.layer(layer) for part in parts]
    keys, values = (torch.cat([getattr(one, side) for one in layers], 1) for side in ("keys", "values"))
    if (ropes := value_ropes(parts[0].contents.rope, parts[0].n_layers)) and ropes[layer].layout == "half":
        values = torch.stack(values.chunk(2, -1), -1).flatten(-2)
    return keys, values


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
@pytest.mark.parametrize("variant", ["raw", *COMPRESSED])
@pytest.mark.parametrize("name", list(MODELS))
def test_blocks_hold_what_the_artifacts_hold(
    case: Callable[[str], Case],
    ranks: Callable[[int, int], None],
    name: str,
    variant: str,
    n_ranks: int,
) -> None:
    made = case(name)
    ids = made.tokens(HARBOUR)
    for rank in range(n_ranks):
        ranks(rank, n_ranks)
        harness = Harness(made, rank=rank, n_ranks=n_ranks, options={"variant": variant})
        request = harness.add("one", [*ids, 9])
        harness.run_until(request, RequestStatus.RUNNING)
        (blocks,) = harness.block_ids(request)
        for layer in range(len(harness.layers)):
            mine = held(harness, layer, blocks, len(ids))
            for side, expected in zip(mine, stored(made, HARBOUR, layer, variant), strict=True):
                first = rank * len(expected) // n_ranks
                assert torch.equal(side, expected[first : first + max(1, len(expected) // n_ranks)])
        harness.run()
        # One token of the question, and three answers that are looked at again.
        assert harness.computed["one"] == 4
    shown("vllm", FAMILIES[name], variant, ranks=n_ranks)


def test_windows_get_the_blocks_that_they_see(case: Callable[[str], Case]) -> None:
    made = case("gemma3")
    harness = Harness(made, windows=True)
    ids = made.tokens(HARBOUR)
    request = harness.add("one", [*ids, 9, 8, 7])
    harness.run_until(request, RequestStatus.RUNNING)
    windowed, full = harness.block_ids(request)
    assert windowed[0] == 0
    for layer in range(len(harness.layers)):
        is_full = layer % 2 == 1
        first = 0 if is_full else len(ids) - WINDOW + 1
        mine = held(harness, layer, full if is_full else windowed, len(ids))
        for side, expected in zip(mine, stored(made, HARBOUR, layer), strict=True):
            assert torch.equal(side[:, first:], expected[:, first:])


@pytest.mark.parametrize("cut", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_prompt_that_leaves_the_document_loads_what_it_shares(qwen3: Case, cut: int) -> None:
    harness = Harness(qwen3)
    ids = qwen3.tokens(HARBOUR)
    other = [*ids[:-cut], 271 - ids[-cut], 3, 4]
    request = harness.add("one", other)
    harness.run_until(request, RequestStatus.RUNNING)
    assert harness.computed["one"] == 3
    (blocks,) = harness.block_ids(request)
    keys, _ = held(harness, 0, blocks, len(ids) - cut)
    assert torch.equal(keys, stored(qwen3, HARBOUR, 0)[0][:, :-cut])


def test_a_whole_prompt_computes_its_last_token(qwen3: Case) -> None:
    harness = Harness(qwen3)
    request = harness.add("one", qwen3.tokens(HARBOUR))
    harness.run_until(request, RequestStatus.RUNNING)
    assert harness.computed["one"] == 1


def test_other_prompts_and_short_gains_are_computed(qwen3: Case) -> None:
    harness = Harness(qwen3, options={"min_tokens": 64})
    ids = qwen3.tokens(HARBOUR)
    harness.add("other", [5] * 100)
    harness.add("short", [*ids[:60], 1, 2, 3])
    harness.run()
    assert harness.computed == {"other": 103, "short": 66}


def test_two_requests_share_one_load(qwen3: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_parts = CachedPrefix.open

    def count(found: CachedPrefix, store: Any) -> Any:
        opened.append(found.document)
        return open_parts(found, store)

    monkeypatch.setattr(CachedPrefix, "open", count)
    harness = Harness(qwen3)
    ids = qwen3.tokens(HARBOUR)
    harness.add("one", [*ids, 1, 2, 3])
    harness.add("two", [*ids, 4, 5, 6])
    harness.run()
    assert opened == [HARBOUR]
    # The second has whole blocks of the first; the rest of the document is less than what a load is worth.
    assert harness.computed["one"] == 6
    assert harness.computed["two"] == 6 + len(ids) % BLOCK


def flip(made: Case, name: str) -> None:
    path = made.store.path_of(made.store[name].segments[0].variants["raw"])
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def vanish(made: Case, name: str) -> None:
    made.store.path_of(made.store[name].segments[0].variants["raw"]).unlink()


@pytest.mark.parametrize("damage", [flip, vanish])
def test_what_cannot_be_loaded_is_computed(
    qwen3: Case, warnings: pytest.LogCaptureFixture, damage: Callable[[Case, str], None]
) -> None:
    harness = Harness(qwen3)
    ids = qwen3.tokens(HARBOUR)
    damage(qwen3, HARBOUR)
    harness.add("one", [*ids, 1, 2, 3])
    harness.run()
    assert harness.computed["one"] == len(ids) + 6
    assert HARBOUR in warnings.text
    # It is not tried again for each request, and other documents are loaded.
    warnings.clear()
    harness.add("again", [*ids[:-2], 1, 2, 3])
    harness.add("other", [*qwen3.tokens(BAKERY), 1, 2, 3])
    harness.run()
    assert harness.computed["other"] == 6
    assert warnings.text == ""


def test_a_store_that_vanishes(qwen3: Case) -> None:
    harness = Harness(qwen3)
    ids = {name: qwen3.tokens(name) for name in (HARBOUR, BAKERY)}
    qwen3.store.root.rename(qwen3.store.root.with_name("away"))
    for name, tokens in ids.items():
        harness.add(name, [*tokens, 1, 2, 3])
    harness.run()
    assert harness.computed == {name: len(tokens) + 6 for name, tokens in ids.items()}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A store that gives nothing until the event is set."""
    event, open_parts = threading.Event(), CachedPrefix.open

    def wait(found: CachedPrefix, store: Any) -> Any:
        event.wait(LAST)
        return open_parts(found, store)

    monkeypatch.setattr(CachedPrefix, "open", wait)
    yield event
    event.set()


LAST = 30.0


def test_a_slow_store_is_given_up(
    qwen3: Case, slow: threading.Event, warnings: pytest.LogCaptureFixture
) -> None:
    harness = Harness(qwen3, options={"max_load_seconds": 0.5})
    ids = qwen3.tokens(HARBOUR)
    request = harness.add("one", [*ids, 1, 2, 3])
    harness.add("other", [5] * 100)
    began = time.monotonic()
    harness.run_until(request, RequestStatus.RUNNING)
    assert 0.5 <= time.monotonic() - began < 5
    # The other request did not wait.
    assert harness.computed["other"] >= 100
    assert "0.5 seconds" in warnings.text
    (blocks,) = harness.block_ids(request)
    before = held(harness, 0, blocks, len(ids))[0].clone()
    slow.set()
    time.sleep(0.3)
    # What comes late is written nowhere.
    assert torch.equal(held(harness, 0, blocks, len(ids))[0].nan_to_num(0), before.nan_to_num(0))
    harness.run()
    assert harness.computed["one"] == len(ids) + 6


def test_a_request_that_is_aborted_while_loading(
    qwen3: Case, slow: threading.Event, warnings: pytest.LogCaptureFixture
) -> None:
    harness = Harness(qwen3)
    ids = qwen3.tokens(HARBOUR)
    request = harness.add("one", [*ids, 1, 2, 3])
    harness.run_until(request, RequestStatus.WAITING_FOR_REMOTE_KVS)
    harness.abort("one")
    harness.run()
    pool = harness.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == harness.n_blocks - 1
    slow.set()
    time.sleep(0.3)
    # What comes late is written nowhere, and nothing is said of a cache that is whole.
    assert all(blocks.isnan().all() for blocks in harness.blocks.values())
    assert HARBOUR not in warnings.text
    harness.add("two", [*ids, 1, 2, 3])
    harness.run()
    assert harness.computed == {"two": 6}


def test_time_runs_out_during_the_last_write(
    qwen3: Case, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    harness = Harness(qwen3, options={"max_load_seconds": 0.3})
    write = PlainLayer.do_kv_cache_update

    def write_slowly(layer: PlainLayer, *arguments: Any) -> None:
        time.sleep(0.5)
        write(layer, *arguments)

    monkeypatch.setattr(PlainLayer, "do_kv_cache_update", write_slowly)
    ids = qwen3.tokens(HARBOUR)
    harness.add("one", [*ids, 1, 2, 3])
    harness.run()
    assert harness.computed["one"] == len(ids) + 6
    assert "0.3 seconds" in warnings.text


def test_a_request_that_is_preempted_is_loaded_again(qwen3: Case) -> None:
    harness = Harness(qwen3)
    ids = qwen3.tokens(HARBOUR)
    request = harness.add("one", [*ids, 1, 2, 3])
    harness.run_until(request, RequestStatus.RUNNING)
    harness.scheduler.reset_prefix_cache(reset_running_requests=True)
    harness.run()
    # Twice the question, and the answers; the document was computed neither time.
    assert harness.computed["one"] < 20


def test_another_models_store(
    qwen3: Case, tmp_path: Path, warnings: pytest.LogCaptureFixture, case: Callable[[str], Case]
) -> None:
    other = Path(shutil.copytree(qwen3.directory, tmp_path / "other"))
    config = other / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    harness = Harness(replace(qwen3, directory=other))
    ids = qwen3.tokens(HARBOUR)
    harness.add("one", [*ids, 1, 2, 3])
    harness.run()
    assert harness.computed["one"] == len(ids) + 6
    (line,) = [record.message for record in warnings.records if "not used" in record.message]
    assert "config is" in line
