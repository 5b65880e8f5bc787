"""Which artifacts are of the model that an engine has loaded: told by the field that differs, without its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kvtool.connectors import engine_model
from kvtool.connectors.engine_model import EngineModel
from kvtool.errors import ModelError
from kvtool.store.local import LocalStore


@pytest.fixture
def made_by(prefilled: Path) -> dict[str, object]:
    return dict(LocalStore(prefilled).open("c.txt").meta["model"])


def engine(directory: Path, **options: str) -> EngineModel:
    return EngineModel.at(directory, **{"dtype": "float32", **options})


def test_its_own_artifacts(tiny_dir: Path, made_by: dict[str, object]) -> None:
    assert engine(tiny_dir).difference(made_by, "tiny") is None


def test_a_tokenizer_makes_no_difference(tiny_dir: Path, made_by: dict[str, object], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_dir, tmp_path / "copied"))
    (copied / "chat_template.jinja").write_text("{{ messages }}")
    (copied / "tokenizer.json").unlink()
    assert engine(copied).difference(made_by, "tiny") is None


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"dtype": "bfloat16"}, "dtype is float32, the engine's is bfloat16"),
        ({"quantization": "fp8"}, "quantization is None, the engine's is fp8"),
    ],
)
def test_how_it_computes(
    tiny_dir: Path, made_by: dict[str, object], options: dict[str, str], difference: str
) -> None:
    assert engine(tiny_dir, **options).difference(made_by, "tiny") == difference


def test_another_rope(tiny_dir: Path, made_by: dict[str, object], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_dir, tmp_path / "copied"))
    config = json.loads((copied / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5000.0
    (copied / "config.json").write_text(json.dumps(config))
    assert str(engine(copied).difference(made_by, "tiny")).startswith("rope is ")


def test_other_weights(tiny_dir: Path, made_by: dict[str, object], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_dir, tmp_path / "copied"))
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    assert str(engine(copied).difference(made_by, "tiny")).startswith("weights is ")


def test_an_adapter(tiny_dir: Path, made_by: dict[str, object], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(tiny_dir / "model.safetensors", adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text("{}")
    assert str(engine(tiny_dir).with_adapter(adapter).difference(made_by, "tiny")).startswith(
        "adapters is []"
    )


def test_the_same_commit_of_the_hub_needs_no_hashes(
    tiny_dir: Path, made_by: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "8" * 40
    monkeypatch.setattr(engine_model, "locate", lambda source, download: (tiny_dir, f"owner/name@{commit}"))
    monkeypatch.setattr(engine_model, "digest_weights", lambda directory: pytest.fail("weights are hashed"))
    model = EngineModel.at("owner/name", dtype="float32", revision="main")
    assert model.difference(made_by, f"owner/name@{commit}") is None
    assert model.difference({**made_by, "dtype": "bfloat16"}, f"owner/name@{commit}")
    with pytest.raises(pytest.fail.Exception):
        model.difference(made_by, f"owner/name@{'9' * 40}")


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="owner/missing"):
        EngineModel.at("owner/missing", dtype="float32", revision="main")
    packed = tmp_path / "model.gguf"
    packed.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="one file"):
        engine(packed)
