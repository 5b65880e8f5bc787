"""A model's directory holds what the identity covers, or the model is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import kvtool
from kvtool.errors import ModelError


def copied(directory: Path, target: Path) -> Path:
    shutil.copytree(directory, target)
    return target


def edit(path: Path, **changes: object) -> None:
    fields = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(fields | changes))


@pytest.fixture
def adapter(tiny_dir: Path, tmp_path: Path) -> Path:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = t.AutoModelForCausalLM.from_pretrained(tiny_dir)
    lora = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    lora.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_beside_the_weights_is_refused(tiny_dir: Path, adapter: Path, tmp_path: Path) -> None:
    both = copied(tiny_dir, tmp_path / "both")
    shutil.copytree(adapter, both, dirs_exist_ok=True)
    with pytest.raises(ModelError, match=r"adapter_config\.json.*--adapter"):
        kvtool.load_model(both)
    # An adapter alone would make transformers load the model that it names.
    with pytest.raises(ModelError, match=r"adapter_config\.json.*--adapter"):
        kvtool.load_model(adapter)


def test_the_adapters_pickle_is_never_loaded(tiny_dir: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        kvtool.load_model(tiny_dir, adapter=adapter)


@pytest.mark.parametrize(
    ("file", "field", "value", "chosen"),
    [
        ("config.json", "transformers_weights", "other.safetensors", "other.safetensors"),
        ("config.json", "configuration_files", ["config.4.0.0.json"], "config.4.0.0.json"),
        ("tokenizer_config.json", "fast_tokenizer_files", ["tokenizer.4.0.0.json"], "tokenizer.4.0.0.json"),
    ],
)
def test_fields_that_name_other_files_are_refused(
    file: str, field: str, value: Any, chosen: str, tiny_dir: Path, tmp_path: Path
) -> None:
    directory = copied(tiny_dir, tmp_path / "model")
    edit(directory / file, **{field: value})
    with pytest.raises(ModelError, match=rf"{file}: {field} .*{chosen}"):
        kvtool.load_model(directory)


def test_fields_that_name_the_usual_files_are_no_fault(tiny: kvtool.Model, tmp_path: Path) -> None:
    directory = copied(tiny.directory, tmp_path / "model")
    # Of another version of transformers than this one.
    edit(directory / "config.json", configuration_files=["config.99.0.0.json"])
    edit(directory / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.99.0.0.json"])
    assert kvtool.load_model(directory).model.config.num_hidden_layers == 3


def test_a_distributed_checkpoint_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    directory = copied(tiny_dir, tmp_path / "model")
    shutil.copy(directory / "model.safetensors", directory / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(ModelError, match="distributed checkpoint"):
        kvtool.load_model(directory)
