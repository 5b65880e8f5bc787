"""The line that starts vLLM, and the settings in it; neither needs vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import kvtool
from kvtool.cli import app
from kvtool.connectors.vllm.serve_line import ServeLine, loadable
from kvtool.connectors.vllm.settings import Settings
from kvtool.errors import MismatchError, UsageError
from kvtool.store.local import LocalStore


def printed(*options: str) -> Any:
    result = CliRunner().invoke(app, ["connector", "vllm", "--json", *options])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_line_has_what_the_connector_reads(store: LocalStore, tiny_dir: Path) -> None:
    options = ("--store", str(store.root), "--model", str(tiny_dir), "--min-tokens", "5")
    value = printed(*options)
    assert value["command"][:5] == ["vllm", "serve", str(tiny_dir), "--dtype", "float32"]
    assert value["documents"] == 3
    config = json.loads(value["command"][-1])
    assert config == value["kv_transfer_config"]
    assert config["kv_load_failure_policy"] == "recompute"
    settings = Settings.of(config["kv_connector_extra_config"])
    # vLLM may be started elsewhere.
    assert settings == Settings(str(store.root.absolute()), min_tokens=5)


def test_a_model_of_the_hub_is_served_at_its_commit(tiny: kvtool.Model, tmp_path: Path) -> None:
    commit = "8" * 40
    snapshot = tmp_path / commit
    snapshot.symlink_to(tiny.directory)
    model = kvtool.Model(snapshot, name=f"owner/name@{commit}")
    line = ServeLine.of(model, "bfloat16", Settings("s3://bucket"))
    assert line.words[:6] == ["vllm", "serve", "owner/name", "--revision", commit, "--dtype"]


def test_documents_are_counted_by_what_loads_them(
    store: LocalStore, tiny: kvtool.Model, tiny_dir: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    kvtool.compress(store, "c.txt", recipe="kivi", bits=4)
    (tmp_path / "new.txt").write_text("Another text of some words.")
    half = kvtool.load_model(tiny_dir, device="cpu", dtype="bfloat16")
    kvtool.prefill([tmp_path / "new.txt"], model=half, store=store)
    found = loadable(store, tiny)
    assert dict(found.dtypes) == {"float32": 3, "bfloat16": 1}
    assert found.best("tiny", store) == "float32"
    assert loadable(store, tiny, "kivi").others == {"without variant kivi": 3}
    other = kvtool.load_model(make_model(tmp_path / "other", seed=3), device="cpu")
    with pytest.raises(MismatchError, match=r"weights is .*; name their model with --model"):
        loadable(store, other).best("other", store)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({}, "names no store"),
        ({"store": ""}, "store ''"),
        ({"store": "kv", "kind": "klt"}, "kind"),
        ({"store": "kv", "min_tokens": 0}, "min_tokens 0"),
        ({"store": "kv", "min_tokens": True}, "min_tokens True"),
        ({"store": "kv", "threads": 1.5}, "threads 1.5"),
        ({"store": "kv", "max_load_seconds": "3"}, "max_load_seconds '3'"),
        ({"store": "kv", "max_load_seconds": -1}, "max_load_seconds -1"),
        ({"store": "kv", "variant": 2}, "variant 2"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(extra: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        Settings.of(extra)
    assert named in str(error.value)
