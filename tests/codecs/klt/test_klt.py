"""klt's parts: compact matrices, predictions from tokens, weighted coefficients, sinks, and tokens' steps."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kvtool.codecs import KV, CodecError, LayerKV, Pipeline, Place, Rope, Sample, Spec, decode, encode
from kvtool.codecs.calibrate import principal
from kvtool.codecs.calibrate.principal import leading
from kvtool.codecs.calibration import Calibration
from kvtool.codecs.klt import calibrate, embeddings, products
from kvtool.codecs.klt.basis import basis_of
from kvtool.codecs.klt.weights import Weights
from kvtool.codecs.quantize.deadzone import MIDDLE, Deadzone
from kvtool.codecs.spec import Array
from kvtool.codecs.transform.klt import Klt
from kvtool.codecs.transform.sinks import Sinks
from kvtool.recipes.low_rank.klt import klt as klt_pipeline

LAYERS, HEADS, CHANNELS, VOCABULARY = 3, 2, 6, 40
ROPE = Rope((1.0, 0.1, 0.01))
EMBEDDING = torch.randn(VOCABULARY, 10, generator=torch.Generator().manual_seed(1))
SAYS = torch.randn(10, 2 * LAYERS * HEADS * CHANNELS, generator=torch.Generator().manual_seed(2))

WEIGHTS = torch.tensor([1.0, 16.0, 1 / 16, 1e9])


def drawn(seed: int, tokens: int = 400, start: int = 7, gradients: bool = True, noise: float = 0.3) -> Sample:
    """Values that a token's embedding foretells but for noise; keys too, before they are rotated."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    unit = torch.nn.functional.normalize(EMBEDDING, dim=1)
    rows = unit[ids] @ SAYS + noise * torch.randn(tokens, SAYS.shape[1], generator=generator)
    positions = torch.arange(start, start + tokens)
    sides = rows.view(tokens, 2, LAYERS, HEADS, CHANNELS).permute(1, 2, 3, 0, 4)
    angles = positions[:, None] * torch.tensor(ROPE.inv_freq)
    a, b = sides[0].chunk(2, dim=-1)
    turned = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)
    layers = tuple(LayerKV(turned[n], sides[1][n].contiguous(), positions) for n in range(LAYERS))
    slopes = torch.randn(2, LAYERS, HEADS, tokens, CHANNELS, generator=generator)
    slopes *= torch.logspace(0, -1, LAYERS)[:, None, None, None]
    own = tuple(LayerKV(slopes[0, n], slopes[1, n], positions) for n in range(LAYERS))
    rope = {"rotations": [ROPE.to_json()], "rotation_of_layer": [0] * LAYERS}
    return Sample(KV(layers, ids, rope), own if gradients else None)


def fitted(samples: Sequence[Sample] | None = None, **options: object) -> Calibration:
    return calibrate.fit(samples or [drawn(seed) for seed in range(3)], **options)  # type: ignore[arg-type]


def spec_of(sample: Sample) -> Spec:
    shape = (LAYERS, HEADS, sample.kv.n_tokens, CHANNELS)
    start = int(sample.kv.layers[0].positions[0])
    return Spec({"x": Array(shape, torch.float32)}, place=Place(0, LAYERS, LAYERS, (ROPE,) * LAYERS, start))


def values(sample: Sample) -> Tensor:
    return torch.stack([layer.values for layer in sample.kv.layers])


def test_leading_directions_are_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(400, 400, generator=generator)).Q
    symmetric = (axes * torch.logspace(0, -6, 400)) @ axes.mT
    for rank in (10, 300):
        found = leading(symmetric, rank, seed=0)
        torch.testing.assert_close(found @ found.mT, torch.eye(rank), atol=1e-4, rtol=0)
        kept = ((found @ symmetric) * found).sum(1)
        torch.testing.assert_close(kept[:10], torch.logspace(0, -6, 400)[:10], rtol=1e-3, atol=0)


def test_what_tokens_say_is_taken_off() -> None:
    test = drawn(99)
    left = {}
    for features in (0, 10):
        stage = Klt(fitted(embedding=EMBEDDING, features=features), "values")
        coded = stage.encode({"x": values(test), "token_ids": test.kv.token_ids}, spec_of(test))["x"]
        left[features] = coded.square().sum().item()
    # The noise is a tenth of the whole, in variance; four bits of the table blur what is foretold.
    assert left[10] < 0.25 * left[0]


def test_a_named_embedding_gives_the_features_that_a_table_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"d1": EMBEDDING}
    monkeypatch.setattr(embeddings, "_finders", [known.get])
    table = fitted(embedding=EMBEDDING, features=6)
    named = fitted(embedding=EMBEDDING, embedding_digest="d1", features=6)
    assert "tokens.bytes" not in named.tensors
    ids = torch.tensor([0, 39, 7, 40, -1])
    held, found = (basis_of(one, "0000.keys").own_features(ids) for one in (table, named))
    torch.testing.assert_close(found, held, rtol=0, atol=0.05)
    assert not found[3:].any()
    assert found[:3].all()
    known.clear()
    with pytest.raises(
        CodecError, match=rf"{re.escape(named.label)}: needs the input embedding .* \(digest d1"
    ):
        basis_of(named, "0000.keys").own_features(ids)
    known["d1"] = EMBEDDING[1:]
    with pytest.raises(CodecError, match=r"shape of the embedding is \[39, 10\], expected \[40, 10\]"):
        basis_of(named, "0000.keys").own_features(ids)


@pytest.mark.parametrize("side", ["keys", "values"])
def test_coefficients_leave_the_least_weighted_error(side: str) -> None:
    sample = drawn(5)
    calibration = fitted(rank=20)
    basis = basis_of(calibration, f"0000.{side}")
    assert isinstance(basis.weights, Weights)
    root = torch.block_diag(*basis.weights.root).double()
    rows = torch.randn(30, basis.sizes.width, generator=torch.Generator().manual_seed(3))
    expected = torch.linalg.lstsq((basis.synthesis.double() @ root).mT, (rows.double() @ root).mT).solution.mT
    torch.testing.assert_close(basis.projected(rows), expected.float(), rtol=1e-3, atol=1e-3)
    assert sample.gradients is not None


def test_all_components_give_all_back() -> None:
    sample = drawn(5)
    stage = Klt(fitted(embedding=EMBEDDING), "values")
    given = {"x": values(sample), "token_ids": sample.kv.token_ids}
    spec = spec_of(sample)
    coded = stage.encode(given, spec)
    back = stage.decode({**coded, "token_ids": sample.kv.token_ids}, spec)["x"]
    torch.testing.assert_close(back, given["x"], rtol=0, atol=0.02)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("wanted", [range(0, 1), range(0, 30), range(70, 90), range(399, 400), range(9, 9)])
def test_a_range_of_tokens_is_decoded_as_in_the_whole(wanted: range, whole: bool) -> None:
    sample = drawn(5)
    stage, spec = Klt(fitted(embedding=EMBEDDING), "values", whole=whole), spec_of(sample)
    given = {"x": values(sample), "token_ids": sample.kv.token_ids}
    coded = {**stage.encode(given, spec), "token_ids": sample.kv.token_ids}
    part = slice(wanted.start, wanted.stop)
    whole_x, some = stage.decode(coded, spec)["x"], stage.decode_tokens(coded, spec, wanted)["x"]
    torch.testing.assert_close(some[:, :, part], whole_x[:, :, part], rtol=0, atol=1e-4)
    assert some[:, :, : wanted.start].any() == some[:, :, wanted.stop :].any() == torch.tensor(False)


def test_products_in_16_bits_stay_within_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = drawn(5)
    stage, spec = Klt(fitted(embedding=EMBEDDING, features=6, rank=12), "values"), spec_of(drawn(5))
    given = {"x": values(sample), "token_ids": sample.kv.token_ids}
    coded = {**stage.encode(given, spec), "token_ids": sample.kv.token_ids}
    whole = stage.decode(coded, spec)["x"]
    monkeypatch.setattr(products, "FROM", 0)
    monkeypatch.setattr(products, "_fast", lambda: True)
    short = stage.decode(coded, spec)["x"]
    assert not torch.equal(short, whole)
    assert (short - whole).norm() < 0.01 * whole.norm()
    assert (short - given["x"]).abs().amax() <= stage.error(given, spec)


def test_samples_without_gradients_count_for_the_basis_alone() -> None:
    with_all = fitted([drawn(0), drawn(1)])
    more = fitted([drawn(0), drawn(1), drawn(2, gradients=False)])
    name = "0000.keys.weights.diagonal"
    assert torch.equal(with_all.tensors[name], more.tensors[name])
    assert with_all.facts["tokens"] == 800
    assert more.facts["tokens"] == 1200
    with pytest.raises(CodecError, match=r"klt: 0 tokens with gradients are too few, expected at least \d+"):
        fitted([drawn(0, gradients=False)])
    with pytest.raises(CodecError, match="rank 801 needs at least 801 tokens, here are 800"):
        fitted([drawn(0), drawn(1)], rank=801)


def test_what_is_far_from_the_calibration_is_coded_whole() -> None:
    calibration = fitted(embedding=EMBEDDING, rank=24)
    pipeline = klt_pipeline(calibration, step=0.05, power=0.0, coder="wide")
    near, far = drawn(5).kv, drawn(5, noise=3.0).kv
    for kv, whole in ((near, False), (far, True)):
        blob = encode(kv, pipeline)
        stages = Pipeline.from_config(blob.metadata["pipeline"], {calibration.digest: calibration}).values
        assert [stage.whole for stage in stages if isinstance(stage, Klt)] == [whole]
        if whole:
            error = max(
                (one.values - other.values).abs().amax().item()
                for one, other in zip(decode(blob).layers, kv.layers, strict=True)
            )
            assert error < 1.5


def test_samples_of_two_models_are_refused() -> None:
    other = drawn(1)
    assert other.gradients is not None
    half = Sample(
        dataclasses.replace(
            other.kv, layers=other.kv.layers[:2], rope={**other.kv.rope, "rotation_of_layer": [0, 0]}
        ),
        other.gradients[:2],
    )
    with pytest.raises(CodecError, match="several models"):
        fitted([drawn(0), half])


def test_sinks_are_tokens_at_the_first_positions() -> None:
    stage = Sinks(4)
    x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    for start, expected in ((0, 4), (3, 1), (4, 0), (100, 0)):
        spec = Spec({"x": Array((2, 9, 6), torch.float32)}, place=Place(start=start))
        coded = stage.encode({"x": x}, spec)
        assert coded["sinks"].shape == (2, expected, 6)
        back = stage.decode(coded, spec)["x"]
        assert torch.equal(back[:, expected:], x[:, expected:])
        assert (back - x).abs().amax() <= stage.error({"x": x}, spec)
    with pytest.raises(CodecError, match="first position"):
        stage.plan(Spec({"x": Array((2, 9, 6), torch.float32)}, place=Place(start=None)))


def test_a_step_further_must_be_worth_its_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    loud, quiet = torch.randn(2, 500, 1, generator=generator) * torch.tensor([[[4.0]], [[0.2]]])
    x = torch.cat([loud, quiet], 1)
    x[7] = torch.tensor([0.62, 0.62])
    spec = Spec({"x": Array((500, 2), torch.float32)})
    thrifty = Deadzone(step=1.0, rate=0.6)
    codes = thrifty.encode({"x": x}, spec)["codes"]
    # What is seldom anything but 0 costs many bits where it is.
    assert codes[7].tolist() == [1, 0]
    assert (
        thrifty.decode({"codes": codes, "exponents": torch.full((500,), MIDDLE)}, spec)["x"] - x
    ).abs().amax() <= (thrifty.error({"x": x}, spec))
    assert Deadzone(step=1.0).encode({"x": x}, spec)["codes"][7].tolist() == [1, 1]


def test_tokens_that_others_look_at_get_finer_steps() -> None:
    stage = Deadzone(step=0.5, power=0.25, octaves=1)
    spec = Spec({"x": Array((4, 3), torch.float32)})
    given = {"x": torch.full((4, 3), 0.9), "attention": WEIGHTS * torch.ones(2, 4)}
    coded = stage.encode(given, spec)
    # Its fourth root, relative to the geometric mean, in half octaves, an octave at most.
    octaves = WEIGHTS.log2()
    expected = (-0.5 * (octaves - octaves.mean())).round().clamp(-2, 2)
    assert coded["exponents"].tolist() == (expected + MIDDLE).tolist()
    back = stage.decode(coded, spec)["x"]
    assert (back - 0.9).abs()[1].amax() <= (back - 0.9).abs()[2].amax()


MANY_LAYERS = """
import torch

# This call alone changes how torch shares out a batch of matrices.
torch.set_num_threads(2)
from kvtool.codecs.klt.basis import Basis, Sizes


layers, channels = 30, 192
width = layers * channels
basis = Basis(None, "keys", Sizes(layers, channels, 0, 0, 0), torch.zeros(0, width), torch.zeros(width))
matrices = torch.eye(channels) + torch.rand(layers, channels, channels) / channels
vars(basis).update(complement=matrices, _analysis=(torch.zeros(width, 0), torch.zeros(0, 0)), order=torch.arange(width))
rows = torch.randn(8, width)
whole = basis.coefficients(rows, torch.arange(8), whole=True).view(8, layers, 1, channels)
assert torch.allclose((whole @ matrices).view(8, width), rows, atol=1e-4)
"""


def test_many_layers_are_solved_after_threads_were_set() -> None:
    subprocess.run([sys.executable, "-c", MANY_LAYERS], check=True)


def test_wide_models_need_no_matrix_of_all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = drawn(5)
    held = {"x": values(sample), "token_ids": sample.kv.token_ids}
    spec = spec_of(sample)
    errors = []
    for most in (principal.EXACT_AT_MOST, 1):
        monkeypatch.setattr(principal, "EXACT_AT_MOST", most)
        stage = Klt(fitted(embedding=EMBEDDING, rank=8), "values")
        back = stage.decode({**stage.encode(held, spec), "token_ids": sample.kv.token_ids}, spec)["x"]
        errors.append((back - held["x"]).norm().item())
    assert errors[1] < 1.02 * errors[0]


def test_a_coefficient_that_16_bits_do_not_hold_has_a_larger_step() -> None:
    x = torch.tensor([[400.0, -0.5], [1.0, 2.0], [-1e5, 0.0]])
    stage, spec = Deadzone(step=0.01), Spec.of(x)
    coded = stage.encode({"x": x}, spec)
    assert coded["exponents"].tolist() == [33, 32, 49]
    torch.testing.assert_close(stage.decode(coded, spec)["x"], x, rtol=1e-4, atol=0.02)
    with pytest.raises(CodecError, match=r"a coefficient in steps is .*, expected at most 32767"):
        stage.encode({"x": 1e5 * x}, spec)
