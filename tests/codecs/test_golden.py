"""Files that earlier versions wrote decode to the values they decoded to then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch

from kvtool.codecs import Array, Place, Rope, Spec, stage_from_config, stages
from kvtool.store.calibrations import Calibrations

GOLDEN = Path(__file__).parent.parent / "golden"
INEXACT = (
    "cross-layer-svd",
    "hadamard",
    "klt",
    "lloyd-max",
    "low-rank-residual",
    "pca",
    "split-lloyd-max",
    "unrope",
)
FILES = sorted(GOLDEN.glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_artifact_decodes_to_its_values(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["golden"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("y.")}
    expected = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("x.")}
    given = {name.removeprefix("given."): t for name, t in tensors.items() if name.startswith("given.")}
    levels, at = described["levels"], described.get("place", {"ropes": []})
    place = Place(**{**at, "ropes": tuple(map(Rope.from_json, at["ropes"]))})
    arrays = {n: Array(tuple(t.shape), t.dtype, levels=levels[n]) for n, t in expected.items()}
    spec = Spec(arrays, place=place)
    stage = stage_from_config(described["stage"], Calibrations(GOLDEN / "calibrations"))
    stage.plan(spec).check(stored, path.name)
    decoded = stage.decode({**stored, **given}, spec)
    assert decoded.keys() == expected.keys()
    for name, tensor in expected.items():
        # Sines and matrix products differ in the last bits from one processor to another; nothing else may.
        inexact = tensor.dtype == torch.float32 and described["stage"]["name"] in INEXACT
        torch.testing.assert_close(
            decoded[name], tensor, rtol=1e-5 * inexact, atol=1e-6 * inexact, msg=f"{path.name}: {name}"
        )


def test_every_stage_version_has_one() -> None:
    missing = [
        key for key, cls in stages().items() if not list(GOLDEN.glob(f"{cls.kind}-{key[0]}-v{key[1]}-*"))
    ]
    assert not missing, "python tests/golden/make.py makes them"
