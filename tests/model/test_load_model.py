"""Sources of a model, the name it then has, and the errors for anything else."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import kvtool
from kvtool.ask import ask
from kvtool.engines.prefiller import Prefiller
from kvtool.errors import MismatchError, ModelError, UsageError
from kvtool.model import model as models
from kvtool.model.embedded.file import embedded_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def copied(directory: Path, target: Path) -> Path:
    shutil.copytree(directory, target)
    return target


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_directory(tiny_dir: Path, tmp_path: Path) -> None:
    model = kvtool.load_model(copied(tiny_dir, tmp_path / "my-model"))
    assert model.name == "my-model"
    assert isinstance(model.model, t.LlamaForCausalLM)
    assert model.dtype_name == "float32"
    assert not model.model.training
    assert kvtool.load_model(str(model.directory)).fingerprint == model.fingerprint


def test_the_fingerprint_is_of_what_is_computed(tiny_dir: Path, tmp_path: Path) -> None:
    plain = kvtool.load_model(tiny_dir)
    moved = copied(tiny_dir, tmp_path / "elsewhere")
    assert kvtool.load_model(moved).fingerprint == plain.fingerprint

    # Sharded, and saved by another version of transformers: the same model.
    plain.model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    plain.tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    edit(tmp_path / "shards", transformers_version="5.0.0", use_cache=False)
    assert kvtool.load_model(tmp_path / "shards").fingerprint == plain.fingerprint

    edit(moved, rms_norm_eps=0.1)
    assert kvtool.load_model(moved).fingerprint != plain.fingerprint
    assert kvtool.load_model(tiny_dir, dtype="bfloat16").fingerprint != plain.fingerprint


def edit(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_dtypes(tiny_dir: Path) -> None:
    model = kvtool.load_model(tiny_dir, dtype="bfloat16")
    assert model.model.dtype == torch.bfloat16
    kv = Prefiller(model, [256]).one([1, 2, 3])
    assert kv.dtype == torch.bfloat16
    with pytest.raises(UsageError, match=r"int8.*float32, bfloat16, float16"):
        kvtool.load_model(tiny_dir, dtype="int8")
    with pytest.raises(UsageError, match="4bit or 8bit"):
        kvtool.load_model(tiny_dir, load_in="2bit")


HUB = """
import kvtool, sys
for source in sys.argv[1:]:
    model = kvtool.load_model(source)
    print(model.name, model.fingerprint, len(model.tokenizer), model.model.config.model_type)
"""


def test_a_hub_id_is_pinned_to_its_commit(tiny_dir: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "hub" / "models--somebody--small" / "snapshots"
    copied(tiny_dir, snapshots / COMMIT)
    other = copied(tiny_dir, snapshots / COMMIT[::-1])
    edit(other, rms_norm_eps=0.1)
    refs = snapshots.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (refs / "v2").write_text(COMMIT[::-1])
    # huggingface_hub reads its environment when it is imported.
    run = subprocess.run(
        [sys.executable, "-c", HUB, "somebody/small", "somebody/small@v2", f"somebody/small@{COMMIT}"],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    main, tag, commit = (line.split() for line in run.stdout.splitlines())
    assert main[0] == f"somebody/small@{COMMIT}"
    assert main[1] == kvtool.load_model(tiny_dir).fingerprint
    assert commit == main
    assert tag[0] == f"somebody/small@{COMMIT[::-1]}"
    assert tag[1] != main[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/directory/here", "no such directory"),
        ("./nowhere", "no such directory"),
        ("nowhere.gguf", "no such GGUF"),
        ("somebody/nothing", "HF_HUB_OFFLINE"),
    ],
)
def test_a_missing_model(source: Any, message: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message) as error:
        kvtool.load_model(source)
    assert source in one_line(error)


def test_the_embedded_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="run kvtool install-model") as error:
        kvtool.load_model()
    one_line(error)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ModelError, match="not a GGUF"):
        kvtool.load_model(tmp_path / "text.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        kvtool.load_model(tmp_path / "model.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        kvtool.load_model(tmp_path / "empty")


@pytest.mark.parametrize("size", [0, 3, 8, 30])
def test_a_gguf_file_that_is_cut_off(size: Any, tmp_path: Path) -> None:
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    (tmp_path / "short.gguf").write_bytes((header + bytes(40))[:size])
    with pytest.raises(ModelError, match=r"short\.gguf"):
        kvtool.load_model(tmp_path / "short.gguf")


@pytest.mark.slow
def test_the_embedded_packages_own_gguf(embedded: kvtool.Model) -> None:
    file = embedded_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVTOOL_CACHE_DIR", str(embedded.directory.parent.parent))
        model = kvtool.load_model(file)
    assert model.name == embedded.name == file.stem
    assert model.fingerprint == embedded.fingerprint


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_gpu(device: Any, tiny_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"no CUDA GPU.*--device cpu"):
        kvtool.load_model(tiny_dir, device=device)


def test_an_unknown_device(tiny_dir: Path) -> None:
    with pytest.raises((ModelError, UsageError), match="abacus"):
        _ = kvtool.load_model(tiny_dir, device="abacus").model


def test_pickled_weights_are_never_loaded(tiny: kvtool.Model, tiny_dir: Path, tmp_path: Path) -> None:
    directory = copied(tiny_dir, tmp_path / "pickled")
    (directory / "model.safetensors").unlink()
    torch.save(tiny.model.state_dict(), directory / "pytorch_model.bin")
    model = kvtool.load_model(directory)
    for use in (lambda: model.fingerprint, lambda: model.model):
        with pytest.raises(ModelError, match="safetensors") as error:
            use()
        one_line(error)


def test_code_that_comes_with_a_model_is_never_run(tiny_dir: Path, tmp_path: Path) -> None:
    directory = copied(tiny_dir, tmp_path / "remote")
    ran = tmp_path / "ran"
    (directory / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edit(directory, model_type="house-made", architectures=["Model"], auto_map=names)
    with pytest.raises(ModelError, match="never runs code") as error:
        _ = kvtool.load_model(directory).model
    assert "remote" in one_line(error)
    assert not ran.exists()


def test_no_tokenizer(tiny_dir: Path, tmp_path: Path) -> None:
    directory = copied(tiny_dir, tmp_path / "mute")
    for path in directory.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"mute.*tokenizer") as error:
        _ = kvtool.load_model(directory).tokenizer
    one_line(error)


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_weights_in_fewer_bits(load_in: Any, save_model: Any, sizes: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes quantizes blocks of 64 weights; a model any smaller has none.
    wider = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    directory = save_model(tmp_path / "model", t.LlamaConfig(**sizes | wider))
    model, plain = kvtool.load_model(directory, load_in=load_in), kvtool.load_model(directory)
    assert model.identity.quantization == f"bitsandbytes-{load_in}"
    assert model.fingerprint != plain.fingerprint
    assert model.model.is_quantized

    (tmp_path / "a.txt").write_text("A document, read by a model of fewer bits.")
    store = kvtool.Store(tmp_path / "store")
    kvtool.prefill([tmp_path / "a.txt"], model=model, store=store)
    (name,) = store
    answers = [ask("Why?", documents=name, model=model, store=store, cached=c) for c in (True, False)]
    assert answers[0].token_ids[:6] == answers[1].token_ids[:6]
    with pytest.raises(MismatchError, match="quantization"):
        store.load(name, plain)


def test_fewer_bits_without_the_package(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        models.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else True
    )
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        _ = kvtool.load_model(tiny_dir, load_in="4bit").model


def test_an_adapter_makes_it_another_model(tiny: kvtool.Model, tiny_dir: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = t.AutoModelForCausalLM.from_pretrained(tiny_dir)
    lora = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
    lora.save_pretrained(tmp_path / "adapter")
    model = kvtool.load_model(tiny_dir, adapter=tmp_path / "adapter")
    assert model.identity.adapters != ()
    assert model.fingerprint != tiny.fingerprint
    again = kvtool.load_model(tiny_dir, adapter=copied(tmp_path / "adapter", tmp_path / "again"))
    assert again.fingerprint == model.fingerprint

    ids = [256, *range(40, 60)]
    here, plain = (Prefiller(m, ids[:1]).one(ids[1:]) for m in (model, tiny))
    with torch.no_grad():
        expected = lora.eval().base_model.model(torch.tensor([ids]), use_cache=True).past_key_values
    for a, b, c in zip(here.layers, expected.layers, plain.layers, strict=True):
        torch.testing.assert_close(a.values, b.values[0, :, 1:], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(a.values, c.values, atol=1e-2)


def test_adapters_that_are_none(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ModelError, match="adapter_config"):
        kvtool.load_model(tiny_dir, adapter=tmp_path)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"kvtool\[adapters\]"):
        kvtool.load_model(tiny_dir, adapter=tmp_path)
