"""What a serde is configured with, and a calibrated recipe over a store's documents."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from torch import Tensor

import kvtool
from kvtool.connectors.lmcache import known_chunks
from kvtool.connectors.lmcache.chunk import ChunkKey, unpack
from kvtool.connectors.lmcache.known_chunks import HashChunks
from kvtool.connectors.lmcache.options import SerdeOptions
from kvtool.errors import StoreError, UsageError
from kvtool.store.backends.backend import Unreachable
from kvtool.store.headers import segment_headers
from kvtool.store.local import LocalStore
from tests.connectors.lmcache.pieces import piece_of

CHUNK = 16
FINE = {"step": 0.001, "power": 0.0}


def hash_by(algorithm: str, chunk_size: int) -> HashChunks:
    """Chained hashes, as LMCache's are; those of its own are used in test_serde.py."""
    assert algorithm == "blake3"

    def hashes(token_ids: Sequence[int]) -> list[bytes]:
        chained, found = b"", []
        for start in range(0, len(token_ids) - chunk_size + 1, chunk_size):
            chained = blake3(chained + repr(token_ids[start : start + chunk_size]).encode()).digest()
            found.append(chained)
        return found

    return hashes


@pytest.fixture(scope="module")
def calibrated(prefilled: Path, tiny: kvtool.Model, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A store with a calibration of klt, and the variant that it gives with ``FINE``."""
    store = LocalStore(shutil.copytree(prefilled, tmp_path_factory.mktemp("lmcache") / "kv-store"))
    kvtool.compress(store, recipe="klt", model=tiny, **FINE)
    return store


def options(store: LocalStore, **more: Any) -> SerdeOptions:
    return SerdeOptions.parse({"recipe": "klt", "store": str(store), "chunk_size": CHUNK, **more})


def chunks(store: LocalStore, document: str, variant: str = "raw") -> list[tuple[ChunkKey, Tensor]]:
    """A document's chunks as an engine that has computed them hands them over, with LMCache's name of the model."""
    piece = piece_of(store, document, variant, chunk=CHUNK)
    kv, name = piece.kv(store), store[document].model["name"]
    keys = [ChunkKey(chunk_hash, name) for chunk_hash in hash_by("blake3", CHUNK)(piece.token_ids)]
    return list(zip(keys, kv.split(CHUNK, dim=2), strict=True))


def test_chunks_of_documents_are_coded_by_their_models_calibration(calibrated: LocalStore) -> None:
    coder = options(calibrated, parameters=FINE).coder(hash_by)
    assert coder.heads == 2
    for name in calibrated:
        variant = [chunk for _, chunk in chunks(calibrated, name, "klt")]
        for number, (key, chunk) in enumerate(chunks(calibrated, name)):
            data = coder.encode(chunk, key)
            about = unpack(data, key)[1]
            assert about["positions"] == {"start": number * CHUNK}
            assert [stage["name"] for stage in about["pipeline"]["keys"]][:3] == ["sinks", "unrope", "klt"]
            out = torch.zeros_like(chunk)
            coder.decode_into(data, out, key)
            # As near as kvtool's own variant of the same tokens; the first of each chunk is predicted from itself alone.
            assert (out - chunk).norm() <= 1.2 * (variant[number] - chunk).norm()


def test_fused_chunks_of_documents_are_coded_by_the_calibration_too(calibrated: LocalStore) -> None:
    coder = options(calibrated, parameters=FINE, fused=True).coder(hash_by)
    (key, chunk), *_ = chunks(calibrated, "docs/b.md")
    keys, values = (plane.unflatten(2, (coder.heads, -1)) for plane in chunk)
    fused = torch.cat([keys, values], dim=3).flatten(2)
    data = coder.encode(fused, key)
    assert unpack(data, key)[1]["tokens_known"] is True
    out, split = torch.zeros_like(fused), torch.zeros_like(chunk)
    coder.decode_into(data, out, key)
    of_two = options(calibrated, parameters=FINE).coder(hash_by)
    of_two.decode_into(of_two.encode(chunk, key), split, key)
    both = [plane.unflatten(2, (coder.heads, -1)) for plane in split]
    assert torch.equal(out, torch.cat(both, dim=3).flatten(2))


def test_chunks_that_no_document_has_are_kept_as_they_are(calibrated: LocalStore) -> None:
    coder = options(calibrated).coder(hash_by)
    (key, chunk), *_ = chunks(calibrated, "docs/a.md")
    for other in (ChunkKey(b"\x02" * 32, key.model_name), ChunkKey(key.chunk_hash, "org/other")):
        data = coder.encode(chunk, other)
        assert unpack(data, other)[1]["tokens_known"] is False
        out = torch.zeros_like(chunk)
        coder.decode_into(data, out, other)
        assert torch.equal(out, chunk)


@pytest.fixture
def changing(calibrated: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A copy of the store, in the working directory, whose changes are looked for each time."""
    monkeypatch.setattr("kvtool.store.prefix_index.FRESH", 0.0)
    monkeypatch.chdir(tmp_path)
    return LocalStore(shutil.copytree(str(calibrated), tmp_path / "kv-store"))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never comes to that"
        time.sleep(0.005)


def test_documents_that_come_and_go_are_followed(changing: LocalStore, tiny: kvtool.Model) -> None:
    coder = options(changing).coder(hash_by)
    assert coder.find(ChunkKey(b"\x02" * 32, tiny.name)) is None
    # Two documents of one text: their chunks are known as long as one of them is there.
    for name in ("late.md", "same.md"):
        Path(name).write_text("The ferry to the island leaves at noon.")
    assert not kvtool.prefill(["late.md", "same.md"], model=tiny, store=changing).problems
    (key, _), *_ = chunks(changing, "late.md")
    ids = torch.cat([part.token_ids for part in changing.parts("late.md")]).tolist()
    until(lambda: coder.find(key))
    found = coder.find(key)
    assert found is not None
    assert found.token_ids.tolist() == ids[:CHUNK]
    known = coder.find.__self__
    until(lambda: {"late.md", "same.md"} <= known._documents.keys())
    changing.remove("late.md")
    until(lambda: coder.find(key) and "late.md" not in known._documents)
    changing.remove("same.md")
    until(lambda: coder.find(key) is None)


def test_while_the_store_cannot_be_reached_chunks_are_coded_without_waiting(
    changing: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder = options(changing).coder(hash_by)
    (key, chunk), *_ = chunks(changing, "docs/a.md")
    come, asked = threading.Event(), threading.Event()

    def hang(store: LocalStore) -> Iterator[str]:
        asked.set()
        come.wait(30)
        raise Unreachable("http://store", "cannot be reached")

    monkeypatch.setattr(LocalStore, "__iter__", hang)
    until(lambda: coder.find(key) is not None and asked.is_set())
    # It hangs now. Known tokens stay known, and others are coded otherwise.
    other = ChunkKey(b"\x02" * 32, key.model_name)
    for _ in range(2):
        assert unpack(coder.encode(chunk, key), key)[1]["tokens_known"] is True
        assert unpack(coder.encode(chunk, other), other)[1]["tokens_known"] is False
        # And now each look at it fails.
        come.set()


def test_a_document_that_could_not_be_read_is_found_later(
    changing: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = [StoreError("docs/a.md", "network hiccup")] * 2

    def headers(*given: Any) -> Any:
        if fails and given[1].name == "docs/a.md":
            raise fails.pop()
        return segment_headers(*given)

    monkeypatch.setattr(known_chunks, "segment_headers", headers)
    coder = options(changing).coder(hash_by)
    (key, _), *_ = chunks(changing, "docs/a.md")
    until(lambda: coder.find(key))
    assert not fails


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "serde: recipe: is missing"),
        ({"recipe": "kivi", "bits": 4}, "serde: bits: is no option"),
        ({"recipe": "kivi", "heads": "8"}, "serde: heads: is '8'"),
        ({"recipe": "kivi", "heads": True}, "serde: heads: is True"),
        ({"recipe": "kivi", "room": 1.5}, "serde: room: is 1.5"),
        ({"recipe": "kivi", "parameters": [4]}, "serde: parameters"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        SerdeOptions.parse(given)
    assert str(error.value).startswith(named)


def test_a_recipe_gets_the_store_that_it_needs_and_no_other(calibrated: LocalStore, prefilled: Path) -> None:
    for given, named in [
        ({"recipe": "klt"}, "store: is missing"),
        ({"recipe": "kivi", "store": str(calibrated)}, "needs no calibration"),
        ({"recipe": "klt", "store": str(calibrated), "calibration": "0" * 64}, "is not in"),
        ({"recipe": "klt", "store": str(prefilled)}, "of method 'klt' is not in"),
    ]:
        with pytest.raises(UsageError, match=named):
            SerdeOptions.parse(given).coder(hash_by)
