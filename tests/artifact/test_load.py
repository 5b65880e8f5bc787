"""A cache is handed to the model that made it and to no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kvtool
from kvtool.artifact.load import load_cache
from kvtool.artifact.write import digest_tensor
from kvtool.errors import ArtifactError, MismatchError, ModelError
from kvtool.store.local import LocalStore

MakeModel = Callable[..., Path]


def load(directory: Path, **options: Any) -> kvtool.Model:
    return kvtool.load_model(directory, device="cpu", **options)


def test_a_loaded_cache_stands_for_prefix_and_document(store: LocalStore, tiny: kvtool.Model) -> None:
    document = store["docs/a.md"]
    cache = store.load("docs/a.md", tiny)
    assert document.prefix_artifact is not None
    parts = [store.open_artifact(document.prefix_artifact).kv(), store.read("docs/a.md")]
    assert cache.token_ids.tolist() == [int(i) for part in parts for i in part.token_ids]
    assert cache.get_seq_length() == len(cache.token_ids)
    for index, layer in enumerate(cache.layers):
        keys = torch.cat([part.layers[index].keys for part in parts], 1)
        values = torch.cat([part.layers[index].values for part in parts], 1)
        assert digest_tensor(layer.keys[0]) == digest_tensor(keys)
        assert digest_tensor(layer.values[0]) == digest_tensor(values)


def test_a_compressed_variant_loads_as_it_decodes(store: LocalStore, tiny: kvtool.Model) -> None:
    kvtool.compress(store, recipe="kivi", bits=4)
    kv = store.read("c.txt", variant="kivi")
    cache = store.load("c.txt", tiny, variant="kivi")
    start = cache.get_seq_length() - kv.n_tokens
    assert torch.equal(cache.layers[1].keys[0][:, start:], kv.layers[1].keys)


@pytest.mark.parametrize("part", ["document", "prefix"])
def test_a_broken_artifact_gives_no_cache(store: LocalStore, tiny: kvtool.Model, part: str) -> None:
    document = store["c.txt"]
    variant = document.segments[0].variants["raw"] if part == "document" else document.prefix_artifact
    assert variant is not None
    path = store.path_of(variant)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="has changed since it was written"):
        store.load("c.txt", tiny)


# Another model


def with_file(directory: Path, name: str, change: Callable[[Any], object]) -> None:
    path = directory / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def one_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def token_added(directory: Path) -> None:
    with_file(directory, "tokenizer.json", lambda t: t["model"]["vocab"].update({"the": 270}))


def theta(directory: Path) -> None:
    with_file(directory, "config.json", lambda c: c["rope_parameters"].update(rope_theta=5000.0))


def template(directory: Path) -> None:
    path = directory / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|end|>", ""))


def epsilon(directory: Path) -> None:
    with_file(directory, "config.json", lambda c: c.update(rms_norm_eps=1e-5))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (one_weight, "weights"),
        (token_added, "tokenizer"),
        (theta, "rope"),
        (template, "chat_template"),
        (epsilon, "config"),
    ],
)
def test_another_model_is_refused_by_the_field_that_differs(
    store: LocalStore, tiny_dir: Path, tmp_path: Path, change: Callable[[Path], None], field: str
) -> None:
    other = Path(shutil.copytree(tiny_dir, tmp_path / "other"))
    change(other)
    with pytest.raises(
        MismatchError, match=rf"made by another model: .*its {field} is .*Load the model"
    ) as caught:
        store.load("c.txt", load(other))
    assert "\n" not in str(caught.value)
    if change is theta:
        assert "5000.0" in str(caught.value)
    else:
        assert str(caught.value).count("its ") == 1


def test_another_dtype_is_refused(store: LocalStore, tiny_dir: Path) -> None:
    with pytest.raises(MismatchError, match=r"its dtype is float32, that of tiny is bfloat16"):
        store.load("c.txt", load(tiny_dir, dtype="bfloat16"))


def test_another_prefix_is_refused(store: LocalStore, tiny: kvtool.Model) -> None:
    other = LocalStore("other")
    kvtool.prefill(["c.txt"], model=tiny, store=other, system="Be brief.")
    prefix = store["c.txt"].prefix_artifact
    assert prefix is not None
    with pytest.raises(MismatchError, match="was prefilled under another prefix"):
        load_cache([store.open_artifact(prefix), other.open("c.txt")], tiny)
    with pytest.raises(MismatchError, match="was prefilled under another prefix"):
        load_cache([other.open("c.txt")], tiny)


def test_prefill_does_not_replace_another_prefixs_or_models_document(
    store: LocalStore, tiny: kvtool.Model, tiny_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_dir, tmp_path / "other"))
    one_weight(other)
    document = store["c.txt"]
    for what, model, options in (("prefix", tiny, {"no_prefix": True}), ("model", load(other), {})):
        report = kvtool.prefill(["c.txt"], model=model, store=store, **options)  # type: ignore[arg-type]
        assert f"holds it for another {what}" in str(report.problems[0])
        assert "--replace" in str(report.problems[0])
        assert store["c.txt"] == document
    assert kvtool.prefill(["c.txt"], model=load(other), store=store, replace=True).prefilled == ["c.txt"]


# The fingerprint


def test_a_copy_and_its_shards_are_the_same_model(
    tiny: kvtool.Model, tiny_dir: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    assert load(Path(shutil.copytree(tiny_dir, tmp_path / "copy"))).fingerprint == tiny.fingerprint
    shards = make_model(tmp_path / "shards", shard="20KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    assert load(shards).fingerprint == tiny.fingerprint
    # transformers would load the single file.
    for path in shards.glob("model*"):
        shutil.copy(path, tmp_path / "copy")
    one_weight(tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint != tiny.fingerprint


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process(
    tiny: kvtool.Model, tiny_dir: Path, tmp_path: Path
) -> None:
    code = "import kvtool, sys; print(kvtool.load_model(sys.argv[1], device='cpu').fingerprint)"
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "KVTOOL_CACHE_DIR": str(tmp_path / seed)}
        process = subprocess.run(
            [sys.executable, "-c", code, tiny_dir], env=env, capture_output=True, text=True
        )
        assert process.stdout.strip() == tiny.fingerprint, process.stderr


def test_a_remembered_digest_is_of_the_file_as_it_is(tiny_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_dir, tmp_path / "other"))
    before = load(other).fingerprint
    stat = (other / "model.safetensors").stat()
    one_weight(other)
    # Same size, same modification time: only the time of the inode's change tells.
    os.utime(other / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(other).fingerprint != before


def test_what_loading_and_saving_writes_anew_changes_nothing(
    tiny: kvtool.Model, tiny_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_dir, tmp_path / "other"))
    with_file(other, "config.json", lambda c: c.update(transformers_version="9.9", _name_or_path="x"))
    with_file(other, "tokenizer.json", lambda t: t.update(truncation={"max_length": 3, "stride": 0,
        "strategy": "LongestFirst", "direction": "Right"}))  # fmt: skip
    assert load(other).fingerprint == tiny.fingerprint


@pytest.mark.parametrize("keep", [0, 7, 100, -1], ids=str)
def test_truncated_weights_are_named(tiny_dir: Path, tmp_path: Path, keep: int) -> None:
    other = Path(shutil.copytree(tiny_dir, tmp_path / "other"))
    path = other / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"{path}: is not a whole safetensors file.*download"):
        _ = load(other).fingerprint


def test_a_model_of_pickles_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_dir, tmp_path / "other"))
    (other / "model.safetensors").replace(other / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never from pickles"):
        _ = load(other).fingerprint
