"""The recipe kvtc: principal components, bits by dynamic programming, and what a calibration may not say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kvtool.codecs import (
    KV,
    Array,
    Calibration,
    CodecError,
    Contents,
    LayerKV,
    Place,
    Rope,
    Sample,
    Spec,
    decode,
    encode,
    recipe,
)
from kvtool.codecs.calibrate import bits, kvtc, principal
from kvtool.codecs.calibrate.bit_allocation import WHOLE, Run, runs_of
from kvtool.codecs.quantize.allocated import Allocated
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.transform.pca import Pca


def make_kv(tokens: int, seed: int, sizes: tuple[tuple[int, int], ...] = ((2, 16),) * 4) -> KV:
    """Layers whose tokens lie near a subspace that all segments and all layers share."""
    shared = torch.Generator().manual_seed(100)
    own = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 40, generator=own) * 0.9 ** torch.arange(40)
    layers = []
    for heads, channels in sizes:
        sides = []
        for _ in range(2):
            mixed = hidden @ torch.randn(40, heads * channels, generator=shared)
            noise = 0.01 * torch.randn(mixed.shape, generator=own)
            offset = 5 * torch.randn(heads * channels, generator=shared)
            sides.append((mixed + noise + offset).view(tokens, heads, channels).transpose(0, 1).contiguous())
        layers.append(LayerKV(sides[0], sides[1], torch.arange(tokens)))
    rotations = {"rotations": [Rope(()).to_json()], "rotation_of_layer": [0] * len(layers)}
    return KV(tuple(layers), torch.arange(tokens), rotations)


def fitted(*sizes: tuple[int, int], **options: int) -> Calibration:
    made = {"sizes": sizes} if sizes else {}
    return kvtc.fit([Sample(make_kv(700, seed, **made)) for seed in (1, 2, 3)], **options)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fitted()


# Principal components


def rows(n: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    mixed = torch.randn(n, width, generator=generator) * 0.8 ** torch.arange(width)
    return mixed @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q


@pytest.mark.parametrize("exact", [True, False])
def test_components_are_those_of_the_singular_value_decomposition(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(principal, "EXACT_AT_MOST", 200 if exact else 1)
    x = rows(500, 100)
    found = principal.principal([x[:300], x[300:]], 100, 12, seed=0)
    best = torch.linalg.svd(x, full_matrices=False).Vh[:12]
    assert torch.allclose(found @ found.mT, torch.eye(12), atol=1e-5)
    assert torch.allclose((found * best).sum(1).abs(), torch.ones(12), atol=1e-3)
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


def test_more_directions_than_rows_vary_in_are_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(20, 100)
    for limit in (200, 1):
        monkeypatch.setattr(principal, "EXACT_AT_MOST", limit)
        found = principal.principal([x], 100, 20, seed=0)
        assert torch.allclose(x @ found.mT @ found, x, atol=1e-4)


# Bits


def cost(runs: list[Run]) -> int:
    return sum(run.blocks * (16 if run.bits == WHOLE else 32 + run.size * run.bits) for run in runs)


def error(x: Tensor, runs: list[Run]) -> float:
    off, start = 0.0, 0
    for run in runs:
        part = x[None, :, start : start + run.channels].contiguous()
        start += run.channels
        if run.bits == WHOLE:
            back = part.half().float()
        else:
            stage, spec = Group(run.bits, run.size, "channel"), Spec({"x": Array(tuple(part.shape), x.dtype)})
            back = stage.decode(stage.encode({"x": part}, spec), spec)["x"]
        off += (back - part).double().square().sum().item()
    return off + x[:, start:].double().square().sum().item()


def test_no_other_blocks_within_the_budget_err_less() -> None:
    x = torch.randn(60, 40, generator=torch.Generator().manual_seed(2)) * 0.85 ** torch.arange(40) * 30
    blocks = [(1, WHOLE), *((16, b) for b in bits.WIDTHS)]
    for budget in (3, 9, 20):
        found = bits.allocate(x, {7: budget})[7]
        assert cost(found) <= 16 * budget
        every = (
            [Run(1, *block) for block in row]
            for wholes in range(9)
            for coded in range(3)
            for row in itertools.product(*[blocks[:1]] * wholes, *[blocks[1:]] * coded)
        )
        least = min(error(x, row) for row in every if cost(row) <= 16 * budget)
        assert error(x, found) == pytest.approx(least, rel=1e-3)


def test_a_larger_budget_errs_less_and_nothing_is_kept_of_nothing() -> None:
    x = torch.randn(50, 300, generator=torch.Generator().manual_seed(3)) * 0.98 ** torch.arange(300) * 10
    found = bits.allocate(x, {budget: budget for budget in (0, 4, 16, 64, 200)})
    assert found[0] == []
    errors = [error(x, runs) for runs in found.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]
    assert all(cost(runs) <= 16 * budget for budget, runs in found.items())
    assert bits.allocate(torch.zeros(50, 300), {1: 200}) == {1: []}
    # What comes first varies most, and gets the most bits.
    depths = [run.bits for run in found[200]]
    assert depths == sorted(depths, reverse=True)


# The recipe


def test_what_is_stored_keeps_to_the_ratio(calibration: Calibration) -> None:
    kv = make_kv(2000, 9)
    errors = []
    for ratio in kvtc.RATIOS:
        blob = encode(kv, "kvtc", calibration=calibration, ratio=ratio, sinks=0, recent=0)
        stored = {name: tensor for name, tensor in blob.tensors.items() if name != "token_ids"}
        assert list(stored) == ["layers.0000-0003.keys", "layers.0000-0003.values"]
        assert sum(tensor.numel() for tensor in stored.values()) <= 2 * kv.n_elements / ratio
        back = decode(blob)
        off = [
            (one.keys - other.keys).norm() / one.keys.norm()
            for one, other in zip(kv.layers, back.layers, strict=True)
        ]
        errors.append(float(sum(off)))
    assert errors == sorted(errors)
    assert errors[0] / len(kv.layers) < 0.02


def test_kept_tokens_are_exact_and_what_is_between_goes_through_the_basis(calibration: Calibration) -> None:
    kv = make_kv(300, 9)
    half = [LayerKV(x.keys.bfloat16(), x.values.bfloat16(), x.positions) for x in kv.layers]
    back = decode(encode(KV(tuple(half), kv.token_ids, kv.rope), "kvtc", calibration=calibration, ratio=64))
    for one, other in zip(half, back.layers, strict=True):
        for side in ("keys", "values"):
            there, here = getattr(one, side), getattr(other, side)
            assert torch.equal(here[:, :4], there[:, :4])
            assert torch.equal(here[:, -128:], there[:, -128:])
            assert not torch.equal(here[:, 4:-128], there[:, 4:-128])


def test_layers_of_other_sizes_have_a_basis_of_their_own() -> None:
    sizes = ((2, 16), (2, 16), (1, 8), (2, 16))
    calibration = fitted(*sizes)
    names = {
        f"{first}.{side}.{part}"
        for first in ("0000", "0002", "0003")
        for side in ("keys", "values")
        for part in ("basis", "mean")
    }
    assert set(calibration.tensors) == names
    kv = make_kv(400, 9, sizes)
    blob = encode(kv, "kvtc", calibration=calibration, ratio=8)
    assert [
        group.start
        for group in Contents.from_metadata(blob.metadata, {calibration.digest: calibration}).groups
    ] == [0, 2, 3]
    for one, other in zip(kv.layers, decode(blob).layers, strict=True):
        assert (one.values - other.values).norm() < 0.4 * one.values.norm()
    with pytest.raises(CodecError, match=r"has no blocks 0002.keys|0000.keys.basis is"):
        encode(make_kv(400, 9), "kvtc", calibration=calibration)


def test_components_of_no_ratio_are_not_kept(calibration: Calibration) -> None:
    for name in ("0000.keys", "0000.values"):
        kept = [sum(run.channels for run in runs_of(calibration, name, ratio)) for ratio in kvtc.RATIOS]
        assert kept == sorted(kept, reverse=True)
        basis = calibration.tensors[f"{name}.basis"]
        assert basis.shape == (kept[0], 4, 2, 16)
        assert basis.dtype == torch.float16
    assert sum(run.channels for run in runs_of(fitted(rank=5), "0000.keys", 8)) <= 5


def test_samples_that_do_not_fit_together_or_are_too_short_are_refused() -> None:
    with pytest.raises(CodecError, match="no sample has more than 132 tokens"):
        kvtc.fit([Sample(make_kv(132, 1))])
    with pytest.raises(
        CodecError, match=r"kvtc: 31 tokens between .* are too few, expected at least 32, one"
    ):
        kvtc.fit([Sample(make_kv(132 + 31, 1))])
    assert kvtc.fit([Sample(make_kv(132 + 32, 1))])
    assert kvtc.fit([Sample(make_kv(132, 1)), Sample(make_kv(200, 2))]).facts["tokens"] == 68
    for others in ([], [make_kv(300, 1), make_kv(300, 1, ((2, 16),) * 3)]):
        with pytest.raises(CodecError, match="samples are of several models, or there are none"):
            kvtc.fit([Sample(kv) for kv in others])
    with pytest.raises(CodecError, match="samples differ in heads or channels"):
        kvtc.fit([Sample(make_kv(300, 1)), Sample(make_kv(300, 1, ((2, 8),) * 4))])


# What a calibration may not say


SPEC = Spec({"x": Array((4, 2, 10, 16), torch.float32)}, place=Place(0, 4, 4))


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("blocks",), None, "has no blocks 0000.keys"),
        (("blocks", "0000.keys"), {}, "has no blocks 0000.keys 16"),
        (("blocks", "0000.keys", "16"), "x", "blocks of 0000.keys at 16 is x"),
        (("blocks", "0000.keys", "16"), [[1, 16, 9]], "expected lists of blocks, size and bits"),
        (("blocks", "0000.keys", "16"), [[1, 16]], "expected lists of blocks, size and bits"),
        (("blocks", "0000.keys", "16"), [[0, 16, 1]], "expected lists of blocks, size and bits"),
        (("blocks", "0000.keys", "16"), [[True, 16, 1]], "expected lists of blocks, size and bits"),
        (("blocks", "0000.keys", "16"), [[1 << 70, 1, 1]], "expected lists of blocks, size and bits"),
        (("blocks", "0000.keys", "16"), [[1, 129, 1]], "number of components with bits is 129"),
        (("rank", "0000.keys"), -1, "rank of 0000.keys is -1"),
        (("rank", "0000.keys"), 1 << 24, "0000.keys.basis is"),
        (("rank", "0000.keys"), True, "rank of 0000.keys is True"),
    ],
)
def test_facts_that_kvtool_would_not_have_written_are_refused(
    calibration: Calibration, path: tuple[str, ...], value: object, match: str
) -> None:
    facts: Any = dict(calibration.facts)
    at = facts
    for key in path[:-1]:
        at[key] = dict(at[key])
        at = at[key]
    at[path[-1]] = value
    stage = Pca(replace(calibration, facts=facts))
    assert Pca(calibration).plan(SPEC)
    with pytest.raises(CodecError, match=match):
        stage.plan(SPEC)


def test_tensors_of_another_shape_or_dtype_are_refused(calibration: Calibration) -> None:
    for name, tensor in calibration.tensors.items():
        if ".keys" in name:
            for wrong in (tensor.double(), tensor[:-1]):
                with pytest.raises(CodecError, match=f"{name} is"):
                    Pca(replace(calibration, tensors={**calibration.tensors, name: wrong})).plan(SPEC)


def test_components_that_have_no_bits_and_values_past_float16_are_refused(calibration: Calibration) -> None:
    stage = Allocated(calibration)
    spec = Spec({"x": Array((1, 10, 3), torch.float32)}, place=Place(0, 4, 4))
    with pytest.raises(CodecError, match="channels of x is 3, expected"):
        stage.plan(spec)
    n = sum(run.channels for run in runs_of(calibration, "0000.keys", 16))
    spec = Spec({"x": Array((1, 10, n), torch.float32)}, place=Place(0, 4, 4))
    with pytest.raises(CodecError, match="beyond float16's"):
        stage.encode({"x": torch.full((1, 10, n), 1e6)}, spec)


def test_a_ratio_that_was_not_calibrated_is_refused(calibration: Calibration) -> None:
    with pytest.raises(CodecError, match=r"has no blocks 0000.keys 24, .* for other ratios"):
        Pca(calibration, ratio=24).plan(SPEC)
    with pytest.raises(CodecError, match="ratio is 24, expected 8, 16, 32, 64, 128"):
        recipe("kvtc").build(calibration, ratio=24)
