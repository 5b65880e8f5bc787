"""What dividing channels buys quantizers with one scale a token, and where it gives it back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtool.codecs import CodecError
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Payload, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.transform.anchors import Anchors
from kvtool.codecs.transform.balance import Balance
from kvtool.codecs.transform.normalize import Normalize

TOKENWISE = Group(bits=4, group=64, axis="channel")


def with_outliers(heads: int = 2, tokens: int = 300, channels: int = 64) -> Tensor:
    """Three channels are large throughout, as keys' and some values' are."""
    x = torch.randn(heads, tokens, channels, generator=torch.Generator().manual_seed(3))
    x[..., [5, 17, 40]] *= 30
    return x


def through(stages: tuple[Stage, ...], given: Payload) -> Tensor:
    payload: Payload = {"x": given["x"]}
    specs = [Spec.of(given["x"])]
    for stage in stages:
        extra = {name: given[name] for name in stage.needs}
        payload = stage.encode({**payload, **extra}, specs[-1])
        specs.append(stage.plan(specs[-1]))
        specs[-1].check(payload, stage.name)
    for stage, before in reversed(list(zip(stages, specs[:-1], strict=True))):
        payload = stage.decode(payload, before)
    return payload["x"]


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_normalizing_helps_tokenwise_quantization_past_outlier_channels() -> None:
    x = with_outliers()
    small = [channel for channel in range(64) if channel not in (5, 17, 40)]
    plain, normalized = through((TOKENWISE,), {"x": x}), through((Normalize(), TOKENWISE), {"x": x})
    assert distance(normalized[..., small], x[..., small]) < distance(plain[..., small], x[..., small]) / 3
    assert (normalized - x).square().mean() < (plain - x).square().mean() / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalizing_alone_loses_next_to_nothing(dtype: torch.dtype) -> None:
    x = with_outliers().to(dtype)
    assert distance(through((Normalize(),), {"x": x}).float(), x.float()) < torch.finfo(dtype).eps


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, 65504.0])
def test_channels_of_any_magnitude_come_back(value: float) -> None:
    x = torch.ones(1, 5, 3)
    x[..., 1] = value
    assert torch.allclose(through((Normalize(),), {"x": x}), x, rtol=1e-6, atol=0)


def test_balanced_keys_are_coded_finely_where_queries_are_large() -> None:
    keys = with_outliers()
    queries = torch.randn(4, 50, 64, generator=torch.Generator().manual_seed(4))
    queries[..., [5, 9]] *= 20
    payload = {"x": keys, "queries": queries}
    plain, balanced = through((TOKENWISE,), payload), through((Balance(), TOKENWISE), payload)

    def score_error(decoded: Tensor) -> float:
        shared = queries.view(2, 2 * 50, 64)
        return distance(shared @ decoded.mT, shared @ keys.mT)

    assert score_error(balanced) < score_error(plain) / 1.5
    loss = (balanced - keys).square().mean((0, 1))
    assert loss[9] < loss[10] / 4, "queries are large in channel 9"


def test_both_sides_of_a_balanced_channel_are_of_one_size() -> None:
    keys, queries = with_outliers(1), torch.randn(3, 50, 64) * torch.logspace(-2, 2, 64)
    scaled = Balance().encode({"x": keys, "queries": queries}, Spec.of(keys))
    balanced = scaled["x"].abs().amax((0, 1))
    answered = (queries * scaled["balancer"][0].float()).abs().amax((0, 1))
    assert torch.allclose(balanced, answered, rtol=2e-3)


def test_dead_channels_and_no_queries_leave_keys_as_they_are() -> None:
    keys, queries = with_outliers(), torch.randn(2, 5, 64)
    queries[..., 3] = 0
    keys[..., 4] = 0
    factors = Balance().encode({"x": keys, "queries": queries}, Spec.of(keys))["balancer"]
    assert (factors[..., 3:5] == 1).all()
    none = Balance().encode({"x": keys, "queries": queries[:, :0]}, Spec.of(keys))
    assert torch.equal(none["x"], keys)


@pytest.mark.parametrize("shape", [(3, 5, 64), (2, 5, 63), (2, 64)])
def test_queries_of_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    keys = with_outliers()
    with pytest.raises(CodecError, match=r"balance.*shape of queries.*64 channels"):
        Balance().encode({"x": keys, "queries": torch.zeros(shape)}, Spec.of(keys))


@pytest.mark.parametrize("inner", [0.01, 1.0])
def test_the_stated_error_covers_what_lies_behind(inner: float) -> None:
    x = with_outliers()
    spec, stage = Spec.of(x), Normalize()
    encoded = stage.encode({"x": x}, spec)
    worst = torch.where(torch.rand(x.shape) < 0.5, inner, -inner)
    decoded = stage.decode({**encoded, "x": encoded["x"] + worst}, spec)["x"]
    assert inner < (decoded - x).abs().max() <= stage.error({"x": x}, spec, inner)


@pytest.mark.parametrize("stage", [Normalize(), Balance(), Anchors()], ids=repr)
def test_the_largest_entries_of_a_float16_cache_stay_finite(stage: Stage) -> None:
    x = torch.full((2, 40, 8), torch.finfo(torch.float16).max, dtype=torch.float16)
    x[:, ::2] *= -1
    spec = Spec.of(x)
    encoded = dict(stage.encode({"x": x, "queries": torch.ones(2, 3, 8)}, spec))
    encoded["x"] = encoded["x"] * 1.01
    assert torch.isfinite(stage.decode(encoded, spec)["x"]).all()
