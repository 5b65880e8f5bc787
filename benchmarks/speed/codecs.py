"""Encode and decode speed of every recipe on one segment's real cache, and its coder against others.

python -m benchmarks codecs [--tokens 4096] [--repeats 5] [--threads 1] [--peer PYTHON]

Speeds are in million values a second, medians of interleaved rounds. ``--peer`` is the Python of an environment with
LMCache (make peers: build/peers/cachegen_lmcache/bin/python); its coder then gets the same tensors.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch import Tensor

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.common.output import machine, print_table
from benchmarks.common.timing import interleaved
from benchmarks.corpora.help_text import text_of
from kvtool.artifact.measure import measure_artifact
from kvtool.codecs import KV, Array, Inputs, Place, Spec, recipe, recipes
from kvtool.codecs.block_coder import Coding
from kvtool.codecs.quantize.vectorwise import Vectorwise
from kvtool.engines.stage_inputs import PROBED
from kvtool.kernels import dispatch

CHUNK = 256
"""Tokens that LMCache codes under tables of their own."""


def main(argv: Sequence[str]) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    print(machine(), flush=True)
    kv, inputs = cache(arguments.tokens)
    print(f"{kv.n_tokens} tokens, {kv.n_elements / 1e6:.1f} million values\n", flush=True)
    recipe_table(kv, inputs, arguments.repeats)
    coder_table(kv, arguments.repeats)
    if arguments.peer:
        peer_table(kv, arguments.peer, arguments.repeats)


def cache(tokens: int) -> tuple[KV, Inputs]:
    """A segment's real cache, and what recipes need beyond it."""
    model = kvtool.load_model()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text(text_of(model, tokens))
        store = kvtool.Store(Path(folder) / "store")
        kvtool.prefill([Path(folder) / "text.txt"], model=model, store=store)
        (name,) = store
        return store.read(name), measure_artifact(model, store.parts(name), PROBED)


@dataclass
class Timed:
    """Something to be timed, which leaves its last result."""

    run: Callable[[], Any]
    result: Any = field(default=None)

    def __call__(self) -> float:
        started = time.perf_counter()
        self.result = self.run()
        return time.perf_counter() - started


def recipe_table(kv: KV, inputs: Inputs, repeats: int) -> None:
    raw = torch.cat([part.flatten() for layer in kv.layers for part in (layer.keys, layer.values)])
    target, data = torch.empty_like(raw), raw.numpy().tobytes()
    frame = zstandard.ZstdCompressor(level=3).compress(data)
    runs: dict[str, Timed] = {
        "memcpy": Timed(lambda: target.copy_(raw)),
        "zstd encode": Timed(lambda: zstandard.ZstdCompressor(level=3).compress(data)),
        "zstd decode": Timed(lambda: zstandard.ZstdDecompressor().decompress(frame)),
    }
    blobs = {}
    for name, each in recipes().items():
        # What those that only drop tokens cost is in the benchmark pruning.
        if each.prunes or each.needs_calibration(each.uncalibrated):
            continue  # What learns a model first is measured by rate_distortion.
        pipeline = each.build(None, **each.uncalibrated)
        blobs[name] = kvtool.codecs.encode(kv, pipeline, inputs=inputs)
        runs[f"{name} decode"] = Timed(partial(kvtool.codecs.decode, blobs[name]))
        runs[f"{name} encode"] = Timed(partial(kvtool.codecs.encode, kv, pipeline, inputs=inputs))
    seconds = interleaved(dict(runs), repeats)
    speed = {name: kv.n_elements / taken / 1e6 for name, taken in seconds.items()}
    rows = [["memcpy", "", f"{speed['memcpy']:.0f}", f"{speed['memcpy']:.0f}", ""]]
    rows.append(
        ["zstd", _bits(len(frame), kv), f"{speed['zstd encode']:.1f}", f"{speed['zstd decode']:.0f}", ""]
    )
    for name, blob in blobs.items():
        error = " / ".join(f"{e:.3f}" for e in _errors(kv, runs[f"{name} decode"].result))
        encode, decode = speed[f"{name} encode"], speed[f"{name} decode"]
        rows.append([name, _bits(blob.nbytes, kv), f"{encode:.1f}", f"{decode:.0f}", error])
    print_table(["recipe", "bits per value", "encode M/s", "decode M/s", "error of keys / values"], rows)
    print(flush=True)


def coder_table(kv: KV, repeats: int) -> None:
    """The coder alone, on cachegen-lmcache's symbols, against constriction on one core; and packed codes."""
    symbols, arrays = _symbols(kv)
    codings = [Coding(array, block=1024) for array in arrays]
    coded = [coding.encode(codes) for coding, codes in zip(codings, symbols, strict=True)]
    models, streams = zip(*map(_constriction, symbols, arrays), strict=True)
    unpacking, copying = _unpacking(symbols)
    runs = {
        "rANS encode": Timed(lambda: [c.encode(s) for c, s in zip(codings, symbols, strict=True)]),
        "rANS decode": Timed(lambda: [c.decode(x) for c, x in zip(codings, coded, strict=True)]),
        "constriction decode": Timed(
            lambda: [_decoded(m, s, kv) for m, s in zip(models, streams, strict=True)]
        ),
        "unpack + dequantize": unpacking,
        "memcpy of the same": copying,
    }
    seconds = interleaved(dict(runs), repeats)
    assert all(torch.equal(a, b) for a, b in zip(runs["rANS decode"].result, symbols, strict=True))
    print_table(
        ["coder", "M/s"],
        [[name, f"{kv.n_elements / taken / 1e6:.0f}"] for name, taken in seconds.items()],
    )
    entropy = sum(map(_entropy, symbols, arrays))
    size = 8 * sum(len(x) for x in coded)
    print(
        f"bits of the codes: {size / kv.n_elements:.4f} per value, entropy by layer and channel "
        f"{entropy / kv.n_elements:.4f}: {size / entropy:.4f} of it\n"
        f"rANS decode / constriction decode: {seconds['constriction decode'] / seconds['rANS decode']:.1f}\n"
        f"unpack + dequantize / memcpy: {seconds['memcpy of the same'] / seconds['unpack + dequantize']:.2f}\n",
        flush=True,
    )


def peer_table(kv: KV, python: Path, repeats: int) -> None:
    """LMCache's CacheGen and ours on the same tensors; rounds are interleaved by whole runs of the peer."""
    script = Path(__file__).parents[1] / "peers" / "cachegen_coder.py"
    ours = recipe("cachegen-lmcache").build()
    rows = []
    for tokens in sorted({CHUNK, kv.n_tokens}):
        part = KV(tuple(layer.of(range(tokens)) for layer in kv.layers), kv.token_ids[:tokens], kv.rope)
        with tempfile.TemporaryDirectory() as folder:
            given, report = Path(folder) / "kv.safetensors", Path(folder) / "report.json"
            stacked = torch.stack([torch.stack([x.keys, x.values]).transpose(1, 2) for x in part.layers])
            save_file({"kv": stacked.contiguous()}, given)
            command = [str(python), str(script), str(given), str(report), "--repeats", str(repeats)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            theirs = json.loads(report.read_text())
            same = _same_symbols(part, load_file(report.with_suffix(".symbols.safetensors"))["symbols"])
        blob = kvtool.codecs.encode(part, ours)
        decode = Timed(partial(kvtool.codecs.decode, blob))
        encode = Timed(partial(kvtool.codecs.encode, part, ours))
        seconds = interleaved({"decode": decode, "encode": encode}, repeats)
        rows.append([tokens, same, *_sizes(part, blob.nbytes, theirs), *_speeds(part, seconds, theirs)])
    print_table(
        ["tokens", "same symbols", "bits", "LMCache", "share", "encode x", "decode x", "decode x kernels"],
        rows,
    )


def _sizes(kv: KV, nbytes: int, theirs: Mapping[str, Any]) -> list[str]:
    return [
        _bits(nbytes, kv),
        _bits(theirs["bytes"]["total"], kv),
        f"{nbytes / theirs['bytes']['total']:.3f}",
    ]


def _speeds(kv: KV, seconds: Mapping[str, float], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{theirs['serializer']['encode_seconds'] / seconds['encode']:.1f}",
        f"{theirs['serializer']['decode_seconds'] / seconds['decode']:.1f}",
        f"{theirs['coder']['decode_seconds'] / seconds['decode']:.1f}",
    ]


def _unpacking(symbols: list[Tensor]) -> tuple[Timed, Timed]:
    """Codes of 2 bits in groups of 32 tokens → float32, and copying as much; into memory that is there already."""
    packed = [dispatch.pack(codes.flatten() & 3, 2) for codes in symbols]
    scales = [torch.rand(s.shape[0], -(-s.shape[1] // 32), s.shape[2]).half() for s in symbols]
    source, target = (torch.zeros(len(symbols), *symbols[0].shape) for _ in range(2))

    def unpack() -> None:
        for codes, scale, out in zip(packed, scales, target, strict=True):
            unpacked = dispatch.unpack(codes, out.numel(), 2).view(out.shape)
            dispatch.dequantize(unpacked, scale, scale, 1, 32, out)

    return Timed(unpack), Timed(lambda: target.copy_(source))


def _symbols(kv: KV) -> tuple[list[Tensor], list[Array]]:
    pipeline, symbols, arrays = recipe("cachegen-lmcache").build(), [], []
    for index, layer in enumerate(kv.layers):
        for stages, x in ((pipeline.keys, layer.keys), (pipeline.values, layer.values)):
            (stage,) = (stage for stage in stages if isinstance(stage, Vectorwise))
            spec = Spec({"x": Array(tuple(x.shape), x.dtype)}, place=Place(index, 1, len(kv.layers)))
            symbols.append(stage.encode({"x": x}, spec)["codes"])
            arrays.append(stage.plan(spec).arrays["codes"])
    return symbols, arrays


def _counts(codes: Tensor, array: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = codes.transpose(1, 2).flatten(0, 1).long()
    levels = array.levels or 1
    cells = (rows + torch.arange(len(rows))[:, None] * levels).flatten()
    return torch.bincount(cells, minlength=len(rows) * levels).view(-1, levels).double().numpy()


def _entropy(codes: Tensor, array: Array) -> float:
    """Bits of the codes under each channel's own frequencies, which nobody has told the decoder."""
    counts = _counts(codes, array)
    share = counts / counts.sum(1, keepdims=True)
    return float(-(counts * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum())


def _constriction(codes: Tensor, array: Array) -> tuple[list[Any], Any]:
    """Each channel's frequencies as a model, and the codes coded under them."""
    counts = _counts(codes, array) + 0.01
    kind = constriction.stream.model.Categorical
    models = [kind((row / row.sum()).astype(np.float32), perfect=False) for row in counts]
    coder = constriction.stream.stack.AnsCoder()
    rows = codes.transpose(1, 2).flatten(0, 1).numpy().astype(np.int32)
    for row, model in reversed(list(zip(rows, models, strict=True))):
        coder.encode_reverse(row, model)
    return models, coder.get_compressed()


def _decoded(models: list[Any], stream: Any, kv: KV) -> list[Any]:
    coder = constriction.stream.stack.AnsCoder(stream)
    return [coder.decode(model, kv.n_tokens) for model in models]


def _same_symbols(kv: KV, theirs: Tensor) -> bool:
    """``theirs`` [L, 2, T, H, D]."""
    ours, _ = _symbols(kv)
    stacked = torch.stack(ours).unflatten(0, (-1, 2)).transpose(2, 3)
    return torch.equal(stacked, theirs)


def _errors(kv: KV, decoded: KV) -> list[float]:
    """Norm of the error over that of the cache, for keys and for values."""
    found = []
    for side in ("keys", "values"):
        pairs = [(getattr(a, side), getattr(b, side)) for a, b in zip(kv.layers, decoded.layers, strict=True)]
        wrong = sum(((a - b).double() ** 2).sum().item() for a, b in pairs)
        found.append((wrong / sum((a.double() ** 2).sum().item() for a, _ in pairs)) ** 0.5)
    return found


def _bits(nbytes: int, kv: KV) -> str:
    return f"{8 * nbytes / kv.n_elements:.3f}"
