"""The scheduler's calls in any order that vLLM allows, over a store with a broken document, which is slow now and then."""

from __future__ import annotations

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

import kvtool
from kvtool.connectors.reading import Step
from kvtool.store.local import LocalStore
from tests.connectors.vllm.tier.world import (
    BLOCK,
    cells,
    engine_config,
    groups_of,
    kv_cache_of,
    request,
    token_ids,
)

HIT, MISS = LookupResult.HIT, LookupResult.MISS
N_ROWS, UNTOUCHED = 40, 0x5A
LOAD_SECONDS = 0.25
BOUND_SECONDS = 2.0
"""For which no call takes; far above what any needs, as machines are shared, and far below what a slow store takes."""


def built(vllm_config: Any, kv_cache_config: Any, view: memoryview) -> Any:
    """A tier of these configurations, as vLLM builds it."""
    spec = TieringOffloadingSpec(build_offloading_config(vllm_config, kv_cache_config))
    (tier,) = spec.secondary_tier_configs
    return SecondaryTierFactory.create_secondary_tier(tier, view, spec)


class Ground:
    """What all runs share: the engine's configuration, the keys of all chunks and what their rows must hold."""

    def __init__(self, model: kvtool.Model, store: LocalStore, broken: str) -> None:
        self.config = engine_config(
            model.directory, {"store": str(store.root), "max_load_seconds": LOAD_SECONDS}
        )
        self.kv_cache = kv_cache_of(self.config, groups_of(self.config))
        kv_cache_utils.init_none_hash(get_hash_fn_by_name("sha256"))
        self.gate = threading.Event()
        self.held: defaultdict[Any, set[bytes]] = defaultdict(set)
        self.broken: set[Any] = set()
        for name in store:
            parts = store.parts(name)
            keys = self._keys(token_ids(parts))
            self.broken |= set(keys) if name == broken else set()
            if name != broken:
                rows = [layer[:, : len(keys) * BLOCK].unflatten(1, (-1, BLOCK)) for layer in cells(parts)]
                for index, key in enumerate(keys):
                    pages = [layer[:, index].transpose(0, 1).contiguous().numpy() for layer in rows]
                    self.held[key].add(b"".join(page.tobytes() for page in pages))
        self.safe = self.held.keys() - self.broken
        self.broken -= self.held.keys()
        foreign = [*self._keys(range(64)), *(make_offload_key(key[:-4], 1) for key in list(self.held)[:2])]
        self.foreign = foreign
        self.keys = [*self.held, *self.broken, *foreign]
        self.row_bytes = len(next(iter(next(iter(self.held.values())))))

    def _keys(self, ids: Any) -> list[Any]:
        return [make_offload_key(block, 0) for block in request(ids, self.config).block_hashes]


class Calls(RuleBasedStateMachine):
    ground: Ground

    def __init__(self) -> None:
        super().__init__()
        self.ground.gate.set()
        stride = -(-self.ground.row_bytes // 4096) * 4096
        self.rows = np.full((N_ROWS, stride), UNTOUCHED, dtype=np.uint8)
        # int8, as vLLM's memory is.
        self.view = memoryview(self.rows.view(np.int8))
        self.tier = built(self.ground.config, self.ground.kv_cache, self.view)
        self.free = set(range(N_ROWS))
        self.jobs: dict[int, tuple[list[Any], list[int], bool, float]] = {}
        self.n_jobs, self.is_open, self.was_slow = 0, True, False
        self._wait_for_the_index()

    def _wait_for_the_index(self) -> None:
        until = time.monotonic() + 20
        for key in [*self.ground.held, *self.ground.broken]:
            while self.tier.lookup(key, ReqContext("w")) is not HIT:
                assert time.monotonic() < until
                time.sleep(0.005)

    @contextmanager
    def bounded(self, seconds: float = BOUND_SECONDS) -> Iterator[None]:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < seconds

    requests = st.sampled_from(["r1", "r2"]).map(ReqContext)

    @rule(context=requests)
    def a_request_begins(self, context: Any) -> None:
        with self.bounded():
            self.tier.on_new_request(context)

    @rule(context=requests)
    def a_request_ends(self, context: Any) -> None:
        with self.bounded():
            self.tier.on_request_finished(context)

    @rule(data=st.data(), context=requests)
    def look_up(self, data: st.DataObject, context: Any) -> None:
        key = data.draw(st.sampled_from(self.ground.keys))
        with self.bounded():
            found = self.tier.lookup(key, context)
        if key in self.ground.foreign:
            assert found is MISS
        elif key in self.ground.safe and not self.was_slow:
            assert found is HIT
        assert found in (HIT, MISS)

    @rule(data=st.data(), context=requests)
    def touch(self, data: st.DataObject, context: Any) -> None:
        with self.bounded():
            self.tier.touch(data.draw(st.lists(st.sampled_from(self.ground.keys))), context)

    @rule(context=requests)
    def a_step_ends(self, context: Any) -> None:
        with self.bounded():
            self.tier.on_schedule_end(ScheduleEndContext((context.req_id,), ()))
            assert not self.tier.has_pending_work()
            assert list(self.tier.take_events()) == []

    orders = st.randoms(use_true_random=False)

    @rule(data=st.data(), context=requests, is_load=st.booleans(), order=orders)
    def submit(self, data: st.DataObject, context: Any, is_load: bool, order: Any) -> None:
        # What is drawn may not depend on which jobs have finished in the meantime.
        some = st.lists(st.sampled_from(self.ground.keys), min_size=1, max_size=12, unique=True)
        self._submit(data.draw(some), context, is_load, order)

    def _submit(self, keys: list[Any], context: Any, is_load: bool, order: Any) -> None:
        free = sorted(self.free)
        if len(free) < len(keys):
            return
        rows = order.sample(free, len(keys))
        self.free -= set(rows)
        self.n_jobs += 1
        job = TransferJob(self.n_jobs, keys, np.array(rows, dtype=np.int32), is_load, context)
        self.jobs[job.job_id] = keys, rows, is_load, time.monotonic()
        with self.bounded():
            (self.tier.submit_load if is_load else self.tier.submit_store)(job)

    @rule(context=requests, order=orders)
    def a_load_comes_too_late(self, context: Any, order: Any) -> None:
        """The store gives its bytes when the load has been reported, and its rows are others'."""
        self.the_store_hangs()
        self._submit(list(self.ground.safe)[:4], context, True, order)
        self.some_finish(LOAD_SECONDS * 1.1)
        self.the_store_goes_on()
        time.sleep(0.02)

    @rule(pause=st.sampled_from([0.0, 0.02]))
    def some_finish(self, pause: float) -> None:
        time.sleep(pause)
        with self.bounded():
            results = list(self.tier.get_finished_jobs())
        for result in results:
            self._check(result)

    def _check(self, result: Any) -> None:
        # Each once: a job that is reported again is not among them.
        keys, rows, is_load, began = self.jobs.pop(result.job_id)
        # On a busy machine a load may have taken too long by itself.
        self.was_slow |= is_load and time.monotonic() - began >= LOAD_SECONDS
        good = keys if result.success else list(result.successful_keys or ())
        assert set(good) <= set(keys)
        assert len(good) == len(keys) or not result.success
        if is_load:
            for key, row in zip(keys, rows, strict=True):
                if key in good:
                    # Of any document that begins so; two prefills round differently.
                    size = self.ground.row_bytes
                    assert self.rows[row, :size].tobytes() in self.ground.held[key]
                    assert (self.rows[row, size:] == UNTOUCHED).all()
            if not self.was_slow:
                assert self.ground.safe & set(keys) <= set(good)
        else:
            assert result.success
            assert (self.rows[rows] == UNTOUCHED).all()
        # The rows are given to others.
        self.rows[rows] = UNTOUCHED
        self.free |= set(rows)

    @rule()
    def the_store_hangs(self) -> None:
        self.ground.gate.clear()
        self.was_slow = True

    @rule()
    def the_store_goes_on(self) -> None:
        self.ground.gate.set()

    @rule()
    def drain(self) -> None:
        with self.bounded(LOAD_SECONDS + BOUND_SECONDS):
            self.tier.drain_jobs()
        for result in list(self.tier.get_finished_jobs()):
            self._check(result)
        assert not self.jobs

    @invariant()
    def rows_of_no_job_are_left_alone(self) -> None:
        assert (self.rows[sorted(self.free)] == UNTOUCHED).all()

    def teardown(self) -> None:
        with self.bounded():
            self.tier.shutdown()
        # Nothing is written any more, whatever was under way; the memory can be freed.
        self.rows[:] = UNTOUCHED
        self.ground.gate.set()
        for result in list(self.tier.get_finished_jobs()):
            self.jobs.pop(result.job_id)
        assert not self.jobs
        self.view.release()
        time.sleep(0.01)
        assert (self.rows == UNTOUCHED).all()


def test_calls_in_any_order(
    tiny: kvtool.Model,
    store_of: Callable[[str], LocalStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = LocalStore(Path(shutil.copytree(store_of("llama").root, tmp_path / "copied")))
    text = "The red apple costs three crowns, said the broken one of the three documents. " * 2
    (tmp_path / "c.md").write_text(text)
    kvtool.prefill([tmp_path / "c.md"], model=tiny, store=store)
    (broken,) = [name for name in store if name.endswith("c.md")]
    ground = Ground(tiny, store, broken)
    path = store.locate_artifact(store[broken].segments[0].variants["raw"].artifact)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    read = Step.spans

    def spans(step: Step) -> Any:
        ground.gate.wait(20)
        return read(step)

    monkeypatch.setattr(Step, "spans", spans)
    # So that what could not be loaded is found again within a run.
    monkeypatch.setattr("kvtool.connectors.avoided.AVOIDED_SECONDS", LOAD_SECONDS)
    machine = type("Machine", (Calls,), {"ground": ground})
    # A run that fails is not repeated for a shorter one: what threads do cannot be repeated.
    few = settings(
        max_examples=20,
        stateful_step_count=30,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=few)
