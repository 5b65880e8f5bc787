"""On a device: every kernel held against the reference, recipes decoded there and on the CPU, times, and equal answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import kvtool
from benchmarks.common.output import print_table
from benchmarks.common.timing import interleaved
from benchmarks.corpora.help_text import text_of
from benchmarks.corpora.texts import Text
from benchmarks.quality import exactness
from kvtool.calibration.bundled_calibrations import bundled
from kvtool.calibration.sample_texts import sample_texts
from kvtool.codecs import KV, LayerKV, decode, encode
from kvtool.codecs.entropy_models.context import cumulative
from kvtool.engines.prefiller import Prefiller
from kvtool.kernels import dispatch, reference
from kvtool.model.chat_template import document_tokens, prefix_of

RECIPES = ("klt", "kivi", "cachegen")

TEXTS, CHARACTERS, ANSWER_TOKENS = 10, 500, 24
"""Texts that answers are compared over, and how much of them."""

CPU = torch.device("cpu")


def measure(device: torch.device, tokens: int, repeats: int) -> None:
    """Prints all of it. Raises SystemExit if a kernel does not give the reference's results."""
    for name, (got, expected) in _kernels(device).items():
        # Attention is a sum whose order is free; all else is the same to the bit.
        close = torch.allclose(got.cpu(), expected, rtol=1e-3, atol=1e-4 if name == "packed_attention" else 0)
        print(f"{name}: {'as the reference' if close else 'DIFFERS FROM THE REFERENCE'}", flush=True)
        if not close:
            raise SystemExit(1)
    model = kvtool.load_model(device=str(device))
    prefix, ids = prefix_of(model), document_tokens(model, text_of(model, tokens))[:tokens]
    prefiller = Prefiller(model, prefix.token_ids)
    raw = _on(prefiller.one(ids), CPU, pinned=device.type == "cuda")
    runs = {
        "prefill": _timed(device, lambda: prefiller.one(ids)),
        "copy of the raw cache": _timed(device, lambda: _on(raw, device)),
    }
    for recipe in RECIPES:
        calibration = bundled(recipe, model.fingerprint)
        options: dict[str, Any] = {"power": 0.0} if recipe == "klt" else {}
        blob = encode(raw, recipe, calibration=calibration, **options)
        pairs = zip(decode(blob, device).layers, decode(blob).layers, strict=True)
        off = max((a.keys.cpu() - b.keys).abs().max().item() for a, b in pairs)
        print(f"{recipe}: keys decoded there and on the CPU differ by {off:.2g} at most", flush=True)
        runs[recipe] = _timed(device, lambda blob=blob: decode(blob, device))  # type: ignore[misc]
    medians = interleaved(runs, repeats)
    prefill, copy = medians["prefill"], medians["copy of the raw cache"]
    print_table(
        [f"{len(ids):,} tokens", "ms", "prefill ÷ this", "this ÷ copy"],
        [[name, f"{1e3 * s:.1f}", f"{prefill / s:.1f}", f"{s / copy:.1f}"] for name, s in medians.items()],
    )
    print_table(
        exactness.HEADER, [[model.dtype_name, *exactness.equal_answers(model, _short(), ANSWER_TOKENS)]]
    )


def _short() -> list[Text]:
    """Short texts that come with kvtool: where a GPU is, nothing may be there to fetch others from."""
    kinds = [
        ("sample", f"{number}.txt", text[:CHARACTERS]) for number, text in enumerate(sample_texts()[:TEXTS])
    ]
    return [Text(kind, kind, name, text) for kind, name, text in kinds]


def _timed(device: torch.device, run: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        started = time.monotonic()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - started

    return seconds


def _on(kv: KV, device: torch.device, *, pinned: bool = False) -> KV:
    def moved(x: Tensor) -> Tensor:
        there = x.to(device, copy=True)
        return there.pin_memory() if pinned else there

    return replace(kv, layers=tuple(LayerKV(moved(x.keys), moved(x.values), x.positions) for x in kv.layers))


def _kernels(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """By kernel: what ``dispatch`` gives on the device, and what the reference gives."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 8, (3, 50, 20), dtype=torch.uint8, generator=draw)
    x, out = torch.randn(3, 50, 32, generator=draw), torch.empty(3, 50, 32)
    scale, zero = torch.rand(2, 3, 7, 20, generator=draw).half()
    cos, sin = reference.angles(torch.arange(50), torch.rand(16, generator=draw))
    packed = reference.pack(codes.flatten(), 3)
    found = {
        "pack": (dispatch.pack(codes.flatten().to(device), 3), packed),
        "unpack": (dispatch.unpack(packed.to(device), codes.numel(), 3), codes.flatten()),
    }

    def both(name: str, inputs: tuple[Tensor, ...], options: tuple[object, ...], result: Tensor) -> None:
        there = torch.zeros_like(result).to(device)
        getattr(dispatch, name)(*(x.to(device) for x in inputs), *options, there)
        getattr(reference, name)(*inputs, *options, expected := torch.zeros_like(result))
        found[name] = there, expected

    both("dequantize", (codes, scale, zero), (1, 8), torch.empty(3, 50, 20))
    both("rotate", (x, cos, sin), ("half",), out)
    both("hadamard", (x.view(-1, 32),), (), out.view(-1, 32))
    ends = torch.tensor([[0, 1 << 11, 3 << 10, 1 << 12]], dtype=torch.int32)
    few, table = codes.clamp(max=2), torch.zeros(60, dtype=torch.int32)
    stream = reference.rans_encode(few, ends, table, 12, 4)
    blocks = torch.tensor([[0, len(stream), 0, 50]])
    both("rans_decode", (stream, blocks, ends, table), (12, 4), few)
    signed = (torch.randn(40, 90, generator=draw) ** 5).to(torch.int16)
    exponents = torch.randint(28, 36, (40,), dtype=torch.uint8, generator=draw)
    conditions = (torch.randint(-20, 20, (90,), generator=draw).int(), torch.zeros(90, 2, dtype=torch.int8))
    wide = reference.wide_encode(signed, exponents, *conditions, cumulative(None))
    both("wide_decode", (wide, exponents, *conditions, cumulative(None)), (), signed)
    keys = x.view(-1, 32)
    dense, query = torch.randn(2, 3, 1, 5, 32, generator=draw), torch.randn(3, 1, 2, 4, 32, generator=draw)
    mask = torch.ones(1, 4, 65, dtype=torch.bool)

    def attention(kernels: Callable[..., Tensor], there: torch.device) -> Tensor:
        places = (torch.arange(150) % 60).int().to(there)
        heads = dispatch.Packed(keys.to(there), keys.flip(0).to(there), places, None, (60, 50, 40))
        return kernels(query.to(there), heads, *dense.to(there), mask.to(there), 0.2)

    found["packed_attention"] = (
        attention(dispatch.packed_attention, device),
        attention(reference.packed_attention, CPU),
    )
    return found
