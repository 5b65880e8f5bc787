"""Weights are those of the files: transformers fills in nothing, and what it leaves out is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

import kvtool
from kvtool.errors import ModelError
from tests.model.test_checkpoint import adapter, copied, edit

__all__ = ["adapter"]

KEYS = "model.layers.0.self_attn.k_proj.weight"


def change(file: Path, *, without: str = "", **tensors: torch.Tensor) -> None:
    kept = {name: x for name, x in load_file(file).items() if name != without}
    save_file(kept | tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "missing", [KEYS, "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
)
def test_a_missing_tensor_is_refused_by_name(missing: str, tiny_dir: Path, tmp_path: Path) -> None:
    directory = copied(tiny_dir, tmp_path / "model")
    change(directory / "model.safetensors", without=missing)
    model = kvtool.load_model(directory)
    with pytest.raises(ModelError, match=rf"model: .*lack {missing}, .*download or convert"):
        _ = model.model


def test_many_missing_tensors_are_counted(tiny_dir: Path, tmp_path: Path) -> None:
    directory = copied(tiny_dir, tmp_path / "model")
    edit(directory / "config.json", num_hidden_layers=5, layer_types=None)
    with pytest.raises(ModelError, match=r"lack model\.layers\.3\..* and 13 more tensors"):
        _ = kvtool.load_model(directory).model


def test_an_adapters_missing_tensor_is_refused(tiny_dir: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    missing = sorted(load_file(file))[0]
    change(file, without=missing)
    with pytest.raises(ModelError, match=r"adapter: .*lack .*lora_A"):
        _ = kvtool.load_model(tiny_dir, adapter=adapter).model


def test_a_tied_head_is_not_missing(save_model: Any, sizes: Any, tmp_path: Path) -> None:
    directory = save_model(tmp_path / "tied", t.LlamaConfig(**sizes, tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")
    model = kvtool.load_model(directory).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tensors_without_a_place_are_named(
    tiny_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = copied(tiny_dir, tmp_path / "model")
    change(directory / "model.safetensors", **{"model.layers.0.gate.bias": torch.zeros(3)})
    with caplog.at_level(logging.WARNING):
        _ = kvtool.load_model(directory).model
    assert "model: model.layers.0.gate.bias are not used" in caplog.text
