"""Embeddings of models that were used here: found by content, in this process and the next, and only while they are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kvtool.codecs import CodecError
from kvtool.codecs.klt.embeddings import embedding
from kvtool.model import embedding as embeddings
from kvtool.model.fingerprint import file_tensors


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVTOOL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(embeddings, "_known", {})
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embed": torch.randn(50, 6, generator=generator).bfloat16(),
        "head": torch.randn(50, 6, generator=generator).bfloat16(),
        "small": torch.randn(49, 6, generator=generator),
        "bias": torch.randn(50, generator=generator),
        "codes": torch.ones(50, 6, dtype=torch.int8),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path


def test_what_may_be_an_embedding_is_found_by_its_content(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = file_tensors(file)
    embeddings.remember(file, tensors, 50)
    wanted = tensors["embed"][2]
    found = embeddings.find(wanted)
    assert found is not None
    assert embeddings.digest_of(found.float()) == wanted
    assert embeddings.digest_of(found.float() + 1) is None
    assert {name for name in tensors if embeddings.find(tensors[name][2]) is not None} == {"embed", "head"}
    # The next process has nothing but the cache directory.
    monkeypatch.setattr(embeddings, "_known", {})
    again = embeddings.find(wanted)
    assert again is not None
    assert torch.equal(again, found)


def test_a_model_that_was_moved_is_found_where_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = file_tensors(file)
    embeddings.remember(file, tensors, 50)
    moved = file.rename(file.with_name("moved.safetensors"))
    monkeypatch.setattr(embeddings, "_known", {})
    assert embeddings.find(tensors["embed"][2]) is None
    embeddings.remember(moved, file_tensors(moved), 50)
    monkeypatch.setattr(embeddings, "_known", {})
    assert embeddings.find(tensors["embed"][2]) is not None


def test_a_file_that_changed_has_it_no_longer(file: Path) -> None:
    tensors = file_tensors(file)
    embeddings.remember(file, tensors, 50)
    save_file({"embed": torch.zeros(50, 6)}, file)
    assert embeddings.find(tensors["embed"][2]) is None
    file.unlink()
    assert embeddings.find(tensors["head"][2]) is None
    with pytest.raises(CodecError, match=r"^it: needs the input embedding .*--model"):
        embedding(tensors["embed"][2], "it")
