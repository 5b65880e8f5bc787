"""Some pages of a segment are decoded as the whole is, and their bounds hold what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtool.codecs import KV, Contents, LayerKV, decode, encode, recipe
from kvtool.codecs.format.paged import Paged

START = 5


def segment(n_tokens: int, dtype: torch.dtype = torch.float32) -> KV:
    layers = [
        LayerKV(
            torch.randn(2, n_tokens, 8).to(dtype),
            torch.randn(2, n_tokens, 4).to(dtype),
            torch.arange(START, START + n_tokens),
        )
        for _ in range(2)
    ]
    return KV(tuple(layers), torch.arange(n_tokens), start=START)


def pages_of(kv: KV, name: str = "quest", **parameters: float | str) -> Paged | None:
    return Paged.of(Contents.of(kv, recipe(name).build(**parameters)))


@given(
    n_tokens=st.integers(1, 70),
    page=st.integers(1, 20),
    bits=st.sampled_from([2, 4, 8, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_pages_are_decoded_as_in_the_whole(
    n_tokens: int, page: int, bits: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    kv = segment(n_tokens, dtype)
    paged = pages_of(kv, page=page, bits=bits)
    assert paged is not None
    every = list(range(paged.n_pages))
    pages = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
    tokens = torch.tensor([token for page in pages for token in paged.tokens(page)])
    blob = encode(kv, "quest", page=page, bits=bits)
    for index, whole in enumerate(decode(blob).layers):
        rows = {name: blob.tensors[name][tokens] for name in paged.arrays(index)}
        bounds = {name: blob.tensors[name][pages] for name in paged.bound_names(index)}
        layer = paged.decode(index, pages, rows | bounds)
        assert torch.equal(layer.keys, whole.keys[:, tokens])
        assert torch.equal(layer.values, whole.values[:, tokens])
        assert torch.equal(layer.positions, tokens + START)


@given(n_tokens=st.integers(1, 40), page=st.integers(1, 20), bits=st.sampled_from([2, 8, 16]))
def test_no_key_is_beyond_the_bounds_of_its_page(n_tokens: int, page: int, bits: int) -> None:
    kv = segment(n_tokens)
    paged = pages_of(kv, page=page, bits=bits)
    assert paged is not None
    blob = encode(kv, "quest", page=page, bits=bits)
    for index, layer in enumerate(decode(blob).layers):
        low, high = paged.bounds(blob.tensors, index)
        # Codes are multiplied and added in another order.
        rounding = 0.0 if bits == 16 else 1e-5
        for number in range(paged.n_pages):
            tokens = paged.tokens(number)
            keys = layer.keys[:, tokens.start : tokens.stop].transpose(0, 1)
            assert (keys >= low[number] - rounding).all()
            assert (keys <= high[number] + rounding).all()


def test_whole_it_is_the_very_segment() -> None:
    kv = segment(37, torch.bfloat16)
    for layer, other in zip(decode(encode(kv, "quest")).layers, kv.layers, strict=True):
        assert torch.equal(layer.keys, other.keys)
        assert torch.equal(layer.values, other.values)


@pytest.mark.parametrize("name", ["kivi", "lossless", "keydiff", "keydiff+quest"])
def test_other_recipes_have_no_pages(name: str) -> None:
    kv = segment(64)
    found = recipe(name)
    contents = Contents.of(kv, found.build())
    if name == "keydiff+quest":
        contents = Contents.of(decode(encode(kv, found)), found.build())
    assert Paged.of(contents) is None
