"""The entropy stage context: what it saves, what it learns, bands, and what it refuses."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvtool.codecs import Array, Calibration, CodecError, Place, Spec
from kvtool.codecs.entropy.context import Context
from kvtool.codecs.entropy_models import context as model

TOKENS, COMPONENTS, STEP = 300, 40, 0.5


def coefficients(seed: int, tokens: int = TOKENS) -> Tensor:
    """[T, C] float: of falling magnitude, some tokens twice as loud, the first components slow."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, COMPONENTS, generator=generator)
    carried = 0.9 * 0.8 ** torch.arange(COMPONENTS)
    for t in range(1, tokens):
        noise[t] = carried * noise[t - 1] + (1 - carried**2).sqrt() * noise[t]
    loud = torch.exp2(torch.randint(-1, 2, (tokens, 1), generator=generator))
    return 20 * 0.85 ** torch.arange(COMPONENTS) * loud * noise


def quantized(x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    exponents = torch.randint(28, 37, (len(x),), generator=torch.Generator().manual_seed(seed))
    steps = STEP * torch.exp2((exponents - 32) / 2)[:, None]
    codes = (x.sign() * (x.abs() / steps + 0.4).floor()).to(torch.int16)
    return {"codes": codes, "exponents": exponents.to(torch.uint8)}


def spec_of(payload: dict[str, Tensor]) -> Spec:
    return Spec({n: Array(tuple(t.shape), t.dtype) for n, t in payload.items()}, place=Place(2, 2, 4))


def bare() -> Calibration:
    magnitudes = coefficients(1, 2000).abs().mean(0)
    scales = (200 + 8 * magnitudes.log2()).round().to(torch.uint8)
    return Calibration("test", {}, {"0002.keys.scales": scales, "0002.values.scales": scales})


def fitted() -> Calibration:
    calibration = bare()
    segments = [quantized(coefficients(seed, 1000), seed) for seed in range(2, 8)]
    learned = model.Autoregression(COMPONENTS)
    for segment in segments:
        learned.add(**segment)
    weights = learned.weights()
    scales = calibration.tensors["0002.keys.scales"]
    counts = sum(model.counts(**own, scales=scales, weights=weights, step=STEP) for own in segments)
    assert isinstance(counts, Tensor)
    new = {"0002.keys.autoregression": weights, "tables": model.roots(counts)}
    return replace(calibration, tensors={**calibration.tensors, **new})


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fitted()


def entropy(codes: Tensor) -> float:
    """Bits, if each component had its own histogram for nothing."""
    bits = 0.0
    for column in codes.T:
        share = column.unique(return_counts=True)[1] / len(column)
        bits -= len(column) * (share * share.log2()).sum().item()
    return bits


def test_it_saves_what_histories_tell_and_more_where_it_has_learned(calibration: Calibration) -> None:
    payload = quantized(coefficients(20))
    spec, found = spec_of(payload), {}
    for name, held in (("bare", bare()), ("fitted", calibration)):
        stage = Context(held, step=STEP)
        encoded = stage.encode(payload, spec)
        decoded = stage.decode(encoded, spec)
        assert all(torch.equal(decoded[key], payload[key]) for key in payload)
        found[name] = 8 * (len(encoded["x"]) - int.from_bytes(bytes(encoded["x"][:4].tolist()), "little"))
    ideal = entropy(payload["codes"])
    assert found["fitted"] < 0.985 * found["bare"]
    assert found["bare"] < 1.1 * ideal
    assert found["fitted"] < ideal


def test_autoregression_finds_what_carries_over(calibration: Calibration) -> None:
    weights = calibration.tensors["0002.keys.autoregression"].float() / 128
    # Less than what carries over where loudness is not predicted, but in order.
    assert 0.9 > weights[0, 0] > weights[1, 0] > weights[2, 0] > weights[4, 0] > 0.15
    assert weights[20:, 0].abs().max() < 0.15


def test_scales_are_shifted_by_the_step() -> None:
    scales = torch.tensor([0, 150, 200, 208, 255], dtype=torch.uint8)
    assert model.in_steps(scales, 1.0).tolist() == [-45, -45, 0, 8, 55]
    assert model.in_steps(scales, 0.25).tolist() == [-45, -34, 16, 24, 71]
    assert model.in_steps(scales, 1e-6).tolist() == [-41, 104, 104, 104, 104]


def test_tables_are_positive_and_whole_whatever_a_calibration_says() -> None:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 256, model.SHAPE, dtype=torch.uint8, generator=generator)
    for roots in (
        None,
        drawn,
        torch.zeros_like(drawn),
        model.roots(torch.zeros(model.SHAPE, dtype=torch.int64)),
    ):
        bounds = model.cumulative(roots)
        assert (bounds.diff(dim=1) > 0).all()
        assert (bounds[:, 0] == 0).all()
        assert (bounds[:, -1] == 1 << 16).all()


def test_laplace_falls_to_both_sides_and_is_wider_from_bucket_to_bucket() -> None:
    shares = model.cumulative(None).diff(dim=1).view(model.SHAPE)[:, :5]
    inner = shares[..., 1:-1]
    assert (inner[..., :16].diff(dim=-1) >= 0).all()
    assert (shares[:, 0, 16].diff() <= 0).all()


def test_bands_decode_in_order_and_without_those_behind(calibration: Calibration) -> None:
    payload = quantized(coefficients(21)) | {"other": torch.arange(7)}
    spec, stage = spec_of(payload), Context(calibration, step=STEP, bands=3)
    data = stage.encode(payload, spec)["x"]
    rest, *bands = struct.unpack("<4I", bytes(data[:16].tolist()))
    ends = [0, 13, 26, COMPONENTS]
    for n in range(4):
        prefix = data[: 16 + rest + sum(bands[:n])]
        for given in (data, prefix) if n < 3 else (data,):
            decoded = stage.decode_bands({"x": given}, spec, n)
            assert torch.equal(decoded["codes"][:, : ends[n]], payload["codes"][:, : ends[n]])
            assert not decoded["codes"][:, ends[n] :].any()
            assert torch.equal(decoded["other"], payload["other"])
        with pytest.raises(CodecError, match=f"expected {len(prefix)} for {n} bands"):
            stage.decode_bands({"x": prefix[:-1]}, spec, n)
    with pytest.raises(CodecError, match="for 3 bands"):
        stage.decode({"x": torch.cat([data, data[:1]])}, spec)
    whole = Context(calibration, step=STEP, bands=1).encode(payload, spec)["x"]
    assert len(data) <= len(whole) + 40


def test_what_does_not_fit_is_refused_by_name(calibration: Calibration) -> None:
    payload = quantized(coefficients(22, 5))
    stage = Context(calibration, step=STEP)
    for name, wrong, message in (
        ("codes", torch.zeros(5, COMPONENTS, dtype=torch.int32), "codes is"),
        ("codes", torch.zeros(1, 5, COMPONENTS, dtype=torch.int16), "codes is"),
        (
            "codes",
            torch.zeros(5, 41, dtype=torch.int16),
            "0002.keys.scales is .40. torch.uint8, expected .41.",
        ),
        ("exponents", torch.zeros(6, dtype=torch.uint8), "length of exponents is 6, expected 5"),
        ("exponents", torch.zeros(5, dtype=torch.int16), "exponents is"),
    ):
        with pytest.raises(CodecError, match=message):
            stage.plan(spec_of({**payload, name: wrong}))
    with pytest.raises(CodecError, match="expected one with exponents"):
        stage.plan(spec_of({"codes": payload["codes"]}))
    with pytest.raises(CodecError, match=r"has no tensor '0003\.keys\.scales'"):
        stage.plan(replace(spec_of(payload), place=Place(3)))
    with pytest.raises(CodecError, match="exponent 65, expected at most 64"):
        stage.encode({**payload, "exponents": payload["exponents"] * 0 + 65}, spec_of(payload))
    for field, value in (("step", 0.0), ("step", float("inf")), ("bands", 0), ("bands", 256)):
        with pytest.raises(CodecError, match=f"{field} is {value}"):
            Context(calibration, **{field: value})  # type: ignore[arg-type]


def test_few_bytes_are_not_taken_for_many_codes() -> None:
    shape = (1 << 36, COMPONENTS)
    arrays = {"codes": Array(shape, torch.int16), "exponents": Array(shape[:1], torch.uint8)}
    spec = Spec(arrays, place=Place(2))
    with pytest.raises(CodecError, match="bytes of a band"):
        Context(bare()).plan(spec)
    content = struct.pack("<5I", 0, *(64,) * 4) + bytes(256)
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    with pytest.raises(CodecError, match="a band of 64 bytes cannot hold"):
        Context(bare()).decode({"x": data}, spec)


def test_silence_is_coded_however_long_it_is(calibration: Calibration) -> None:
    """The bound on codes in a byte holds where every code is what the model expects most."""
    tables = torch.zeros(model.SHAPE, dtype=torch.uint8)
    tables[..., 16] = 255
    stage = Context(
        replace(calibration, tensors={**calibration.tensors, "tables": tables}), step=1e3, bands=1
    )
    payload = {"codes": torch.zeros(20_000, COMPONENTS, dtype=torch.int16)}
    payload["exponents"] = torch.full((20_000,), 32, dtype=torch.uint8)
    encoded = stage.encode(payload, spec_of(payload))
    assert len(encoded["x"]) < 300
    assert torch.equal(stage.decode(encoded, spec_of(payload))["codes"], payload["codes"])
