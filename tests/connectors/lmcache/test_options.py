"""What a serde is configured with, and a calibrated recipe over a store's documents."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from torch import Tensor

import kvtool
from kvtool.connectors.lmcache.chunk import ChunkKey, unpack
from kvtool.connectors.lmcache.known_chunks import HashChunks
from kvtool.connectors.lmcache.options import SerdeOptions
from kvtool.connectors.lmcache.piece import Piece
from kvtool.errors import UsageError
from kvtool.store.local import LocalStore

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
    piece = Piece(document, store.parts(document, variant), CHUNK)
    kv, name = piece.kv(), store[document].model["name"]
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


def test_a_document_that_comes_later_is_found(
    calibrated: LocalStore, tiny: kvtool.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtool.connectors.lmcache.known_chunks.FRESH", 0.0)
    monkeypatch.chdir(tmp_path)
    store = LocalStore(shutil.copytree(str(calibrated), tmp_path / "kv-store"))
    coder = options(store).coder(hash_by)
    assert coder.find(ChunkKey(b"\x02" * 32, tiny.name)) is None
    Path("late.md").write_text("The ferry to the island leaves at noon.")
    assert not kvtool.prefill("late.md", model=tiny, store=store).problems
    (key, _), *_ = chunks(store, "late.md")
    found = coder.find(key)
    assert found is not None
    assert (
        found.token_ids.tolist() == torch.cat([p.token_ids for p in store.parts("late.md")]).tolist()[:CHUNK]
    )


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
