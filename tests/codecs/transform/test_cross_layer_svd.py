from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvtool.codecs import KV, CodecError, LayerKV, Payload, Rope, Spec, Stage, decode, encode
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.quantize.residual import LowRankResidual
from kvtool.codecs.transform.cross_layer_svd import CrossLayerSvd


def round_trip(rank: float, x: Tensor) -> tuple[Payload, Tensor]:
    stage, spec = CrossLayerSvd(rank=rank), Spec.of(x)
    encoded = stage.encode({"x": x}, spec)
    return encoded, stage.decode(encoded, spec)["x"]


@pytest.mark.parametrize("tokens", [300, 40])
def test_it_is_the_best_approximation_of_its_rank(tokens: int) -> None:
    x = torch.randn(3, 2, tokens, 16, generator=torch.Generator().manual_seed(3))
    matrix = x.permute(2, 0, 1, 3).reshape(tokens, 96)
    for rank in (0.1, 0.25, 1.0):
        encoded, back = round_trip(rank, x)
        r = min(int(rank * 96), tokens)
        assert encoded["x"].shape == (1, tokens, r)
        assert encoded["right"].shape == (3, 2, r, 16)
        best = torch.linalg.svdvals(matrix)[r:].norm()
        assert (back - x).norm().item() == pytest.approx(best.item(), rel=1e-3, abs=1e-3 * x.norm().item())


def test_layers_that_share_a_basis_need_less_together() -> None:
    generator = torch.Generator().manual_seed(4)
    shared = torch.randn(200, 6, generator=generator)
    x = (shared @ torch.randn(4, 2, 6, 16, generator=generator)).contiguous()
    stored = 0
    for layer in x:
        encoded, back = round_trip(6 / 32, layer[None].contiguous())
        assert (back - layer).norm() < 1e-3 * layer.norm()
        stored += encoded["x"].numel()
    together, back = round_trip(6 / 128, x)
    assert (back - x).norm() < 1e-3 * x.norm()
    assert together["x"].numel() == stored / 4


def test_coefficients_come_in_the_order_of_what_they_say() -> None:
    x = torch.randn(2, 2, 100, 8, generator=torch.Generator().manual_seed(5))
    encoded, _ = round_trip(1.0, x)
    lengths, widths = (
        encoded["x"][0].float().norm(dim=0),
        encoded["right"].float().transpose(2, 3).flatten(0, 2).norm(dim=0),
    )
    assert (lengths.diff() <= 1e-3).all()
    # Each side has the square root of the singular value.
    assert torch.allclose(lengths, widths, rtol=1e-3)


def test_what_is_behind_it_errs_within_the_bound() -> None:
    x = torch.randn(2, 2, 100, 8, generator=torch.Generator().manual_seed(6))
    stage, spec = CrossLayerSvd(rank=0.5), Spec.of(x)
    encoded = stage.encode({"x": x}, spec)
    behind = stage.plan(spec)
    for bits in (2, 4, 8):
        group = Group(bits=bits)
        back = stage.decode(group.decode(group.encode(encoded, behind), behind), spec)["x"]
        bound = stage.error({"x": x}, spec, group.error(encoded, behind))
        assert (back.double() - x.double()).abs().max().item() <= bound


def test_one_layers_tensor_and_a_rank_past_full_are_refused() -> None:
    with pytest.raises(CodecError, match=r"shape of x is \[2, 5, 8\], expected \[layers,"):
        CrossLayerSvd().plan(Spec.of(torch.zeros(2, 5, 8)))
    for rank in (0.0, 1.5, float("nan")):
        with pytest.raises(CodecError, match="rank is"):
            CrossLayerSvd(rank=rank)


def test_xkv_takes_what_layers_share() -> None:
    generator = torch.Generator().manual_seed(8)
    shared = torch.randn(300, 8, generator=generator)
    values = shared @ torch.randn(4, 2, 8, 32, generator=generator)
    keys = torch.randn(2, 300, 32, generator=generator)
    kv = KV(
        tuple(LayerKV(keys, layer, torch.arange(300)) for layer in values),
        torch.arange(300),
        {
            "rotations": [Rope(tuple(1e4 ** (-i / 16) for i in range(16))).to_json()],
            "rotation_of_layer": [0] * 4,
        },
    )

    def lost(**parameters: Any) -> tuple[float, float]:
        pairs = list(zip(decode(encode(kv, "xkv", **parameters)).layers, values, strict=True))
        return (
            max(((back.values - layer).norm() / layer.norm()).item() for back, layer in pairs),
            max(((back.keys - keys).norm() / keys.norm()).item() for back, _ in pairs),
        )

    # 8 of 256 is all that the values have; the four layers' keys are one another's copies, of rank 64 of 256.
    assert max(lost(rank_values=1 / 32, rank_keys=1 / 4)) < 2e-3
    assert lost(rank_values=1 / 32, bits=4)[0] < 0.15
    assert lost(rank_keys=1 / 8)[1] > 0.2


def test_a_float16_cache_stays_finite() -> None:
    x = torch.full((2, 1, 9, 4), 65504.0).half()
    x[0, 0, 0] = -65504.0
    x[1, 0, 1:, 2] = 60000.0
    assert torch.isfinite(round_trip(0.125, x)[1]).all()


@pytest.mark.parametrize(
    ("stage", "shape"),
    [(CrossLayerSvd(rank=0.05), (2, 2, 1501, 128)), (LowRankResidual(group=64), (32, 2000, 128))],
)
def test_the_bytes_do_not_depend_on_the_number_of_threads(stage: Stage, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        encoded = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            encoded.append(stage.encode({"x": x}, Spec.of(x)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in encoded[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in encoded[0].items())
