from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from kvtool.codecs import CodecError, Spec
from kvtool.codecs.quantize.blockwise import Blockwise, code_book

NF4 = Blockwise()
INT8 = Blockwise(data_type="int8", block=256)


@pytest.fixture(scope="module")
def bitsandbytes() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes.functional
    return bitsandbytes.functional


def sample(dtype: torch.dtype, shape: tuple[int, ...] = (3, 50, 34)) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)


def test_the_code_books_are_those_of_bitsandbytes(bitsandbytes: Any) -> None:
    assert torch.equal(code_book("nf4"), bitsandbytes.get_4bit_type("nf4", device="cpu"))
    torch.testing.assert_close(code_book("int8"), bitsandbytes.create_dynamic_map(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nf4_is_that_of_bitsandbytes(bitsandbytes: Any, dtype: torch.dtype) -> None:
    x = sample(dtype)
    packed, state = bitsandbytes.quantize_4bit(x, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[: x.numel()].view(x.shape)
    y = NF4.encode({"x": x}, Spec.of(x))
    assert torch.equal(y["codes"], codes)
    assert torch.equal(y["absmax"], state.absmax.to(y["absmax"].dtype))
    decoded = NF4.decode(y, Spec.of(x))["x"]
    theirs = bitsandbytes.dequantize_4bit(packed, state)
    assert torch.equal(decoded, theirs) or dtype == torch.float32
    torch.testing.assert_close(decoded, theirs, atol=0, rtol=2**-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_is_that_of_bitsandbytes_or_nearer(bitsandbytes: Any, dtype: torch.dtype) -> None:
    x = sample(dtype)
    codes, state = bitsandbytes.quantize_blockwise(x, blocksize=256)
    y = INT8.encode({"x": x}, Spec.of(x))
    assert (y["codes"] != codes).double().mean() < 0.01
    torch.testing.assert_close(y["absmax"].float(), state.absmax, atol=0, rtol=2**-11)
    theirs = INT8.decode({**y, "codes": codes}, Spec.of(x))["x"]
    rounding = max(torch.finfo(dtype).eps, 2**-11)
    torch.testing.assert_close(theirs, bitsandbytes.dequantize_blockwise(codes, state), atol=0, rtol=rounding)
    mine = INT8.decode(y, Spec.of(x))["x"]
    assert (mine.double() - x.double()).norm() <= (theirs.double() - x.double()).norm() * 1.001


def test_nf4_is_nearer_than_equal_steps_under_the_same_magnitudes_on_normal_entries() -> None:
    x = sample(torch.float32, (1, 200, 64))
    step = x.abs().amax(-1, keepdim=True) / 7.5
    by_steps = (((x / step - 0.5).round() + 0.5) * step - x).norm()
    by_nf4 = (NF4.decode(NF4.encode({"x": x}, Spec.of(x)), Spec.of(x))["x"] - x).norm()
    assert by_nf4 < 0.97 * by_steps


@pytest.mark.parametrize("stage", [NF4, INT8])
def test_zeros_and_the_largest_entries_of_blocks_come_back_exactly(stage: Blockwise) -> None:
    x = sample(torch.float16, (1, 1, 3 * stage.block)).abs()
    x[..., : stage.block] = 0
    decoded = stage.decode(stage.encode({"x": x}, Spec.of(x)), Spec.of(x))["x"]
    assert not decoded[..., : stage.block].any()
    blocks, back = x.view(3, -1), decoded.view(3, -1)
    assert torch.equal(back.amax(1), blocks.amax(1))


def test_a_block_far_longer_than_the_tensor_takes_no_room() -> None:
    stage = Blockwise(block=(1 << 31) - 1)
    x = sample(torch.float32, (1, 1, 10))
    y = stage.encode({"x": x}, Spec.of(x))
    assert y["absmax"].shape == (1,)
    assert (stage.decode(y, Spec.of(x))["x"] - x).abs().max() <= stage.error({"x": x}, Spec.of(x))


def test_codes_past_the_code_book_are_refused() -> None:
    x = sample(torch.float32)
    y = dict(NF4.encode({"x": x}, Spec.of(x)))
    y["codes"][1, 2, 3] = 16
    with pytest.raises(CodecError, match="codes holds code 16, expected below 16"):
        NF4.decode(y, Spec.of(x))


def test_magnitudes_past_float16_are_refused() -> None:
    with pytest.raises(CodecError, match="largest magnitude"):
        NF4.encode({"x": torch.full((1, 1, 4), 1e6)}, Spec.of(torch.zeros(1, 1, 4)))
