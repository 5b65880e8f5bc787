from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from kvtool.codecs import CodecError, Spec
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.quantize.lloyd_max import LloydMax, code_book
from kvtool.codecs.transform.hadamard import Hadamard

DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
"""Mean square errors on N(0, 1) from Max's table (1960); TurboQuant's theorem 1 quotes the first four."""


def decoded(stage: LloydMax | Group, x: torch.Tensor) -> torch.Tensor:
    return stage.decode(stage.encode({"x": x}, Spec.of(x)), Spec.of(x))["x"]


def relative(stage: LloydMax | Group, x: torch.Tensor) -> float:
    return ((decoded(stage, x) - x).norm() / x.norm()).item() ** 2


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("bits", range(1, 9))
def test_each_code_is_the_mean_of_what_is_rounded_to_it(bits: int) -> None:
    book = code_book(bits).double().tolist()
    assert len(book) == 1 << bits
    edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(book)), math.inf]
    for (low, high), code in zip(pairwise(edges), book, strict=True):
        mass = (math.erf(high / 2**0.5) - math.erf(low / 2**0.5)) / 2
        moment = (math.exp(-low * low / 2) - math.exp(-high * high / 2)) / (2 * math.pi) ** 0.5
        assert code == pytest.approx(moment / mass, abs=3e-4)


@pytest.mark.parametrize("bits", DISTORTION)
def test_the_distortion_is_that_of_the_table(bits: int) -> None:
    assert relative(LloydMax(bits=bits), normal(4, 500, 128)) == pytest.approx(DISTORTION[bits], rel=0.05)


def test_any_vectors_are_quantized_as_well_once_they_are_rotated() -> None:
    x = torch.ones(2, 300, 64) * 5 + normal(2, 300, 64)
    x[:, :, 3] *= 20
    rotated = Hadamard().encode({"x": x}, Spec.of(x))["x"]
    assert relative(LloydMax(bits=3), x) > 0.15
    assert relative(LloydMax(bits=3), rotated) < 0.06
    assert relative(LloydMax(bits=3), rotated) < relative(Group(bits=3, group=64, axis="channel"), x)


def test_the_sketch_makes_inner_products_unbiased_over_its_rotations() -> None:
    x, query = normal(1, 1, 64), torch.randn(64, generator=torch.Generator().manual_seed(9))
    query = query + x.flatten()
    exact = (x @ query).item()
    plain = (decoded(LloydMax(bits=1), x) @ query).item()
    sketched = [
        (decoded(LloydMax(bits=1, sketch=True, seed=seed), x) @ query).item() for seed in range(1, 801)
    ]
    mean, spread = torch.tensor(sketched).mean().item(), torch.tensor(sketched).std().item()
    assert abs(mean - exact) < 4 * spread / len(sketched) ** 0.5 + 0.01 * abs(exact)
    assert abs(plain - exact) > 5 * abs(mean - exact)


def test_the_sketch_lessens_the_error_less_than_a_bit_of_the_code_book_does() -> None:
    x = normal(2, 300, 64)
    sketched = relative(LloydMax(bits=2, sketch=True), x)
    plain = relative(LloydMax(bits=2), x)
    assert relative(LloydMax(bits=3), x) < sketched < plain
    # Of a rest of unit length, an orthonormal sketch leaves π/2 - 1.
    assert sketched == pytest.approx(plain * (math.pi / 2 - 1), rel=0.05)


def test_lengths_are_kept_and_zeros_stay() -> None:
    x = normal(1, 5, 32) * torch.tensor([1e-3, 1.0, 100.0, 1e4, 0.0])[:, None]
    back = decoded(LloydMax(bits=8), x)
    torch.testing.assert_close(back.norm(dim=-1), x.norm(dim=-1), rtol=0.01, atol=0)
    assert not back[0, 4].any()
    with pytest.raises(CodecError, match="length of a vector"):
        decoded(LloydMax(), x * 10)


def test_codes_past_the_code_book_are_refused() -> None:
    x = normal(1, 4, 8)
    for name, stage in (("codes", LloydMax(bits=3)), ("signs", LloydMax(bits=3, sketch=True))):
        y = {n: tensor.clone() for n, tensor in stage.encode({"x": x}, Spec.of(x)).items()}
        y[name][0, 1, 2] = 8
        with pytest.raises(CodecError, match=f"{name} holds code 8"):
            stage.decode(y, Spec.of(x))
