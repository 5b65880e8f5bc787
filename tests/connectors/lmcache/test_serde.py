"""kvtool's serde through LMCache's own classes: its processor, its wrapper around an adapter, its storage manager.

The contract is that of LMCache 0.5.6's own tests of its serdes: what is stored comes back by the same key, what fails is a
miss, and no buffer stays behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("lmcache")

from lmcache.v1.distributed.api import GroupedObjectKeys, MemoryLayoutDesc, ObjectKey, PrefetchTaskSpec
from lmcache.v1.distributed.config import (
    EvictionConfig,
    L1ManagerConfig,
    L1MemoryManagerConfig,
    StorageManagerConfig,
)
from lmcache.v1.distributed.l2_adapters.config import L2AdaptersConfig
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2AdapterConfig
from lmcache.v1.distributed.l2_adapters.mock_l2_adapter import MockL2Adapter
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig
from lmcache.v1.distributed.serde import (
    SerdeConfig,
    SerdeProcessor,
    create_serde_processor,
    serialized_layout_desc,
)
from lmcache.v1.distributed.storage_manager import StorageManager
from lmcache.v1.memory_management import MemoryObj, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.multiprocess.token_hasher import TokenHasher

from kvtool.connectors.lmcache import serde
from kvtool.connectors.lmcache.chunk import unpack
from kvtool.connectors.lmcache.plugin import Adapter
from kvtool.errors import UsageError
from kvtool.store.local import LocalStore
from tests.connectors.lmcache.pieces import piece_of
from tests.connectors.lmcache.running import CHUNK, FINE
from tests.connectors.shown import shown

SHAPE = torch.Size([2, 2, CHUNK, 16])
MIB = 1 << 20


def key(number: int, model: str = "tiny") -> ObjectKey:
    return ObjectKey(number.to_bytes(32, "big"), model, 0x01000100)


def memory(shape: torch.Size, dtype: torch.dtype) -> MemoryObj:
    nbytes = shape.numel() * dtype.itemsize
    about = MemoryObjMetadata(shape, dtype, -1, nbytes, 1, shapes=[shape], dtypes=[dtype])
    # As memory that was used before.
    return TensorMemoryObj(torch.full((nbytes,), 0xFF, dtype=torch.uint8), about, None)


def finished(query: Callable[[int], bool | None], task: int) -> bool:
    until = time.monotonic() + 30
    while (result := query(task)) is None:
        assert time.monotonic() < until, "a task of the serde never ends"
        time.sleep(0.001)
    return result


@pytest.fixture(scope="module")
def processor() -> Iterator[SerdeProcessor]:
    made = create_serde_processor(
        SerdeConfig(serde.NAME, {"recipe": "kivi", "parameters": {"bits": 8, "group": 4}})
    )
    yield made
    made.close()


@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    layers=st.integers(1, 3),
    tokens=st.integers(1, 40),
    channels=st.integers(1, 24),
    both=st.booleans(),
    number=st.integers(0, 1 << 63),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_layout_comes_back(
    processor: SerdeProcessor,
    dtype: torch.dtype,
    layers: int,
    tokens: int,
    channels: int,
    both: bool,
    number: int,
) -> None:
    shape = torch.Size([*([2] if both else []), layers, tokens, channels])
    source, target = memory(shape, dtype), memory(shape, dtype)
    source.tensor.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(number)))
    layout = serialized_layout_desc(MemoryLayoutDesc([shape], [dtype]), processor)
    stored = memory(layout.shapes[0], torch.uint8)
    assert finished(
        processor.query_serialize_result, processor.submit_serialize([source], [stored], [key(number)])
    )
    # Chunks of kivi are of one size, so that any adapter loads them.
    assert stored.get_size() == layout.shapes[0].numel()
    load = processor.submit_deserialize([stored], [target], [key(number)])
    assert finished(processor.query_deserialize_result, load)
    difference = (target.tensor.float() - source.tensor.float()).abs().max()
    assert difference <= 0.04 * max(1.0, source.tensor.float().abs().max().item())


def test_what_is_not_this_keys_chunk_is_a_miss_and_leaves_no_values(processor: SerdeProcessor) -> None:
    source, target = memory(SHAPE, torch.float32), memory(SHAPE, torch.float32)
    source.tensor.copy_(torch.randn(SHAPE))
    layout = serialized_layout_desc(MemoryLayoutDesc([SHAPE], [torch.float32]), processor)
    stored = memory(layout.shapes[0], torch.uint8)
    finished(processor.query_serialize_result, processor.submit_serialize([source], [stored], [key(1)]))
    before = target.raw_data.clone()

    def loads(chunk: MemoryObj, into: MemoryObj, under: ObjectKey) -> bool:
        return finished(
            processor.query_deserialize_result, processor.submit_deserialize([chunk], [into], [under])
        )

    assert not loads(stored, target, key(2))
    assert not loads(stored, target, key(1, "other"))
    assert not loads(stored, memory(SHAPE, torch.bfloat16), key(1))
    assert not loads(stored, memory(torch.Size([2, 2, 16, CHUNK]), torch.float32), key(1))
    for offset in (0, 9, 20, 100, 2000):
        flipped = memory(layout.shapes[0], torch.uint8)
        flipped.raw_data.copy_(stored.raw_data)
        flipped.raw_data[offset] ^= 1
        assert not loads(flipped, target, key(1)), offset
    assert torch.equal(target.raw_data, before)
    assert loads(stored, target, key(1))


def test_what_cannot_be_coded_is_refused_when_it_is_stored_not_before(processor: SerdeProcessor) -> None:
    for shapes, dtypes in [
        ([SHAPE, SHAPE], [torch.float32, torch.float32]),
        ([torch.Size([5])], [torch.float32]),
        ([SHAPE], [torch.uint8]),
    ]:
        layout = serialized_layout_desc(MemoryLayoutDesc(shapes, dtypes), processor)
        source, stored = memory(shapes[0], dtypes[0]), memory(layout.shapes[0], torch.uint8)
        source.meta.shapes, source.meta.dtypes = shapes, dtypes
        task = processor.submit_serialize([source], [stored], [key(1)])
        assert not finished(processor.query_serialize_result, task)


def test_the_door_opens_any_adapter() -> None:
    adapter = Adapter({"type": "mock", "max_size_gb": 1, "mock_bandwidth_gb": 1})
    assert type(adapter) is MockL2Adapter
    adapter.close()
    with pytest.raises(UsageError, match="put it beside adapter_params"):
        Adapter({"type": "mock", "serde": {"type": serde.NAME}})


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Callable[..., StorageManager]]:
    """Storage managers with one adapter over files in tmp_path/l2: LMCache's own, or that which loads kvtool's serde."""
    made: list[StorageManager] = []

    def make(options: dict[str, Any], own: bool = False) -> StorageManager:
        files = {"base_path": str(tmp_path / "l2")}
        if own:
            config: Any = FSL2AdapterConfig.from_dict(files)
        else:
            config = PluginL2AdapterConfig.from_dict(
                {
                    "module_path": "kvtool.connectors.lmcache.plugin",
                    "class_name": "Adapter",
                    "adapter_params": {"type": "fs", **files},
                }
            )
        config.serde_config = SerdeConfig(serde.NAME, options)
        l1 = L1MemoryManagerConfig(size_in_bytes=16 * MIB, use_lazy=False, init_size_in_bytes=16 * MIB)
        made.append(
            StorageManager(
                StorageManagerConfig(
                    l1_manager_config=L1ManagerConfig(memory_config=l1),
                    eviction_config=EvictionConfig(eviction_policy="LRU"),
                    l2_adapter_config=L2AdaptersConfig(adapters=[config]),
                )
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never comes to that"
        time.sleep(0.01)


def store_all(manager: StorageManager, chunks: dict[ObjectKey, torch.Tensor], folder: Path) -> None:
    """Writes chunks to memory, waits until they are in files of ``folder``, and forgets those in memory."""
    first, files = next(iter(chunks.values())), len(list(folder.glob("*.data")))
    reserved = manager.reserve_write(list(chunks), MemoryLayoutDesc([first.shape], [first.dtype]))
    for name, chunk in chunks.items():
        reserved[name].tensor.copy_(chunk)
    manager.finish_write(list(chunks))
    until(lambda: len(list(folder.glob("*.data"))) == files + len(chunks))
    until(lambda: manager.report_status()["store_controller"]["in_flight_task_count"] == 0)
    manager.clear(force=True)


def load_all(
    manager: StorageManager, keys: list[ObjectKey], layout: MemoryLayoutDesc
) -> list[torch.Tensor] | None:
    """The chunks as LMCache's own look-up finds them; None unless it finds all."""
    handle = manager.submit_prefetch_task(PrefetchTaskSpec([GroupedObjectKeys(keys, 0, layout)]))
    found: list[Any] = []
    until(lambda: bool(found.append(manager.query_prefetch_status(handle)) or found[-1]))
    if found[-1].hit_cells[0].popcount() < len(keys):
        return None
    with manager.read_prefetched_results(keys) as objects:
        chunks = [each.tensor.clone() for each in objects]
    manager.finish_read_prefetched(keys)
    until(lambda: manager.report_status()["l1_manager"]["memory_used_bytes"] == 0)
    return chunks


def chunks_of(
    store: LocalStore, document: str, variant: str = "raw", model: str = "tiny"
) -> dict[ObjectKey, torch.Tensor]:
    """A document's chunks, by the keys that LMCache gives them."""
    piece = piece_of(store, document, variant, chunk=CHUNK)
    hashes = TokenHasher(CHUNK, "blake3").compute_chunk_hashes(piece.token_ids)
    keys = [ObjectKey(each, model, 0x01000100) for each in hashes]
    return dict(zip(keys, piece.kv(store).split(CHUNK, dim=2), strict=True))


def layout_of(chunks: dict[ObjectKey, torch.Tensor]) -> MemoryLayoutDesc:
    first = next(iter(chunks.values()))
    return MemoryLayoutDesc([first.shape], [first.dtype])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"recipe": "kivi", "parameters": {"bits": 8, "group": 8}, "heads": 2}, 0.02),
        ({"recipe": "cachegen", "parameters": {"level": 1}}, 0.05),
        ({"recipe": "lossless"}, 0.0),
    ],
)
def test_chunks_go_through_files_and_come_back(
    options: dict[str, Any],
    error: float,
    documents: LocalStore,
    manager: Callable[..., StorageManager],
    tmp_path: Path,
) -> None:
    chunks, made = chunks_of(documents, "a.md"), manager(options)
    store_all(made, chunks, tmp_path / "l2")
    assert len(list((tmp_path / "l2").glob("*.data"))) == len(chunks) >= 5
    loaded = load_all(made, list(chunks), layout_of(chunks))
    assert loaded is not None
    for chunk, back in zip(chunks.values(), loaded, strict=True):
        assert (back - chunk).norm() <= error * chunk.norm()
    shown("lmcache", "Llama, chunks by the serde", options["recipe"])


def test_klt_codes_documents_as_their_variant_and_keeps_other_chunks(
    documents: LocalStore, manager: Callable[..., StorageManager], tmp_path: Path
) -> None:
    made = manager({"recipe": "klt", "parameters": FINE, "store": str(documents), "chunk_size": CHUNK})
    known, other = chunks_of(documents, "b.md"), chunks_of(documents, "b.md", model="other")
    store_all(made, known, tmp_path / "l2")
    loaded = load_all(made, list(known), layout_of(known))
    assert loaded is not None
    variant = chunks_of(documents, "b.md", "klt")
    for name, back in zip(known, loaded, strict=True):
        assert (back - known[name]).norm() <= 1.2 * (variant[name] - known[name]).norm()
    store_all(made, other, tmp_path / "l2")
    kept = load_all(made, list(other), layout_of(other))
    assert kept is not None
    assert all(torch.equal(chunk, back) for chunk, back in zip(other.values(), kept, strict=True))
    for (name, is_known), path in zip(
        [(each, each.model_name == "tiny") for each in (*known, *other)],
        [
            next((tmp_path / "l2").glob(f"{each.model_name}@*{each.chunk_hash.hex()}.data"))
            for each in (*known, *other)
        ],
        strict=True,
    ):
        assert unpack(path.read_bytes(), serde.chunk_key(name))[1]["tokens_known"] is is_known
    shown("lmcache", "Llama, chunks by the serde", "klt")


def test_a_file_that_has_changed_is_a_miss(
    documents: LocalStore, manager: Callable[..., StorageManager], tmp_path: Path
) -> None:
    chunks, made = chunks_of(documents, "a.md"), manager({"recipe": "cachegen"})
    store_all(made, chunks, tmp_path / "l2")
    first, second, *_ = paths = sorted((tmp_path / "l2").glob("*.data"))
    before = {path: path.read_bytes() for path in paths}
    for path, data in {
        first: before[first][:-1] + bytes([before[first][-1] ^ 1]),
        second: before[second][: len(before[second]) // 2],
    }.items():
        path.write_bytes(data)
        assert load_all(made, list(chunks), layout_of(chunks)) is None
        path.write_bytes(before[path])
    # Each is another's.
    first.write_bytes(before[second])
    second.write_bytes(before[first])
    assert load_all(made, list(chunks), layout_of(chunks)) is None
    first.write_bytes(before[first])
    second.write_bytes(before[second])
    assert load_all(made, list(chunks), layout_of(chunks)) is not None


@pytest.mark.parametrize(
    ("options", "hits"),
    [
        ({"recipe": "kivi"}, True),
        ({"recipe": "cachegen", "room": 0.5}, True),
        # What docs/how-to/lmcache.md warns of; through kvtool's door they are loaded.
        ({"recipe": "cachegen"}, False),
    ],
)
def test_lmcaches_own_files_load_chunks_of_one_size_alone(
    options: dict[str, Any],
    hits: bool,
    documents: LocalStore,
    manager: Callable[..., StorageManager],
    tmp_path: Path,
) -> None:
    chunks, made = chunks_of(documents, "a.md"), manager(options, own=True)
    store_all(made, chunks, tmp_path / "l2")
    assert (load_all(made, list(chunks), layout_of(chunks)) is not None) is hits


def test_chunks_with_nan_are_not_stored(processor: SerdeProcessor) -> None:
    source = memory(SHAPE, torch.float32)
    source.tensor.fill_(float("nan"))
    layout = serialized_layout_desc(MemoryLayoutDesc([SHAPE], [torch.float32]), processor)
    stored = memory(layout.shapes[0], torch.uint8)
    task = processor.submit_serialize([source], [stored], [key(1)])
    assert not finished(processor.query_serialize_result, task)
