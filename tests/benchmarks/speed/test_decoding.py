"""What is counted of decoding follows the coder, and what is said of kernels on a device is measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed import decoding, on_device
from benchmarks.speed.decoding import Decoding
from benchmarks.speed.geometries import GEOMETRIES
from kvtool.kernels import dispatch


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_chain_of_steps_is_short_and_wide_whatever_the_model(geometry: str) -> None:
    one = Decoding(GEOMETRIES[geometry], 4096, 80.0)
    assert one.steps <= 1060
    assert one.lanes >= 4000
    assert one.seconds > one.steps * decoding.LAUNCH
    assert Decoding(one.geometry, 1024, 80.0).steps == one.steps


def test_every_kernel_is_held_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    found = on_device._kernels(cpu)
    encoders = {"angles", "context_encode", "context_decode", "context_count", "rans_encode", "wide_encode"}
    kernels = {name for name in vars(dispatch.Kernels) if not name.startswith("_")}
    assert found.keys() == kernels - encoders
    monkeypatch.setattr(dispatch, "unpack", lambda *_: torch.zeros(3000, dtype=torch.uint8))
    with pytest.raises(SystemExit):
        on_device.measure(cpu, 8, 1)
