"""Segments that have lost tokens, from encoding to decoding."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvtool.codecs import (
    KV,
    Blob,
    CodecError,
    Contents,
    LayerKV,
    NeedsError,
    Pipeline,
    decode,
    encode,
    recipe,
    stage_from_config,
)
from kvtool.codecs.format import pruned as pruning
from kvtool.codecs.prune.matching import MatchAttention
from kvtool.codecs.prune.scores.inputs import MOVED_QUERIES, REPLAY_QUERIES, REPLAYED
from kvtool.codecs.prune.sculpting import SculptKeys, sculpt
from kvtool.codecs.prune.select import HEADS, Select
from kvtool.codecs.prune.stage import Prune
from kvtool.codecs.stage_registry import prune_stages
from kvtool.codecs.transform.window import Window
from tests.codecs.prune.scored import scored

START = 7
CODES = {
    "as they are": Pipeline(),
    "kivi": recipe("kivi").build(bits=8, recent=0),
    "int8-blockwise": recipe("int8-blockwise").build(),
    "layers together": Pipeline(layers=2),
}


def made_kv(layers: int = 3, heads: int = 2, tokens: int = 40, channels: int = 8) -> KV:
    generator = torch.Generator().manual_seed(tokens)

    def side() -> Tensor:
        return torch.randn(heads, tokens, channels, generator=generator)

    positions = torch.arange(START, START + tokens)
    return KV(
        tuple(LayerKV(side(), side(), positions) for _ in range(layers)), torch.arange(tokens), start=START
    )


def random_replay(kv: KV) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    queries = [torch.randn(2 * x.n_heads, 30, x.keys.shape[2], generator=generator) for x in kv.layers]
    replayed = [torch.rand(x.keys.shape[:2], generator=generator) for x in kv.layers]
    return {REPLAYED: replayed, REPLAY_QUERIES: queries, MOVED_QUERIES: [x[:, :7] for x in queries]}


def through_json(blob: Blob) -> Blob:
    return replace(blob, metadata=json.loads(json.dumps(blob.metadata)))


def check_kept(kv: KV, pruned: KV, tolerance: float = 0.0) -> None:
    """Each kept token's entries are those of ``kv`` at its position."""
    for before, after in zip(kv.layers, pruned.layers, strict=True):
        for head, some in enumerate(after.heads()):
            places = some.positions - START
            assert (places.diff() > 0).all()
            for x, y in ((before.keys, some.keys), (before.values, some.values)):
                assert y.shape[1] == len(places)
                assert not y.numel() or (y[0] - x[head, places]).abs().max() <= tolerance


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("heads", HEADS)
def test_what_is_kept_comes_back(heads: str, codes: str) -> None:
    kv = made_kv()
    pipeline = replace(CODES[codes], prune=Select("kvzip", heads, "", 0.3, sinks=1, recent=2))
    blob = encode(kv, pipeline, inputs=random_replay(kv))
    pruned = decode(through_json(blob))
    check_kept(kv, pruned, tolerance=0.0 if codes == "as they are" else 0.05)
    held = sum(head.keys.shape[1] for layer in pruned.layers for head in layer.heads())
    assert held == pytest.approx(0.3 * 3 * 2 * 40, abs=3)
    assert pruned.start == START
    # Bits per value are of all that was prefilled.
    assert Contents.from_metadata(blob.metadata).geometry.n_elements == kv.n_elements
    smaller = sum(t.numel() * t.element_size() for n, t in blob.tensors.items() if n.startswith("layers"))
    larger = sum(
        t.numel() * t.element_size()
        for n, t in encode(kv, CODES[codes]).tensors.items()
        if n.startswith("layers")
    )
    # Heads that hold different tokens cannot be coded together: all are, and some are left out later.
    assert smaller < (1.01 if codes == "layers together" and heads != "tokens" else 0.4) * larger
    # A pruned segment is stored again as it is.
    again = decode(through_json(encode(pruned, CODES["as they are"])))
    for one, other in zip(pruned.layers, again.layers, strict=True):
        assert one.lengths == other.lengths
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.positions, other.positions)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 21), st.floats(0.01, 1), st.sampled_from(sorted(HEADS)))
def test_any_size(n_heads: int, tokens: int, keep: float, heads: str) -> None:
    kv = made_kv(2, n_heads, tokens, 4)
    blob = encode(kv, Pipeline(prune=Select("keydiff", heads, "", keep)))
    check_kept(kv, decode(through_json(blob)))


def test_biases_come_back() -> None:
    kv = made_kv(tokens=9)
    biased = replace(kv, layers=tuple(replace(x, bias=torch.randn(x.keys.shape[:2])) for x in kv.layers))
    back = decode(through_json(encode(biased, Pipeline())))
    for one, other in zip(biased.layers, back.layers, strict=True):
        assert one.bias is not None
        assert other.bias is not None
        assert (one.bias - other.bias).abs().max() <= 2e-3 * one.bias.abs().max()


EXAMPLES = [stage for cls in prune_stages().values() for stage in cls.examples()]


def measured_kv(tokens: int = 40, layers: int = 3) -> tuple[KV, dict[str, list[Tensor]]]:
    """A segment, and all that stages may need of it."""
    cases = [scored(tokens, channels=8, window=6, seed=index) for index in range(layers)]
    inputs = {name: [case.inputs[name] for case in cases] for name in cases[0].inputs}
    return KV(tuple(case.layer for case in cases), torch.arange(tokens), start=0), inputs


def needed(stage: Prune, inputs: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: inputs[name] for name in stage.needs}


@pytest.mark.parametrize("stage", EXAMPLES, ids=lambda stage: stage.name)
def test_every_stage_comes_back_as_it_reduced(stage: Any) -> None:
    kv, inputs = measured_kv()
    blob = encode(kv, Pipeline(prune=stage), inputs=needed(stage, inputs))
    contents = Contents.of(kv, Pipeline(prune=stage))
    reduced = pruning.pruned(pruning.Segment(contents, kv.layers.__getitem__, needed(stage, inputs)))
    back = decode(through_json(blob))
    held = 0
    for index, after in enumerate(back.layers):
        expected = reduced.layer(index)
        assert (after.lengths, after.bias is None) == (expected.lengths, expected.bias is None)
        for name in ("keys", "values", "positions"):
            assert torch.equal(getattr(after, name), getattr(expected, name))
        if expected.bias is not None and after.bias is not None:
            assert torch.equal(after.bias, expected.bias.half().float())
        for head in after.heads():
            assert (head.positions.diff() > 0).all()
            held += len(head.positions)
    # A whole number in each head, and what tokens between those always kept must leave.
    assert 0 < held <= stage.keep * 3 * 2 * 40 + 3 * 2 * 3
    again = encode(kv, Pipeline(prune=stage), inputs=needed(stage, inputs))
    assert again.metadata == blob.metadata
    assert all(torch.equal(tensor, blob.tensors[name]) for name, tensor in again.tensors.items())


@pytest.mark.parametrize("stage", EXAMPLES, ids=lambda stage: stage.name)
def test_every_stage_that_keeps_everything_changes_no_byte(stage: Any) -> None:
    kv, inputs = measured_kv()
    whole = encode(kv, Pipeline())
    kept = encode(kv, Pipeline(prune=replace(stage, keep=1.0)), inputs=needed(stage, inputs))
    assert kept.metadata["geometry"] == whole.metadata["geometry"]
    assert kept.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in kept.tensors.items())


@pytest.mark.parametrize("cls", prune_stages().values(), ids=lambda cls: cls.name)
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_every_stage_takes_segments_of_any_length(cls: type[Any], tokens: int) -> None:
    kv, inputs = measured_kv(tokens)
    for stage in cls.examples():
        try:
            blob = encode(kv, Pipeline(prune=stage), inputs=needed(stage, inputs))
        except CodecError as error:
            # Tokens that are always kept may be more than the budget.
            if "smallest keep" not in str(error):
                raise
            continue
        assert decode(through_json(blob)).n_tokens == tokens


@pytest.mark.parametrize("cls", prune_stages().values(), ids=lambda cls: cls.name)
def test_config_survives_json(cls: type[Select]) -> None:
    for stage in cls.examples():
        config = json.loads(json.dumps(stage.to_config()))
        assert stage_from_config(config) == stage
        pipeline = replace(CODES["kivi"], prune=stage)
        assert Pipeline.from_config(json.loads(json.dumps(pipeline.to_config()))) == pipeline
        with pytest.raises(CodecError, match=r"expected transform"):
            Pipeline.from_config({"keys": [config], "values": []})


def test_what_is_refused() -> None:
    kv = made_kv()
    for wrong in (
        {"keep": 0.0},
        {"keep": 1.5},
        {"sinks": -1},
        {"heads": "none"},
        {"layers": "none"},
        {"layers": "pyramid", "heads": "across"},
        {"score": "none"},
    ):
        with pytest.raises(CodecError, match=next(iter(wrong))):
            Select(**{"score": "l2-norm", **wrong})
    with pytest.raises(CodecError, match=r"smallest keep .* is 0\.75"):
        encode(kv, Pipeline(prune=Select("l2-norm", keep=0.5, sinks=10, recent=20)))
    with pytest.raises(NeedsError, match=REPLAYED):
        encode(kv, Pipeline(prune=Select("kvzip")))
    pruned = decode(encode(kv, Pipeline(prune=Select("l2-norm"))))
    with pytest.raises(CodecError, match="lost tokens already"):
        encode(pruned, Pipeline(prune=Select("l2-norm")))
    different = replace(recipe("minicache").build(), prune=None)
    with pytest.raises(CodecError, match="coded together, but hold different tokens"):
        encode(decode(encode(kv, Pipeline(prune=Select("l2-norm")))), different)
    window = Pipeline(keys=(Window(recent=4),), prune=Select("l2-norm"))
    with pytest.raises(CodecError):
        encode(kv, window)


def test_a_broken_mask_is_refused() -> None:
    kv = made_kv()
    blob = encode(kv, Pipeline(prune=Select("l2-norm", keep=0.3)))
    (name, *_) = (name for name in blob.tensors if name.endswith("kept"))
    more = blob.tensors[name] | 1
    for tensors, match in (
        ({**blob.tensors, name: ~more}, "numbers of tokens"),
        ({n: t for n, t in blob.tensors.items() if n != name}, "missing"),
    ):
        with pytest.raises(CodecError, match=match):
            decode(replace(blob, tensors=tensors))
    geometry = json.loads(json.dumps(blob.metadata["geometry"]))
    for lengths in ([1], [12.0, 12], "12", [-1, 25], [41, 0]):
        wrong = {**geometry, "layers": [{**geometry["layers"][0], "lengths": lengths}]}
        with pytest.raises(CodecError, match="geometry"):
            decode(replace(blob, metadata={**blob.metadata, "geometry": wrong}))


def test_combinations_are_named_with_a_plus() -> None:
    built = recipe("kvzip+kivi").build(keep=0.25, bits=4)
    assert built.prune == recipe("kvzip").build(keep=0.25).prune
    # Windows are of no use where heads hold different tokens.
    assert built.keys == recipe("kivi").build(bits=4, recent=0).keys
    assert recipe("kvzip+kivi").build(recent=8).keys == recipe("kivi").build(recent=8).keys
    for wrong in ("kivi+kvzip", "kvzip+kvzip", "kvzip+kivi+nf4"):
        with pytest.raises(CodecError, match=r"a plus|no recipe"):
            recipe(wrong)


def test_matched_attention_reads_nearly_what_all_tokens_give() -> None:
    kv = made_kv(tokens=200, channels=4)
    inputs = random_replay(kv)
    plain, matched = (
        decode(encode(kv, Pipeline(prune=stage), inputs=inputs))
        for stage in (Select("kvzip", "across", "", 0.4), MatchAttention("kvzip", "across", "", 0.4))
    )
    for index, layer in enumerate(kv.layers):
        for head, every in enumerate(layer.heads()):
            queries = inputs[REPLAY_QUERIES][index][2 * head : 2 * head + 2].flatten(0, 1)
            whole = read_by(queries, every)
            errors = []
            for pruned in (plain, matched):
                (some,) = list(pruned.layers[index].heads())[head : head + 1]
                mass, output = read_by(queries, some)
                errors.append(
                    (
                        float((mass - whole[0]).abs().mean()),
                        float((output - whole[1]).norm() / whole[1].norm()),
                    )
                )
            assert errors[1][0] < 0.3 * errors[0][0]
            assert errors[1][1] < 0.6 * errors[0][1]


def test_sculpted_pairs_read_more_nearly_what_all_tokens_give_with_each_round() -> None:
    generator = torch.Generator().manual_seed(3)
    keys, values, queries = (torch.randn(n, 4, generator=generator) for n in (60, 60, 200))
    kept, exact = torch.arange(60) % 4 == 0, torch.arange(60) < 8
    whole = LayerKV(keys[None], values[None], torch.arange(60))
    mass, output = read_by(queries, whole)
    losses = []
    for rounds in (0, 1, 5):
        new_keys, new_values, error = sculpt(queries, keys, values, kept, exact, rounds)
        assert torch.equal(new_keys[:2], keys[kept][:2])
        assert torch.equal(new_values[:2], values[kept][:2])
        over, read = read_by(queries, LayerKV(new_keys[None], new_values[None], torch.arange(15)))
        assert float((read - output).square().mean()) == pytest.approx(error, rel=1e-4)
        losses.append(error + float((over - mass).square().mean()))
    assert losses[0] > 3 * losses[1] > 3 * losses[2]


def test_heads_that_are_hard_to_sculpt_get_more_pairs() -> None:
    kv, inputs = measured_kv(tokens=60)
    hard = [
        replace(layer, values=layer.values * torch.tensor([1.0, 30.0])[:, None, None]) for layer in kv.layers
    ]
    stage = SculptKeys(0.4, 1, 2, 1)
    given = [{name: inputs[name][index] for name in stage.needs} for index in range(3)]
    scores = [stage.scores(layer, some, None) for layer, some in zip(hard, given, strict=True)]
    masks = stage.choose(scores, hard, given)
    assert sum(int(mask.sum()) for mask in masks) == round(0.4 * 3 * 2 * 60)
    assert all(mask[1].sum() > mask[0].sum() > 3 for mask in masks)


def read_by(queries: Tensor, head: LayerKV) -> tuple[Tensor, Tensor]:
    """The logarithm of the mass of attention, and what is read."""
    scores = queries @ head.keys[0].T / head.keys.shape[2] ** 0.5
    scores = scores if head.bias is None else scores + head.bias
    return scores.logsumexp(1), scores.softmax(1) @ head.values[0]


@pytest.mark.parametrize("n_heads", [1, 2])
def test_layers_that_hold_different_tokens_are_coded_whole(n_heads: int) -> None:
    kv = made_kv(4, n_heads)
    blob = encode(kv, Pipeline(layers=2, prune=Select("l2-norm", keep=0.3)))
    pruned = decode(through_json(blob))
    check_kept(kv, pruned)
    assert {head.keys.shape[1] for layer in pruned.layers for head in layer.heads()} == {12}
