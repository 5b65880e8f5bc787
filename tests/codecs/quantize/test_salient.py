"""Which tokens get the bits, what they cost, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtool.codecs import CodecError, LayerKV, Pipeline, recipe
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.quantize.salient import Salient, SalientByHead
from kvtool.codecs.spec import Array, Spec
from kvtool.codecs.transform.window import Window

HEADS, TOKENS, CHANNELS = 2, 50, 16
X = torch.randn(HEADS, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))
ATTENTION = torch.rand(HEADS, TOKENS, generator=torch.Generator().manual_seed(2))
SPEC = Spec.of(X)


def decoded(stage: Salient, attention: Tensor = ATTENTION) -> Tensor:
    return stage.decode(stage.encode({"x": X, "attention": attention}, SPEC), SPEC)["x"]


@pytest.mark.parametrize("axis", ["token", "channel", "heads"])
def test_the_tokens_attended_to_err_less(axis: str) -> None:
    stage = Salient(ratio=0.3, high=6, low=2, axis=axis)  # type: ignore[arg-type]
    salient = stage.encode({"x": X, "attention": ATTENTION}, SPEC)["salient"]
    assert int(salient.sum()) == 15
    score = ATTENTION.sum(0)
    assert score[salient == 1].min() > score[salient == 0].max()
    error = (decoded(stage) - X).square().mean((0, 2))
    assert error[salient == 1].mean() < error[salient == 0].mean() / 50


@pytest.mark.parametrize(("axis", "group_axis"), [("token", "token"), ("channel", "channel")])
@pytest.mark.parametrize("group", [0, 4])
def test_with_one_precision_for_all_it_is_group(axis: str, group_axis: str, group: int) -> None:
    whole = TOKENS if axis == "token" else CHANNELS
    plain = Group(bits=3, group=group or whole, axis=group_axis)  # type: ignore[arg-type]
    expected = plain.decode(plain.encode({"x": X}, SPEC), SPEC)["x"]
    for ratio in (0.0, 1.0):
        stage = Salient(ratio=ratio, high=3, low=3, group=group, axis=axis)  # type: ignore[arg-type]
        assert torch.equal(decoded(stage), expected)


def test_scales_of_all_heads_are_fewer() -> None:
    apart, together = (
        Salient(axis=axis).encode({"x": X, "attention": ATTENTION}, SPEC) for axis in ("channel", "heads")
    )
    assert apart["scale_low"].numel() == HEADS * together["scale_low"].numel()
    assert apart["codes_low"].numel() == together["codes_low"].numel()


@pytest.mark.parametrize("axis", ["token", "channel", "heads"])
def test_error_falls_with_bits_and_with_the_share_of_salient_tokens(axis: str) -> None:
    errors = [
        float((decoded(Salient(ratio, high, low, axis=axis)) - X).norm())  # type: ignore[arg-type]
        for ratio, high, low in ((0.2, 4, 1), (0.2, 4, 2), (0.6, 4, 2), (0.6, 8, 2), (0.6, 8, 4), (1.0, 8, 4))
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("axis", ["token", "channel", "heads"])
def test_each_head_may_have_salient_tokens_of_its_own(axis: str) -> None:
    stage = SalientByHead(ratio=0.3, high=6, low=2, axis=axis)  # type: ignore[arg-type]
    salient = stage.encode({"x": X, "attention": ATTENTION}, SPEC)["salient"]
    assert salient.shape == (HEADS, TOKENS)
    error = (decoded(stage) - X).square().mean(2)
    for head in range(HEADS):
        own, score = salient[head] == 1, ATTENTION[head]
        assert int(own.sum()) == 15
        assert score[own].min() > score[~own].max()
        assert error[head, own].mean() < error[head, ~own].mean() / 50


def test_heads_that_agree_choose_as_all_together() -> None:
    attention = ATTENTION[:1].expand(HEADS, TOKENS)
    by_head, together = SalientByHead(axis="token"), Salient(axis="token")
    assert torch.equal(decoded(by_head, attention), decoded(together, attention))


def test_of_equals_the_first_are_salient() -> None:
    stage = Salient(ratio=0.5)
    mask = stage.encode({"x": X, "attention": torch.ones_like(ATTENTION)}, SPEC)["salient"]
    assert mask.tolist() == [1] * 25 + [0] * 25


def test_the_mask_takes_a_bit_a_token() -> None:
    stage = Salient()
    planned = Pack().plan(stage.plan(SPEC))
    assert planned.arrays["salient"].nbytes == -(-TOKENS // 8)


def test_attention_covers_the_window_that_was_taken_off() -> None:
    attention = torch.zeros(HEADS, TOKENS)
    attention[:, [0, 1, 10, 20, 48]] = 1.0
    stages = (Window(sinks=3, recent=5), Salient(ratio=2 / 42, high=8, low=1), Pack())
    pipeline = Pipeline(keys=stages, values=stages)
    layer = LayerKV(X, X, torch.arange(TOKENS))
    inputs = {"attention": [attention]}
    stored = pipeline.encode([layer], inputs=inputs)
    plain = Array(tuple(X.shape), X.dtype)
    (back,) = pipeline.decode(stored, plain, plain, [layer.positions])
    error = (back.keys - X).abs().amax((0, 2))
    kept = [0, 1, 2, 10, 20, *range(45, 50)]
    others = [token for token in range(TOKENS) if token not in kept]
    assert error[kept].max() < 0.02 < 0.1 < error[others].min()


@pytest.mark.parametrize("tokens", [0, TOKENS - 1, TOKENS + 1])
def test_attention_to_another_number_of_tokens_is_refused(tokens: int) -> None:
    with pytest.raises(CodecError, match=rf"shape of attention.*heads, {TOKENS}"):
        Salient().encode({"x": X, "attention": torch.zeros(HEADS, tokens)}, SPEC)


@pytest.mark.parametrize("stage_of", [Salient, SalientByHead])
@pytest.mark.parametrize("axis", ["token", "channel", "heads"])
def test_hostile_masks_are_refused(axis: str, stage_of: type[Salient]) -> None:
    stage = stage_of(axis=axis)  # type: ignore[arg-type]
    stored = dict(stage.encode({"x": X, "attention": ATTENTION}, SPEC))
    mask = stored["salient"]
    more, other = mask.clone(), mask.clone()
    more.view(-1)[int(mask.argmin())] = 1
    other.view(-1)[int(mask.argmin())] = 7
    for hostile in (torch.zeros_like(mask), torch.ones_like(mask), more, other, mask * 255):
        with pytest.raises(CodecError, match="salient"):
            stage.decode({**stored, "salient": hostile}, SPEC)
    moved = mask.roll(1, -1)
    assert stage.decode({**stored, "salient": moved}, SPEC)["x"].shape == X.shape


@pytest.mark.parametrize("wrong", [{"ratio": 1.5}, {"high": 1}, {"low": 0}, {"high": 9}, {"group": -1}])
def test_configurations_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(CodecError, match=next(iter(wrong))):
        Salient(**wrong)  # type: ignore[arg-type]


def test_recipes_need_what_they_use() -> None:
    assert recipe("zipcache").build().needs == {"attention"}
    assert recipe("mikv").build().needs == {"attention", "queries"}


def test_bits_above_the_salient_tokens_raise_those_too() -> None:
    for name in ("zipcache", "mikv"):
        for stage in recipe(name).build(bits=8).keys:
            assert not isinstance(stage, Salient) or (stage.high, stage.low) == (8, 8)


def test_merged_layers_share_the_split() -> None:
    one, other = ATTENTION, ATTENTION.flip(1)
    together = Salient(ratio=0.3).encode({"x": X, "attention": torch.stack([one, other])}, SPEC)["salient"]
    summed = Salient(ratio=0.3).encode({"x": X, "attention": torch.cat([one, other])}, SPEC)["salient"]
    assert torch.equal(together, summed)
    with pytest.raises(CodecError, match="shape of attention"):
        Salient().encode({"x": X, "attention": ATTENTION[:, 1:]}, SPEC)


def test_merged_layers_have_a_split_for_each_head() -> None:
    stage = SalientByHead(ratio=0.3)
    layers = torch.stack([ATTENTION, ATTENTION.flip(1)])
    salient = stage.encode({"x": X, "attention": layers}, SPEC)["salient"]
    assert torch.equal(salient, stage.encode({"x": X, "attention": layers.sum(0)}, SPEC)["salient"])


def test_heads_that_were_changed_share_the_split() -> None:
    attention = torch.rand(HEADS + 1, TOKENS)
    salient = SalientByHead(ratio=0.3).encode({"x": X, "attention": attention}, SPEC)["salient"]
    shared = Salient(ratio=0.3).encode({"x": X, "attention": attention}, SPEC)["salient"]
    assert torch.equal(salient, shared.expand(HEADS, TOKENS))
