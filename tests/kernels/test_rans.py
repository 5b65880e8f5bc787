"""rANS: every implementation gives the reference's bytes, codes and refusals, at the size that theory asks."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvtool.kernels import dispatch
from kvtool.kernels import reference as REFERENCE

UNTOUCHED = 77


def make_tables(k: int, levels: int, precision: int) -> Tensor:
    """``cumulative`` [k, levels + 1]: the first as skewed as can be, the others cut at random."""
    generator = torch.Generator().manual_seed(levels)
    total = 1 << precision
    inner = [torch.arange(total - levels + 1, total)]
    for _ in range(k - 1):
        inner.append(1 + torch.randperm(total - 1, generator=generator)[: levels - 1].sort().values)
    ends = torch.tensor([[0, total]]).expand(k, 2)
    return torch.cat([ends[:, :1], torch.stack(inner), ends[:, 1:]], 1).int()


def draw_codes(shape: tuple[int, int, int], cumulative: Tensor, table: Tensor) -> Tensor:
    """Codes as probable as their tables say, but for every fifth token, which may be any."""
    generator = torch.Generator().manual_seed(shape[1])
    heads, tokens, channels = shape
    slots = torch.randint(0, int(cumulative[0, -1]), (len(table), tokens), generator=generator)
    codes = torch.searchsorted(cumulative[table.long(), 1:-1].long(), slots, right=True)
    codes[:, ::5] = torch.randint(0, cumulative.shape[1] - 1, codes[:, ::5].shape, generator=generator)
    return codes.view(heads, channels, tokens).transpose(1, 2).to(torch.uint8).contiguous()


def outcome(kernels: Any, stream: Tensor, shape: tuple[int, int, int], coder: tuple[Any, ...]) -> Any:
    """The codes of a stream that is one block; None where it is refused."""
    out = torch.full(shape, UNTOUCHED, dtype=torch.uint8)
    try:
        kernels.rans_decode(stream, torch.tensor([[0, len(stream), 0, shape[1]]]), *coder, out)
    except ValueError:
        return None
    return out.tolist()


@pytest.mark.parametrize(("levels", "precision"), [(2, 12), (15, 12), (64, 14), (256, 14)])
@pytest.mark.parametrize("lanes", [4, 32])
@pytest.mark.parametrize("shape", [(2, 9, 3), (1, 35, 2), (1, 1, 1), (3, 4, 1), (2, 0, 3), (2, 5, 0)])
def test_the_reference_to_the_byte_and_back(
    kernels: dispatch.Kernels, shape: tuple[int, int, int], lanes: int, levels: int, precision: int
) -> None:
    cumulative, table = make_tables(2, levels, precision), torch.arange(shape[0] * shape[2]).int() % 2
    coder = (cumulative, table, precision, lanes)
    codes = draw_codes(shape, cumulative, table)
    stream = kernels.rans_encode(codes, *coder)
    assert stream.dtype == torch.uint8
    assert torch.equal(stream, REFERENCE.rans_encode(codes, *coder))
    assert 0 <= len(stream) - 4 * min(lanes, shape[1]) <= 2 * codes.numel()
    assert outcome(kernels, stream, shape, coder) == codes.tolist()


def test_exact_bytes(kernels: dispatch.Kernels) -> None:
    halves, table = torch.tensor([[0, 2048, 4096]], dtype=torch.int32), torch.zeros(16, dtype=torch.int32)

    def encoded(*codes: int) -> str:
        rows = torch.tensor([[codes]], dtype=torch.uint8)
        return bytes(kernels.rans_encode(rows, halves, table[: len(codes)], 12, 4).tolist()).hex(" ", 2)

    # A bit doubles the lane's state, 2**16 at first, and adds 2048 for a 1; the 16th needs a word.
    assert encoded() == "0000 0100"
    assert encoded(0) == "0000 0200"
    assert encoded(1) == "0008 0200"
    assert encoded(*[0] * 16) == "0000 0100 0000"
    assert encoded(*[1] * 16) == "ff0b 0100 00f8"


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_are_decoded_apart_wherever_they_lie(
    kernels: dispatch.Kernels, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    coder = (make_tables(3, 11, 12), torch.tensor([2, 0, 0, 1], dtype=torch.int32), 12, 4)
    codes = draw_codes((2, 16, 2), *coder[:2])
    # The last is followed by bytes that are not its own, the first preceded by an odd number of them.
    stream, blocks = torch.full((3,), 255, dtype=torch.uint8), []
    for begin, stop in ((0, 5), (5, 6), (6, 13), (13, 16)):
        block = REFERENCE.rans_encode(codes[:, begin:stop], *coder)
        blocks.append([len(stream), len(stream) + len(block), begin, stop])
        stream = torch.cat([stream, block])
    stream = torch.cat([stream, stream])
    for chosen in ([0, 1, 2, 3], [3, 0], [2], []):
        expected = torch.full_like(codes, UNTOUCHED)
        for i in chosen:
            _, _, begin, stop = blocks[i]
            expected[:, begin:stop] = codes[:, begin:stop]
        out, wanted = torch.full_like(codes, UNTOUCHED), [blocks[i] for i in chosen]
        kernels.rans_decode(stream, torch.tensor(wanted, dtype=torch.int64).view(-1, 4), *coder, out)
        assert torch.equal(out, expected)
    blocks[1][1] -= 2
    with pytest.raises(ValueError, match="a block of"):
        kernels.rans_decode(stream, torch.tensor(blocks), *coder, out)


@pytest.mark.parametrize("lanes", [4, 32])
def test_what_is_cut_off_or_goes_on_is_refused(kernels: dispatch.Kernels, lanes: int) -> None:
    shape, coder = (1, 6, 2), (make_tables(2, 15, 12), torch.tensor([0, 1], dtype=torch.int32), 12, lanes)
    codes = draw_codes(shape, *coder[:2])
    stream = REFERENCE.rans_encode(codes, *coder)
    assert len(stream) >= 4 * min(lanes, 6) + 2
    for length in range(len(stream)):
        assert outcome(kernels, stream[:length], shape, coder) is None
    for more in (1, 2, 3, 64):
        assert outcome(kernels, torch.cat([stream, stream[:more]]), shape, coder) is None


@pytest.mark.parametrize("lanes", [4, 32])
def test_nothing_beyond_a_blocks_end_is_read(kernels: dispatch.Kernels, lanes: int) -> None:
    shape, coder = (1, 6, 2), (make_tables(2, 15, 12), torch.tensor([0, 1], dtype=torch.int32), 12, lanes)
    stream = REFERENCE.rans_encode(draw_codes(shape, *coder[:2]), *coder)
    for length in (3, 9, len(stream) - 3, len(stream) - 2, len(stream) - 1):
        # What is missing lies there, or something else, and either way it is the block that is refused.
        other = torch.cat([stream[:length], 255 - stream[length:]])
        found = []
        for following in (stream, other):
            out = torch.full(shape, UNTOUCHED, dtype=torch.uint8)
            with pytest.raises(ValueError, match=f"a block of {length} bytes"):
                kernels.rans_decode(following, torch.tensor([[0, length, 0, 6]]), *coder, out)
            found.append(out)
        assert torch.equal(*found)


def test_what_is_flipped_is_refused_or_gives_other_codes(kernels: dispatch.Kernels) -> None:
    shape, coder = (1, 6, 2), (make_tables(2, 15, 12), torch.tensor([0, 1], dtype=torch.int32), 12, 4)
    codes = draw_codes(shape, *coder[:2])
    stream = REFERENCE.rans_encode(codes, *coder)
    for i in range(len(stream)):
        flipped = stream.clone()
        flipped[i] ^= 1 << i % 8
        got = outcome(kernels, flipped, shape, coder)
        assert got == outcome(REFERENCE, flipped, shape, coder)
        assert got is None or (got != codes.tolist() and torch.tensor(got).max() < 15)


@given(
    content=st.binary(max_size=60),
    shape=st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 2)),
    lanes=st.sampled_from([4, 32]),
    levels=st.sampled_from([1, 2, 9, 256]),
)
@settings(max_examples=30)
def test_any_bytes_are_decoded_or_refused_as_by_the_reference(
    kernels: dispatch.Kernels, content: bytes, shape: tuple[int, int, int], lanes: int, levels: int
) -> None:
    coder = (make_tables(1, levels, 12), torch.zeros(shape[0] * shape[2], dtype=torch.int32), 12, lanes)
    stream = torch.tensor(list(content), dtype=torch.uint8)
    assert outcome(kernels, stream, shape, coder) == outcome(REFERENCE, stream, shape, coder)


@pytest.mark.parametrize(("levels", "precision"), [(15, 12), (256, 14)])
def test_size_is_what_theory_asks_and_what_constriction_needs(
    kernels: dispatch.Kernels, levels: int, precision: int
) -> None:
    n, lanes, total = 100_000, 4, 1 << precision
    bell = np.exp(-(((np.arange(levels) - levels / 2) / (levels / 8)) ** 2) / 2)
    shares = np.floor(1 + bell / bell.sum() * (total - levels)).astype(np.int64)
    shares[levels // 2] += total - shares.sum()
    chosen = np.random.default_rng(1).choice(levels, n, p=shares / total)
    cumulative = torch.tensor([[0, *shares.cumsum().tolist()]], dtype=torch.int32)
    codes = torch.from_numpy(chosen.astype(np.uint8)).view(1, n, 1)
    size = 8 * len(kernels.rans_encode(codes, cumulative, torch.zeros(1).int(), precision, lanes))
    ideal = -np.log2(shares[chosen] / total).sum()
    assert ideal <= size <= 1.005 * ideal + 32 * lanes
    other = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(shares / total, perfect=False)
    other.encode_reverse(chosen.astype(np.int32), model)
    assert size == pytest.approx(32 * len(other.get_compressed()), rel=0.003)


def test_the_door_refuses_blocks_outside_of_the_stream_or_the_tensor() -> None:
    coder = (make_tables(1, 4, 12), torch.zeros(2).int(), 12, 4)
    codes = torch.zeros(1, 5, 2, dtype=torch.uint8)
    stream = dispatch.rans_encode(codes, *coder)
    n, out = len(stream), torch.ones_like(codes)
    dispatch.rans_decode(stream, torch.tensor([[0, n, 0, 5]]), *coder, out)
    assert torch.equal(out, codes)
    for block in ([0, n + 1, 0, 5], [-1, n, 0, 5], [0, n, -1, 4], [0, n, 1, 6], [n, 0, 0, 5], [0, n, 5, 0]):
        with pytest.raises(ValueError, match=r"blocks .* bytes and 5 tokens"):
            dispatch.rans_decode(stream, torch.tensor([block]), *coder, out)
