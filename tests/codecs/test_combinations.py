"""Stages of different recipes together: refused when they are planned, or as good as they say."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvtool.codecs import KV, CodecError, Contents, LayerKV, Pipeline, Rope, Stage, decode, encode, stages

SHAPES = [(2, 37, 10), (1, 40, 33), (2, 24, 16), (2, 1, 8), (3, 0, 8), (2, 5, 0), (0, 4, 8)]
DTYPES = [torch.float32, torch.float16, torch.float16, torch.bfloat16]
FILLS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: torch.full_like(x, -0.3),
    lambda x: x * 1e-7,
    lambda x: x * torch.where(x.abs() > 2, 100, 1),
    lambda x: x.sign() * torch.finfo(torch.float16).max,
]
LAYERS = 3

OF_KIND: dict[str, list[Stage]] = {}
# What a calibration is of takes the sizes of its examples alone; conformance tries these.
for _stage in (s for cls in stages().values() for s in cls.examples() if not s.calibrations):
    OF_KIND.setdefault(_stage.kind, []).append(_stage)


@pytest.mark.parametrize("first", OF_KIND["transform"], ids=repr)
def test_any_two_stages_and_more(first: Stage) -> None:
    draw, kept = random.Random(repr(first)), 0
    for second in (*OF_KIND["transform"], *OF_KIND["quantize"]):
        more = draw.choices(OF_KIND["transform"], k=draw.randint(0, 1))
        last = [draw.choice(OF_KIND["quantize"])] * draw.randint(0, 1) if second.kind != "quantize" else []
        chain = (*more, first, second, *last, draw.choice(OF_KIND["entropy"]))
        pipeline = Pipeline(**{draw.choice(("keys", "values")): chain}, layers=draw.choice((1, 1, 2)))
        kept += keeps_its_word(pipeline, draw.choice(SHAPES), draw.choice(DTYPES), draw.choice(FILLS))
    assert kept


def keeps_its_word(
    pipeline: Pipeline, shape: tuple[int, ...], dtype: torch.dtype, fill: Callable[[Tensor], Tensor]
) -> bool:
    """Whether the pipeline takes such a cache; asserts that what it takes it gives back, whole and in part."""
    heads, tokens, channels = shape
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, *shape, generator=generator)
    keys, values = fill(x).to(dtype)
    layer = LayerKV(keys, values, torch.arange(5, 5 + 2 * tokens, 2))
    rope = Rope(tuple(100 ** (-i / 8) for i in range(channels // 2)))
    rotations = {"rotations": [rope.to_json()], "rotation_of_layer": [0] * LAYERS}
    kv = KV((layer,) * LAYERS, torch.arange(tokens), rotations)
    inputs = {
        "attention": [torch.rand(heads, tokens, generator=generator)] * LAYERS,
        "importance": [torch.rand(tokens, generator=generator)] * LAYERS,
        "queries": [torch.randn(2 * heads, 6, channels, generator=generator)] * LAYERS,
        "window_queries": [torch.randn(2 * heads, min(tokens, 4), channels, generator=generator)] * LAYERS,
    }
    try:
        blob = encode(kv, pipeline, inputs=inputs)
    except CodecError as error:
        # What a plan cannot know: how large entries are, and how many channels the model's queries have.
        if not re.search(
            r"^pipeline: |float16|too large|a coefficient in steps|shape of queries|window_queries",
            str(error),
        ):
            raise
        return False
    assert all(t.equal(blob.tensors[name]) for name, t in encode(kv, pipeline, inputs=inputs).tensors.items())
    back = decode(type(blob)(blob.tensors, json.loads(json.dumps(blob.metadata))))
    contents = Contents.of(kv, pipeline)
    for group in contents.groups:
        own = {name: [tensors[index] for index in group] for name, tensors in inputs.items()}
        bounds = pipeline.error([kv.layers[index] for index in group], contents.place(group), own)
        some = range(1, tokens - 1) if tokens > 2 else range(0)
        part = contents.decode(group, {name: blob.tensors[name] for name in contents.arrays(group)}, some)
        for index, piece in zip(group, part, strict=True):
            for name, bound in zip(("keys", "values"), bounds, strict=True):
                was, now = getattr(layer, name), getattr(back.layers[index], name)
                assert (now.dtype, now.shape) == (was.dtype, was.shape)
                assert torch.equal(getattr(piece, name), now[:, some.start : some.stop])
                assert not was.numel() or (was.double() - now.double()).abs().max() <= bound, pipeline
    return True
