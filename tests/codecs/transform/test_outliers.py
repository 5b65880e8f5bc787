"""Outliers apart: which they are, what stands in their place, and what their places may not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvtool.codecs.errors import CodecError
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.join import Join
from kvtool.codecs.transform.outliers import JoinedOutliers, Outliers


def spiky(tokens: int = 200, channels: int = 32) -> torch.Tensor:
    """Normal entries, and in each channel of each head three that are far from all others."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, tokens, channels, generator=generator)
    x[:, 7] += 60
    x[:, 90] += 80
    x[:, 123] -= 70
    return x


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("fraction", [0.01, 0.03, 0.5])
def test_they_are_the_largest_and_smallest_of_each_vector(axis: Any, fraction: Any) -> None:
    x = spiky()
    stage = Outliers(fraction=fraction, axis=axis)
    payload = stage.encode({"x": x}, Spec.of(x))
    vectors = x.mT if axis == "token" else x
    n = vectors.shape[-1]
    k = payload["outliers"].shape[-1]
    assert k == -int(-fraction * n // 1)
    ranked = vectors.sort(-1).values
    expected = torch.cat([ranked[..., : k // 2], ranked[..., n - k + k // 2 :]], -1)
    assert torch.equal(payload["outliers"].sort(-1).values, expected.half())
    rest = payload["x"].mT if axis == "token" else payload["x"]
    assert torch.equal(rest.amin(-1), ranked[..., k // 2]), "the rest reaches beyond its own entries"
    assert torch.equal(rest.amax(-1), ranked[..., n - k + k // 2 - 1])


def test_by_magnitude_one_side_may_have_them_all() -> None:
    x = torch.full((1, 50, 1), 0.5)
    x[0, [3, 30], 0] = torch.tensor([9.0, 8.0])
    cases: list[tuple[Any, list[float]]] = [("magnitude", [9.0, 8.0]), ("both", [0.5, 9.0])]
    for sides, kept in cases:
        stage = Outliers(fraction=0.04, sides=sides)
        assert sorted(stage.encode({"x": x}, Spec.of(x))["outliers"].flatten().tolist()) == sorted(kept)


def test_quantization_of_the_rest_errs_less() -> None:
    x = spiky()

    def error(*stages: Stage) -> float:
        payload: Payload = {"x": x}
        specs = [Spec.of(x)]
        for stage in stages:
            payload = stage.encode(payload, specs[-1])
            specs.append(stage.plan(specs[-1]))
        for stage, spec in reversed(list(zip(stages, specs[:-1], strict=True))):
            payload = stage.decode(payload, spec)
        return float((payload["x"] - x).norm())

    quantizer = Group(bits=3, group=200)
    assert error(Outliers(fraction=0.015), quantizer) < error(quantizer) / 10


@pytest.mark.parametrize(
    ("tokens", "dtype"), [(256, torch.uint8), (257, torch.int16), (1 << 15, torch.int16)]
)
def test_places_take_as_little_as_the_vector_allows(tokens: int, dtype: torch.dtype) -> None:
    x = torch.zeros(1, tokens, 1)
    assert Outliers().plan(Spec.of(x)).arrays["outlier_index"].dtype == dtype
    wide = Spec({"x": Array((1, (1 << 15) + 1, 1), torch.float32)})
    assert Outliers().plan(wide).arrays["outlier_index"].dtype == torch.int32


@pytest.mark.parametrize("tokens", [200, 300])
def test_places_outside_of_the_vector_are_refused(tokens: int) -> None:
    x = spiky(tokens)
    payload = Outliers().encode({"x": x}, Spec.of(x))
    for place in (tokens, -1):
        if place < 0 and payload["outlier_index"].dtype == torch.uint8:
            continue
        index = payload["outlier_index"].clone()
        index[1, 2, 0] = place
        with pytest.raises(CodecError, match=f"outlier_index holds .*expected 0 to {tokens - 1}"):
            Outliers().decode({**payload, "outlier_index": index}, Spec.of(x))


def test_sixteen_bits_are_kept_as_they_are_and_float32_within_float16() -> None:
    x = spiky()
    stage = Outliers(fraction=0.2)
    for dtype in (torch.bfloat16, torch.float16):
        spec = Spec.of(x.to(dtype))
        assert torch.equal(stage.decode(stage.encode({"x": x.to(dtype)}, spec), spec)["x"], x.to(dtype))
    with pytest.raises(CodecError, match=r"outlier is 1e\+06"):
        stage.encode({"x": x.clone().index_fill(1, torch.tensor(5), 1e6)}, Spec.of(x))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan"), 1])
def test_fractions_that_are_none_are_refused(fraction: Any) -> None:
    with pytest.raises(CodecError, match="fraction"):
        Outliers(fraction=fraction)


def test_joined_heads_give_vectors_over_all_of_a_tokens_channels() -> None:
    x = spiky()
    joined = Join().encode({"x": x}, Spec.of(x))["x"]
    assert joined.shape == (1, 200, 64)
    assert torch.equal(joined[0, 17], torch.cat([x[0, 17], x[1, 17]]))


@pytest.mark.parametrize(("fraction", "sides"), [(0.02, 0), (0.04, 1), (0.1, 3)])
def test_a_tokens_outliers_may_be_those_of_all_heads_equally_many_on_both_sides(
    fraction: float, sides: int
) -> None:
    x = spiky()
    x[1] *= 10
    stage = JoinedOutliers(fraction=fraction, axis="channel")
    payload = stage.encode({"x": x}, Spec.of(x))
    assert payload["outliers"].shape == (1, 200, 2 * sides)
    ranked = torch.cat([x[0], x[1]], -1).sort(-1).values
    expected = torch.cat([ranked[:, :sides], ranked[:, 64 - sides :]], -1)
    assert torch.equal(payload["outliers"][0].sort(-1).values, expected.half())
    assert payload["x"].shape == x.shape
    back = stage.decode(payload, Spec.of(x))["x"]
    apart = payload["x"] != x
    assert torch.equal(back[~apart], x[~apart])
    assert torch.equal(back[apart], x[apart].half().float())
