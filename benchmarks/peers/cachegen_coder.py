"""Size, speed, error and symbols of CacheGen as LMCache runs it on the CPU, on a KV cache from a file.

build/peers/cachegen_lmcache/bin/python benchmarks/peers/cachegen_coder.py INPUT.safetensors OUTPUT.json [--repeats 5]
    [--chunk 256]

cachegen_lmcache.py, whose environment it shares, says what LMCache does; this looks further into its coder, for
``benchmarks codecs``. INPUT holds one tensor, ``kv`` [layers, 2, tokens, heads, head size]; LMCache keeps its maxima in the
same dtype.

OUTPUT has two speeds. ``serializer`` is LMCache as it is, from a tensor to the stored bytes and from these to a tensor:
on the CPU it submits each channel to a thread pool, and the compiled code holds the GIL, so that most of this time is
Python's. ``coder`` is the same compiled arithmetic coder alone, all channels in one compiled loop on one thread,
without quantizing, histograms and pickle. Both are medians over the repeats, after one call that is not counted (it
compiles). LMCache on a GPU runs other code.

Beside OUTPUT, ``.symbols.safetensors`` has the symbols [layers, 2, tokens, heads, head size] in uint8, ``max``
[layers, 2, tokens] and ``bins`` [layers, 2]: value = (symbol - c) / c * max, with c = bins // 2 - 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cachegen_lmcache import maxima, require_cpu, serde, sizes

# isort: split
import numpy as np
import torch
from lmcache.storage_backend.serde.cachegen_basics import CacheGenGPUEncoderOutput
from lmcache.storage_backend.serde.cachegen_decoder import decode_function_gpu
from lmcache.v1.platform.torch_ops.cachegen_kernels import _decode_single_channel, _encode_single_channel
from numba import njit
from safetensors.torch import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=256)
    args = parser.parse_args()
    require_cpu()

    kv = load_file(args.input)["kv"]
    chunks = [chunk.contiguous() for chunk in kv.split(args.chunk, dim=2)]
    serializer, deserializer = serde(kv.shape[0], args.chunk, kv.dtype)
    stored, encode = _timed(lambda: [serializer.to_bytes(chunk) for chunk in chunks], args.repeats)
    decoded, decode = _timed(lambda: [deserializer.from_bytes(data) for data in stored], args.repeats)
    outputs = [CacheGenGPUEncoderOutput.from_bytes(data) for data in stored]
    symbols = torch.cat([_symbols(output) for output in outputs], dim=2)
    coder_encode, coder_decode = _coder(outputs, symbols, args.repeats)
    error = (torch.cat(decoded, dim=2).float() - kv.float()).abs()
    tensors = {
        "symbols": symbols,
        "max": torch.cat([maxima(output) for output in outputs], dim=2),
        "bins": torch.stack((serializer.key_bins, serializer.value_bins), dim=1).to(torch.uint8),
    }
    save_file(tensors, args.output.with_suffix(".symbols.safetensors"))
    result = {
        "shape": list(kv.shape),
        "dtype": str(kv.dtype).removeprefix("torch."),
        "chunk": args.chunk,
        "repeats": args.repeats,
        "bins": {"keys": serializer.key_bins.tolist(), "values": serializer.value_bins.tolist()},
        "bytes": {"total": sum(map(len, stored)), **sizes(stored)},
        "bits_per_value": sum(map(len, stored)) * 8 / kv.numel(),
        "serializer": _speeds(kv.numel(), encode, decode),
        "coder": _speeds(kv.numel(), coder_encode, coder_decode),
        "error": {"max": error.max().item(), "mean": error.mean().item()},
        "machine": {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("lmcache", "numba", "numpy", "torch")},
        },
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")


def _symbols(output: Any) -> torch.Tensor:
    layers, tokens, _ = output.max_tensors_key.shape
    buffer = torch.zeros(2 * layers * tokens * output.cdf.shape[1], dtype=torch.uint8)
    halves = decode_function_gpu(output.cdf, output.data_chunks, layers, tokens, buffer)
    both = torch.stack(halves, dim=1).to(torch.uint8)
    return both.reshape(layers, 2, tokens, output.num_heads, output.head_size)


def _speeds(values: int, encode: float, decode: float) -> dict[str, float]:
    return {
        "encode_seconds": encode,
        "decode_seconds": decode,
        "encode_values_per_second": values / encode,
        "decode_values_per_second": values / decode,
    }


def _coder(outputs: list[Any], symbols: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Seconds LMCache's compiled coder takes to encode and to decode all channels in a loop."""
    encode, decode = njit(_encode_channels), njit(_decode_channels)
    jobs: list[Any] = []
    start = 0
    for output in outputs:
        cdf = output.cdf.numpy().view(np.uint16).astype(np.uint32)
        for stream in output.data_chunks:
            part = symbols[:, :, start : start + stream.ntokens].transpose(0, 1).flatten(3).flatten(0, 1)
            ends = stream.bytestream_lengths.flatten().cumsum(0).reshape(cdf.shape[:2])
            data = torch.nn.functional.pad(stream.bytestream, (0, 4))
            jobs.append((cdf, part.contiguous().numpy(), data.numpy(), ends.numpy()))
            start += stream.ntokens
    written, encode_seconds = _timed(lambda: [encode(cdf, part) for cdf, part, _, _ in jobs], repeats)
    read, decode_seconds = _timed(
        lambda: [decode(cdf, data, ends, part.shape[1]) for cdf, part, data, ends in jobs], repeats
    )
    for (_, part, _, ends), lengths, decoded in zip(jobs, written, read, strict=True):
        if not (np.array_equal(lengths.cumsum(), ends.ravel()) and np.array_equal(decoded, part)):
            raise RuntimeError("the loop's streams are not the serializer's")
    return encode_seconds, decode_seconds


def _encode_channels(cdf: Any, symbols: Any) -> Any:
    layers, _, channels = symbols.shape
    streams = np.zeros((layers, channels, 256), np.uint8)
    lengths = np.zeros((layers, channels), np.int64)
    for layer in range(layers):
        for channel in range(channels):
            lengths[layer, channel] = _encode_single_channel(
                cdf[layer, channel], symbols[layer, :, channel], streams[layer, channel]
            )
    return lengths


def _decode_channels(cdf: Any, data: Any, ends: Any, tokens: int) -> Any:
    layers, channels = ends.shape
    symbols = np.zeros((layers, tokens, channels), np.uint8)
    start = 0
    for layer in range(layers):
        for channel in range(channels):
            end = ends[layer, channel]
            _decode_single_channel(cdf[layer, channel], data, start, end, tokens, symbols[layer, :, channel])
            start = end
    return symbols


def _timed(run: Callable[[], list[Any]], repeats: int) -> tuple[list[Any], float]:
    """What ``run`` returns, and its median time over ``repeats`` calls after a first one."""
    result = run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


if __name__ == "__main__":
    main()
