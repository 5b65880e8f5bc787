from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtool.codecs import KV, CodecError, LayerKV, Payload, Place, Spec, decode, encode
from kvtool.codecs.transform.merge_layers import MergeLayers

UPPER = Place(first=2, count=2, total=4)


def spec_of(x: Tensor, place: Place = UPPER) -> Spec:
    return Spec.of(x, place=place)


def round_trip(stage: MergeLayers, x: Tensor) -> tuple[Payload, Tensor]:
    encoded = stage.encode({"x": x}, spec_of(x))
    return encoded, stage.decode(encoded, spec_of(x))["x"]


@pytest.fixture
def x() -> Tensor:
    """Two layers that point roughly, and at tokens 3 and 17 not at all, the same way, at different lengths."""
    generator = torch.Generator().manual_seed(2)
    shared = torch.randn(3, 40, 16, generator=generator)
    x = torch.stack([shared, 5 * shared]) + 0.1 * torch.randn(2, 3, 40, 16, generator=generator)
    x[0, :, [3, 17]] *= -1
    return x


def test_layers_that_point_the_same_way_survive_one_direction(x: Tensor) -> None:
    encoded, back = round_trip(MergeLayers(), x)
    assert encoded["retained_index"].tolist() == [3, 17]
    assert (back[:, :, [3, 17]] - x[:, :, [3, 17]]).abs().max() < 1e-2
    assert ((back - x).norm() / x.norm()) < 0.1
    assert torch.allclose(back.norm(dim=-1), x.norm(dim=-1), rtol=2e-3)


def test_unmerged_tokens_are_what_is_not_lost(x: Tensor) -> None:
    losses = [(round_trip(MergeLayers(retained=r), x)[1] - x).norm() for r in (0.0, 0.05, 0.5, 1.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.5 * losses[0]
    assert losses[3] < 1e-3 * x.norm()


def test_t_goes_from_the_lower_layer_to_the_upper(x: Tensor) -> None:
    for t, own in ((0.0, 0), (1.0, 1)):
        _, back = round_trip(MergeLayers(t=t, retained=0.0), x)
        assert torch.allclose(back[own], x[own], rtol=2e-3, atol=1e-2)
        assert not torch.allclose(back[1 - own], x[1 - own], rtol=2e-3, atol=1e-2)


def test_the_direction_divides_the_angle() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 1, 2)
    encoded, _ = round_trip(MergeLayers(t=1 / 3, retained=0.0), x)
    assert torch.allclose(encoded["x"].float(), torch.tensor([3**0.5 / 2, 0.5]), atol=1e-3)


@pytest.mark.parametrize("lower", [[0.0, 0.0], [-3.0, 0.0], [3.0, 1e-9]])
def test_where_there_is_no_arc_directions_are_finite(lower: list[float]) -> None:
    x = torch.tensor([lower, [2.0, 0.0]]).reshape(2, 1, 1, 2)
    encoded, back = round_trip(MergeLayers(retained=0.0), x)
    assert torch.allclose(encoded["x"].float().norm(), torch.tensor(1.0), atol=1e-3)
    assert torch.allclose(back[1], x[1], atol=1e-2)


@pytest.mark.parametrize("place", [Place(0, 2, 4), Place(1, 2, 4), Place(2, 1, 4)])
def test_lower_and_single_layers_are_laid_side_by_side(x: Tensor, place: Place) -> None:
    x = x[: place.count]
    encoded = MergeLayers().encode({"x": x}, spec_of(x, place))
    assert encoded.keys() == {"x"}
    assert torch.equal(encoded["x"], x.reshape(-1, 40, 16))


def test_more_than_two_layers_are_refused() -> None:
    with pytest.raises(CodecError, match="layers of x is 3, expected 1 or 2"):
        MergeLayers().plan(spec_of(torch.zeros(3, 1, 5, 8)))


@pytest.mark.parametrize("hostile", [-1, 40, 1 << 30])
def test_hostile_indices_are_refused(x: Tensor, hostile: int) -> None:
    encoded, _ = round_trip(MergeLayers(), x)
    index = torch.tensor([3, hostile], dtype=torch.int32)
    with pytest.raises(CodecError, match=r"retained_index holds .*, expected 0 to 39"):
        MergeLayers().decode({**encoded, "retained_index": index}, spec_of(x))


def test_minicache_merges_the_upper_half(x: Tensor) -> None:
    layers = tuple(LayerKV(layer, layer, torch.arange(40)) for layer in (*x, *x, x[0]))
    kv = KV(layers, torch.arange(40))
    blob = encode(kv, "minicache", start=40)
    merged = {name.split(".")[1] for name in blob.tensors if "magnitude" in name}
    assert merged == {"0002-0003"}
    for index, back in enumerate(decode(blob).layers):
        assert (back.keys - layers[index].keys).norm() < 0.2 * layers[index].keys.norm()
    bare = decode(encode(kv, "minicache", start=40, bits=0)).layers
    assert torch.equal(bare[0].keys, layers[0].keys)
    assert not torch.equal(bare[2].keys, layers[2].keys)
