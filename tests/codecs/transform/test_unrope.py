"""Keys without their rotation: the very keys before RoPE, for every layout, and refused where that is unknown."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from kvtool.codecs import KV, CodecError, LayerKV, Pipeline, Place, Rope, decode, encode, recipes
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Array, Spec
from kvtool.codecs.transform.unrope import Unrope

FREQUENCIES = tuple(10000.0 ** (-i / 8) for i in range(8))
TOKENS = 300


def turned(bare: torch.Tensor, positions: torch.Tensor, rope: Rope) -> torch.Tensor:
    """``bare`` [H, T, D] rotated in complex numbers: not by the kernel under test."""
    size, out = 2 * len(rope.inv_freq), bare.clone()
    if not size:
        return out
    part = bare[..., rope.start : rope.start + size].double()
    pairs = part.unflatten(-1, (2, -1)).mT if rope.layout == "half" else part.unflatten(-1, (-1, 2))
    angles = (positions[:, None].float() * torch.tensor(rope.inv_freq)).double()
    scaling = torch.tensor(rope.scaling, dtype=torch.float64)
    pairs = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(scaling, angles))
    pairs = pairs.mT if rope.layout == "half" else pairs
    out[..., rope.start : rope.start + size] = pairs.flatten(-2).to(bare.dtype)
    return out


def bare_keys(channels: int = 16) -> torch.Tensor:
    """Each channel has a mean of its own, as keys have before they are rotated."""
    generator = torch.Generator().manual_seed(5)
    means = 8 * torch.randn(2, 1, channels, generator=generator)
    return means + torch.randn(2, TOKENS, channels, generator=generator)


def kv_of(keys: torch.Tensor, rope: Rope | None) -> KV:
    layer = LayerKV(
        keys, torch.randn(keys.shape, generator=torch.Generator().manual_seed(6)), torch.arange(TOKENS)
    )
    said = {"rotations": [rope.to_json()], "rotation_of_layer": [0]} if rope else {"rope_theta": 10000.0}
    return KV((layer,), torch.arange(TOKENS), said)


PLAIN = Rope(FREQUENCIES)
ROPES = {
    "half": PLAIN,
    "interleaved and scaled": Rope(FREQUENCIES, scaling=1.35, layout="interleaved"),
    "partial": Rope(FREQUENCIES[:3]),
    "partial, last": Rope(FREQUENCIES[:3], layout="interleaved", start=10),
    "not at all": Rope(()),
}


@pytest.mark.parametrize("name", ROPES)
def test_it_gives_the_keys_before_rope_and_gives_the_rotated_ones_back(name: str) -> None:
    rope, bare, positions = ROPES[name], bare_keys(), torch.arange(40, 40 + TOKENS)
    keys = turned(bare, positions, rope)
    spec = Spec({"x": Array(tuple(keys.shape), keys.dtype)}, place=Place(ropes=(rope,)))
    given = {"x": keys, "positions": positions}
    encoded = Unrope().encode(given, spec)
    assert (encoded["x"] - bare).abs().max() < 1e-4
    decoded = Unrope().decode({**encoded, "positions": positions}, spec)["x"]
    assert (decoded - keys).abs().max() <= Unrope().error(given, spec) < 1e-3


def test_each_layer_of_a_group_is_turned_by_its_own_angles() -> None:
    ropes, bare = (ROPES["half"], ROPES["partial"]), bare_keys()
    positions = torch.stack([torch.arange(TOKENS), torch.arange(7, 7 + TOKENS)])
    keys = torch.stack([turned(bare, p, rope) for p, rope in zip(positions, ropes, strict=True)])
    spec = Spec.of(keys, place=Place(count=2, total=2, ropes=ropes))
    encoded = Unrope().encode({"x": keys, "positions": positions}, spec)["x"]
    assert (encoded - bare).abs().max() < 1e-4


def test_the_bits_of_sixteen_bit_keys_come_back() -> None:
    keys = turned(bare_keys(), torch.arange(TOKENS), PLAIN).bfloat16()
    spec = Spec({"x": Array(tuple(keys.shape), keys.dtype)}, place=Place(ropes=(PLAIN,)))
    positions = {"positions": torch.arange(TOKENS)}
    encoded = Unrope().encode({"x": keys, **positions}, spec)
    assert torch.equal(Unrope().decode({**encoded, **positions}, spec)["x"], keys)


def test_channels_quantize_better_before_rope() -> None:
    keys = turned(bare_keys(), torch.arange(TOKENS), PLAIN)
    kv, group = kv_of(keys, PLAIN), (Group(bits=3, group=64), Pack())
    errors = [
        (decode(encode(kv, Pipeline(keys=stages))).layers[0].keys - keys).norm()
        for stages in ((Unrope(), *group), group)
    ]
    assert errors[0] < errors[1] / 2


def test_unknown_rotations_are_refused_with_the_remedy() -> None:
    kv = kv_of(bare_keys(), None)
    for pipeline in (
        Pipeline(keys=(Unrope(), Pack())),
        recipes()["kvquant"].build(weights="none"),
        recipes()["rotatekv"].build(),
    ):
        with pytest.raises(CodecError, match=r"'unrope'.*prefill it again"):
            encode(kv, pipeline)


def test_rotations_of_other_channels_are_refused() -> None:
    for rope in (Rope(FREQUENCIES * 2), Rope(FREQUENCIES, start=1)):
        with pytest.raises(CodecError, match=r"rotated channels is .*at most 16"):
            encode(kv_of(bare_keys(), rope), Pipeline(keys=(Unrope(), Pack())))


def test_positions_that_the_model_turns_otherwise_are_refused() -> None:
    pipeline = Pipeline(keys=(Unrope(), Pack()))
    encode(kv_of(bare_keys(), dataclasses.replace(PLAIN, up_to=TOKENS)), pipeline)
    with pytest.raises(CodecError, match=r"position 299, and from 299 on.*prefill again"):
        encode(kv_of(bare_keys(), dataclasses.replace(PLAIN, up_to=TOKENS - 1)), pipeline)


@pytest.mark.parametrize(("name", "fixed"), [("kvquant", {"weights": "none"}), ("rotatekv", {})])
def test_more_bits_err_less(name: str, fixed: dict[str, str]) -> None:
    keys = turned(bare_keys(), torch.arange(TOKENS), PLAIN)
    kv = kv_of(keys, PLAIN)
    for side in ("keys", "values"):
        original = getattr(kv.layers[0], side)
        decoded = [decode(encode(kv, recipes()[name].build(bits=bits, **fixed))) for bits in (2, 3, 4, 6)]
        errors = [float((getattr(back.layers[0], side) - original).norm()) for back in decoded]
        assert all(fewer > 1.6 * more for fewer, more in pairwise(errors)), errors


def test_rotatekv_spreads_a_channel_that_stands_out() -> None:
    bare = bare_keys()
    bare[:, :, 3] += 60
    kv = kv_of(turned(bare, torch.arange(TOKENS), PLAIN), PLAIN)
    keys = kv.layers[0].keys
    plain = Pipeline(keys=(Group(bits=3, group=64, axis="channel"), Pack()))
    errors = [
        float((decode(encode(kv, pipeline)).layers[0].keys - keys).norm())
        for pipeline in (recipes()["rotatekv"].build(bits=3, sinks=0), plain)
    ]
    assert errors[0] < errors[1]


def test_a_rotation_of_countless_frequencies_is_refused() -> None:
    with pytest.raises(CodecError, match="inv_freq is no list of at most"):
        Rope.from_json({**PLAIN.to_json(), "inv_freq": [0.1] * 5000})
