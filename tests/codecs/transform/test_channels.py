from __future__ import annotations

import pytest
import torch

from kvtool.codecs import CodecError, Spec
from kvtool.codecs.transform.channels import Reorder, join_heads, split_heads


def test_the_largest_channels_come_first_and_go_back_to_their_place() -> None:
    x = torch.randn(2, 50, 6).clamp(-1, 1) * torch.tensor(
        [[[1.0, 9, 3, 0.1, 27, 81]], [[81.0, 27, 9, 3, 1, 0]]]
    )
    for by in ("max", "mean", "range"):
        y = Reorder(by=by).encode({"x": x}, Spec.of(x))
        sizes = y["x"].abs().mean(1)
        assert torch.equal(sizes, sizes.sort(dim=-1, descending=True).values)
        assert y["order"].tolist()[0] == [5, 4, 1, 2, 0, 3]
        assert torch.equal(Reorder(by=by).decode(y, Spec.of(x))["x"], x)


def test_heads_are_reordered_together() -> None:
    x = torch.arange(1.0, 13.0).view(3, 1, 4)
    stage = Reorder(heads=2)
    y = stage.encode({"x": x}, Spec.of(x))
    assert y["x"].flatten().tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 12, 11, 10, 9]
    assert y["order"].tolist() == [[7, 6, 5, 4], [3, 2, 1, 0], [3, 2, 1, 0]]
    assert torch.equal(stage.decode(y, Spec.of(x))["x"], x)


def test_range_and_magnitude_differ_where_a_channel_has_an_offset() -> None:
    x = torch.stack([torch.linspace(-2, 2, 9), torch.linspace(5, 6, 9)], -1)[None]
    assert Reorder(by="max").encode({"x": x}, Spec.of(x))["order"].tolist() == [[1, 0]]
    assert Reorder(by="range").encode({"x": x}, Spec.of(x))["order"].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("channels", "dtype"), [(256, torch.uint8), (257, torch.int16), (40_000, torch.int32)]
)
def test_the_order_takes_no_more_bytes_than_channels_need(channels: int, dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, channels)
    planned = Reorder().plan(Spec.of(x)).arrays["order"]
    assert (planned.dtype, planned.levels) == (dtype, channels if channels <= 256 else None)
    y = Reorder().encode({"x": x}, Spec.of(x))
    assert torch.equal(Reorder().decode(y, Spec.of(x))["x"], x)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1, 3], [255, 0, 1]])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    x = torch.randn(2, 4, 3)
    hostile = torch.tensor([[0, 1, 2], order], dtype=torch.uint8)
    with pytest.raises(CodecError, match="permutation"):
        Reorder().decode({"x": x, "order": hostile}, Spec.of(x))


def test_negative_places_are_refused() -> None:
    x = torch.randn(1, 4, 300)
    hostile = torch.arange(300, dtype=torch.int16)[None] - 1
    with pytest.raises(CodecError, match="permutation"):
        Reorder().decode({"x": x, "order": hostile}, Spec.of(x))


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 5, 7, 3), (4, 0, 3), (4, 2, 0)])
@pytest.mark.parametrize("heads", [1, 2, 5, 9])
def test_heads_split_are_joined_again(shape: tuple[int, ...], heads: int) -> None:
    x = torch.randn(shape)
    rows = split_heads(x, heads)
    assert torch.equal(join_heads(list(rows), shape), x)
